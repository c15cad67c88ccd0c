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
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"sevagent/internal/snp"
)

// authority is the simulator's own root: the counterpart of AMD's ARK, ASK and ASVK, with the names and forms that
// a verifier expects of those, and with keys that nobody else has.
type authority struct {
	arkKey, askKey, asvkKey *rsa.PrivateKey
	ark, ask, asvk          *x509.Certificate
}

// rootBits is the size of the authority's keys. AMD's have 4096; half of that is made in a fraction of the time
// and keeps nothing of value.
const rootBits = 2048

func newAuthority(now time.Time) (*authority, error) {
	a := new(authority)
	for _, key := range []**rsa.PrivateKey{&a.arkKey, &a.askKey, &a.asvkKey} {
		var err error
		if *key, err = rsa.GenerateKey(rand.Reader, rootBits); err != nil {
			return nil, err
		}
	}
	var err error
	if a.ark, err = makeCA("ARK-Milan", a.arkKey, nil, a.arkKey, now); err != nil {
		return nil, err
	}
	if a.ask, err = makeCA("SEV-Milan", a.askKey, a.ark, a.arkKey, now); err != nil {
		return nil, err
	}
	a.asvk, err = makeCA("SEV-VLEK-Milan", a.asvkKey, a.ark, a.arkKey, now)
	return a, err
}

func amdName(commonName string) pkix.Name {
	return pkix.Name{
		CommonName: commonName, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
	}
}

func makeCA(name string, key *rsa.PrivateKey, parent *x509.Certificate, signer *rsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: amdName(name),
		NotBefore: now.Add(-48 * time.Hour), NotAfter: now.AddDate(25, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
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

// endorse makes the endorsement key's certificate for the options' signer and TCB.
func (a *authority) endorse(o Options, key *ecdsa.PublicKey) (*x509.Certificate, error) {
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
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: amdName(name), NotBefore: o.NotBefore, NotAfter: o.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, signer)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// roots returns ARK, ASK and ASVK as PEM.
func (a *authority) roots() (text []byte) {
	for _, c := range []*x509.Certificate{a.ark, a.ask, a.asvk} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// files are the authority's members by file name.
func (a *authority) files() map[string]struct {
	key  **rsa.PrivateKey
	cert **x509.Certificate
} {
	return map[string]struct {
		key  **rsa.PrivateKey
		cert **x509.Certificate
	}{"ark": {&a.arkKey, &a.ark}, "ask": {&a.askKey, &a.ask}, "asvk": {&a.asvkKey, &a.asvk}}
}

func (a *authority) save(dir string) error {
	for name, f := range a.files() {
		key, err := x509.MarshalPKCS8PrivateKey(*f.key)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: (*f.cert).Raw})...)
		if err := os.WriteFile(filepath.Join(dir, name+".pem"), text, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "roots.pem"), a.roots(), 0o644)
}

func loadAuthority(dir string) (*authority, error) {
	a := new(authority)
	for name, f := range a.files() {
		text, err := os.ReadFile(filepath.Join(dir, name+".pem"))
		if err != nil {
			return nil, err
		}
		keyBlock, rest := pem.Decode(text)
		certBlock, _ := pem.Decode(rest)
		if keyBlock == nil || certBlock == nil {
			return nil, fmt.Errorf("%s.pem: no key with a certificate in it", name)
		}
		key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
		if err != nil {
			return nil, err
		}
		var ok bool
		if *f.key, ok = key.(*rsa.PrivateKey); !ok {
			return nil, fmt.Errorf("%s.pem: not an RSA key", name)
		}
		if *f.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func newEndorsementKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
}
