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
	"strings"
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

// newAuthority makes the root of a product line. Its intermediates are valid until notAfter.
func newAuthority(line string, notAfter time.Time) (*authority, error) {
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
	if a.ark, err = makeCA("ARK-"+line, "vcek", rootNotAfter, a.arkKey, nil, a.arkKey); err != nil {
		return nil, err
	}
	if a.ask, err = makeCA("SEV-"+line, "vcek", notAfter, a.askKey, a.ark, a.arkKey); err != nil {
		return nil, err
	}
	a.asvk, err = makeCA("SEV-VLEK-"+line, "vlek", notAfter, a.asvkKey, a.ark, a.arkKey)
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
	name, endpoint string, notAfter time.Time, key *rsa.PrivateKey, parent *x509.Certificate, signer *rsa.PrivateKey,
) (*x509.Certificate, error) {
	line := name[strings.LastIndexByte(name, '-')+1:]
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: amdName(name),
		NotBefore: rootNotBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		CRLDistributionPoints: []string{"https://kdsintf.amd.com/" + endpoint + "/v1/" + line + "/crl"},
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
	line := o.Product.Line()
	name, issuer, signer := "SEV-VLEK", a.asvk, a.asvkKey
	productName, identity := line, extension("CN=cc-"+o.Region+".amazonaws.com", "ia5", 5)
	if o.Signer == snp.SignedByVCEK {
		name, issuer, signer = "SEV-VCEK", a.ask, a.askKey
		hwid := o.ChipID[:]
		if o.Product == snp.Turin {
			hwid = hwid[:8]
		} else {
			productName += "-B1"
		}
		identity = pkix.Extension{Id: append(append(asn1.ObjectIdentifier{}, amdOID...), 4), Value: hwid}
	}
	structVersion, free := 0, []int{4, 5, 6, 7} // the arcs of reserved bytes of the TCB
	if o.Product == snp.Turin {
		structVersion, free = 1, []int{5, 6, 7}
	}
	extensions := []pkix.Extension{extension(structVersion, "", 1), extension(productName, "ia5", 2)}
	if o.Product == snp.Turin {
		extensions = append(extensions, extension(int(o.TCB.FMC), "", 3, 9))
	}
	extensions = append(extensions, extension(int(o.TCB.Bootloader), "", 3, 1), extension(int(o.TCB.TEE), "", 3, 2))
	for _, arc := range free {
		extensions = append(extensions, extension(0, "", 3, arc))
	}
	extensions = append(extensions,
		extension(int(o.TCB.SNP), "", 3, 3), extension(int(o.TCB.Microcode), "", 3, 8), identity)
	template := &x509.Certificate{ // AMD's serial number is 0, which RFC 5280 forbids and crypto/x509 refuses
		SerialNumber: big.NewInt(1), Subject: amdName(name), NotBefore: o.NotBefore, NotAfter: o.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
	}
	if o.AlterCertificate != nil {
		o.AlterCertificate(template)
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
