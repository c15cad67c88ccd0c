package sim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sevagent/internal/snp"
)

// authority is the simulator's own root: the counterpart of AMD's ARK, ASK and ASVK, with the names and forms that a
// verifier expects, and with keys that nobody else has.
type authority struct {
	arkKey, askKey, asvkKey *rsa.PrivateKey
	ark, ask, asvk          *x509.Certificate
}

// rootBits is the size of the authority's keys. AMD's have 4096; half of that takes a fraction of the time, and the
// keys protect nothing of value.
const rootBits = 2048

// The roots' dates allow a test to run at any time; testing/synctest begins in 2000.
var (
	rootNotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	rootNotAfter  = time.Date(2045, 10, 22, 0, 0, 0, 0, time.UTC)
)

func newAuthority() (*authority, error) {
	a := new(authority)
	var making sync.WaitGroup
	members := a.members()
	errs := make([]error, len(members))
	for i, m := range members {
		making.Go(func() { *m.key, errs[i] = rsa.GenerateKey(rand.Reader, rootBits) })
	}
	making.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var err error
	if a.ark, err = makeCA("ARK-Milan", "vcek", a.arkKey, nil, a.arkKey); err != nil {
		return nil, err
	}
	if a.ask, err = makeCA("SEV-Milan", "vcek", a.askKey, a.ark, a.arkKey); err != nil {
		return nil, err
	}
	a.asvk, err = makeCA("SEV-VLEK-Milan", "vlek", a.asvkKey, a.ark, a.arkKey)
	return a, err
}

func amdName(commonName string) pkix.Name {
	return pkix.Name{
		CommonName: commonName, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
	}
}

// makeCA makes a root's certificate. endpoint is the part of AMD's key distribution service that serves its revocation
// list: AMD publication 57230.
func makeCA(
	name, endpoint string, key *rsa.PrivateKey, parent *x509.Certificate, signer *rsa.PrivateKey,
) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: amdName(name),
		NotBefore: rootNotBefore, NotAfter: rootNotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		CRLDistributionPoints: []string{"https://kdsintf.amd.com/" + endpoint + "/v1/Milan/crl"},
		SignatureAlgorithm:    x509.SHA384WithRSAPSS,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// Object identifiers of AMD's certificate extensions: AMD publications 57230 (VCEK) and 58369 (VLEK).
var amdOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

func extension(value any, params string, arcs ...int) pkix.Extension {
	der, err := asn1.MarshalWithParams(value, params)
	if err != nil {
		panic(err) // integers and ASCII text
	}
	return pkix.Extension{Id: append(append(asn1.ObjectIdentifier{}, amdOID...), arcs...), Value: der}
}

// endorse makes an endorsement key, and its certificate for the options' signer and TCB.
func (a *authority) endorse(o Options) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	extensions := []pkix.Extension{
		extension(0, "", 1),          // structVersion
		extension("Milan", "ia5", 2), // productName
		extension(int(o.TCB.Bootloader), "", 3, 1),
		extension(int(o.TCB.TEE), "", 3, 2),
		extension(0, "", 3, 4), extension(0, "", 3, 5), extension(0, "", 3, 6), extension(0, "", 3, 7),
		extension(int(o.TCB.SNP), "", 3, 3),
		extension(int(o.TCB.Microcode), "", 3, 8),
	}
	name, issuer, signer := "SEV-VLEK", a.asvk, a.asvkKey
	if o.Signer == snp.SignedByVCEK {
		name, issuer, signer = "SEV-VCEK", a.ask, a.askKey
		hwid := pkix.Extension{Id: append(append(asn1.ObjectIdentifier{}, amdOID...), 4), Value: o.ChipID[:]}
		extensions = append(extensions, hwid)
		extensions[1] = extension("Milan-B1", "ia5", 2)
	} else {
		extensions = append(extensions, extension("CN=cc-"+o.Region+".amazonaws.com", "ia5", 5))
	}
	template := &x509.Certificate{ // AMD's serial number is 0, which RFC 5280 forbids and crypto/x509 refuses
		SerialNumber: big.NewInt(1), Subject: amdName(name), NotBefore: o.NotBefore, NotAfter: o.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	return key, cert, err
}

// roots returns ARK, ASK and ASVK as PEM.
func (a *authority) roots() (text []byte) {
	for _, c := range []*x509.Certificate{a.ark, a.ask, a.asvk} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// member is a root, by the name of its file.
type member struct {
	name string
	key  **rsa.PrivateKey
	cert **x509.Certificate
}

func (a *authority) members() []member {
	return []member{{"ark", &a.arkKey, &a.ark}, {"ask", &a.askKey, &a.ask}, {"asvk", &a.asvkKey, &a.asvk}}
}

// simulatorPolicy is aws-shared with the simulator's roots.
const simulatorPolicy = `# For simulators: reports are verified by the roots beside this file, not by AMD's.
profile: aws-shared
roots: roots.pem
`

func (a *authority) save(dir string) error {
	for _, m := range a.members() {
		key, err := x509.MarshalPKCS8PrivateKey(*m.key)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: (*m.cert).Raw})...)
		if err := os.WriteFile(filepath.Join(dir, m.name+".pem"), text, 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), a.roots(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(simulatorPolicy), 0o644)
}

func loadAuthority(dir string) (*authority, error) {
	a := new(authority)
	for _, m := range a.members() {
		text, err := os.ReadFile(filepath.Join(dir, m.name+".pem"))
		if err != nil {
			return nil, err
		}
		if err := m.parse(text); err != nil {
			return nil, fmt.Errorf("%s.pem: %w", m.name, err)
		}
	}
	return a, nil
}

func (m member) parse(text []byte) error {
	keyBlock, rest := pem.Decode(text)
	certBlock, _ := pem.Decode(rest)
	if keyBlock == nil || certBlock == nil {
		return errors.New("it holds no key with a certificate")
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return err
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return errors.New("not an RSA key")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return err
	}
	if !private.PublicKey.Equal(cert.PublicKey) {
		return errors.New("the key is not the certificate's")
	}
	*m.key, *m.cert = private, cert
	return nil
}
