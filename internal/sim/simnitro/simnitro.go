// Package simnitro makes attestation documents as AWS's Nitro hypervisor does, under a root of its own: those of a
// NitroTPM, of enclaves and of sandboxes. They are encoded as AWS encodes them, and as no CBOR library does by default:
// the payload is a map of indefinite length, absent fields are null, and the outer array has no tag.
package simnitro

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"
)

// CA is the counterpart of AWS's root, with the keys of what is below it.
type CA struct {
	Root *x509.Certificate

	keys [5]*ecdsa.PrivateKey // of root, region, zone, instance and leaf
}

// New makes a root. It is valid at any time that a test may have; testing/synctest begins in 2000.
func New() (*CA, error) {
	ca := new(CA)
	for i := range ca.keys {
		var err error
		if ca.keys[i], err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			return nil, err
		}
	}
	var err error
	ca.Root, err = certify(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "sim.nitro-enclaves", Organization: []string{"Simulator"}, Country: []string{"US"}},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2049, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: -1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}, nil, ca.keys[0], ca.keys[0])
	return ca, err
}

// Pool returns the root as a pool.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root)
	return pool
}

// PEM returns the root in PEM.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw})
}

// certify signs a certificate; without a parent it is self-signed.
func certify(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	var err error
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	if parent == nil {
		parent = template
	}
	template.SignatureAlgorithm = x509.ECDSAWithSHA384
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// Maps of registers, whose name is what tells a node's document from an enclave's.
const (
	MapNitroTPM = "nitrotpm_pcrs"
	MapEnclave  = "pcrs"
)

// Fields are what a document says. A zero value stands for what a node in us-east-2 has.
type Fields struct {
	Instance string // "": i-0123456789abcdef0
	Suffix   string // of module_id; "": -tpm0000000000000000
	Region   string // "": us-east-2
	Time     time.Time
	Map      string         // "": MapNitroTPM
	PCRs     map[int][]byte // nil: PCRs()

	UserData, Nonce, PublicKey []byte // nil: null

	// Leaf changes the certificate that signs the document before it is made. Nil: it is as AWS makes it.
	Leaf func(*x509.Certificate)
	// Payload changes the payload before it is signed.
	Payload func([]byte) []byte
}

// PCRs returns the 24 registers of a node: 11 to 16 and 23 zero, 17 to 22 all ones, each other with a value of its own.
func PCRs() map[int][]byte {
	pcrs := make(map[int][]byte)
	for i := range 24 {
		sum := sha512.Sum384(fmt.Appendf(nil, "register %d", i))
		switch {
		case i >= 17 && i <= 22:
			sum = [48]byte(slices.Repeat([]byte{0xff}, 48))
		case i >= 11:
			sum = [48]byte{}
		}
		pcrs[i] = sum[:]
	}
	return pcrs
}

// Sign makes a document: COSE_Sign1, as the vendor command of a NitroTPM returns it.
func (ca *CA) Sign(f Fields) ([]byte, error) {
	or := func(s *string, otherwise string) {
		if *s == "" {
			*s = otherwise
		}
	}
	or(&f.Instance, "i-0123456789abcdef0")
	or(&f.Suffix, "-tpm0000000000000000")
	or(&f.Region, "us-east-2")
	or(&f.Map, MapNitroTPM)
	if f.PCRs == nil {
		f.PCRs = PCRs()
	}
	module := f.Instance + f.Suffix
	chain, err := ca.chain(f, module)
	if err != nil {
		return nil, err
	}

	w := writer{0xbf} // a map of indefinite length
	w.text("module_id")
	w.text(module)
	w.text("digest")
	w.text("SHA384")
	w.text("timestamp")
	w.head(0, uint64(f.Time.UnixMilli()))
	w.text(f.Map)
	w.head(5, uint64(len(f.PCRs)))
	for _, i := range slices.Sorted(maps.Keys(f.PCRs)) {
		w.head(0, uint64(i))
		w.bytes(f.PCRs[i])
	}
	w.text("certificate")
	w.bytes(chain[4].Raw)
	w.text("cabundle")
	w.head(4, 4)
	for _, cert := range chain[:4] {
		w.bytes(cert.Raw)
	}
	w.optional("public_key", f.PublicKey)
	w.optional("user_data", f.UserData)
	w.optional("nonce", f.Nonce)
	w = append(w, 0xff)
	if f.Payload != nil {
		w = f.Payload(w)
	}
	return Seal(w, ca.keys[4])
}

// Seal signs a payload: COSE_Sign1 with ES384, RFC 9052, section 4.4.
func Seal(payload []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	protected := []byte{0xa1, 0x01, 0x38, 0x22} // {1: -35}, ES384
	var signed writer
	signed.head(4, 4)
	signed.text("Signature1")
	signed.bytes(protected)
	signed.bytes(nil)
	signed.bytes(payload)
	digest := sha512.Sum384(signed)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 96)
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])

	var doc writer
	doc.head(4, 4)
	doc.bytes(protected)
	doc.head(5, 0)
	doc.bytes(payload)
	doc.bytes(signature)
	return doc, nil
}

// chain makes the certificates of a document, the root first. Names and lives are those of AWS's.
func (ca *CA) chain(f Fields, module string) ([]*x509.Certificate, error) {
	chain := []*x509.Certificate{ca.Root}
	const hour = time.Hour
	for i, c := range []struct {
		name  string
		life  time.Duration
		depth int
		usage x509.KeyUsage
	}{
		{"0123456789abcdef." + f.Region + ".sim.nitro-enclaves", 481 * hour, 2, ca.Root.KeyUsage},
		{"0123456789abcdef.zonal." + f.Region + ".sim.nitro-enclaves", 140 * hour, 1, ca.Root.KeyUsage},
		{f.Instance + "." + f.Region + ".sim.nitro-enclaves", 24 * hour, 0, x509.KeyUsageCertSign},
	} {
		// In the middle of its life, so that each certificate ends at another time.
		cert, err := certify(&x509.Certificate{
			Subject:   pkix.Name{CommonName: c.name, Organization: []string{"Simulator"}, Country: []string{"US"}},
			NotBefore: f.Time.Add(-c.life / 2), NotAfter: f.Time.Add(c.life / 2),
			IsCA: true, BasicConstraintsValid: true, MaxPathLen: c.depth, MaxPathLenZero: true, KeyUsage: c.usage,
		}, chain[i], ca.keys[i+1], ca.keys[i])
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	leaf := &x509.Certificate{
		Subject: pkix.Name{
			CommonName: module + "." + f.Region + ".aws", Organization: []string{"Simulator"}, Country: []string{"US"},
		},
		NotBefore: f.Time.Add(-3 * time.Second), NotAfter: f.Time.Add(3 * hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
	}
	if f.Leaf != nil {
		f.Leaf(leaf)
	}
	cert, err := certify(leaf, chain[3], ca.keys[4], ca.keys[3])
	return append(chain, cert), err
}

// writer writes CBOR.
type writer []byte

func (w *writer) head(major byte, n uint64) {
	switch {
	case n < 24:
		*w = append(*w, major<<5|byte(n))
	case n < 1<<8:
		*w = append(*w, major<<5|24, byte(n))
	case n < 1<<16:
		*w = binary.BigEndian.AppendUint16(append(*w, major<<5|25), uint16(n))
	case n < 1<<32:
		*w = binary.BigEndian.AppendUint32(append(*w, major<<5|26), uint32(n))
	default:
		*w = binary.BigEndian.AppendUint64(append(*w, major<<5|27), n)
	}
}

func (w *writer) bytes(b []byte) {
	w.head(2, uint64(len(b)))
	*w = append(*w, b...)
}

func (w *writer) text(s string) {
	w.head(3, uint64(len(s)))
	*w = append(*w, s...)
}

func (w *writer) optional(name string, value []byte) {
	w.text(name)
	if value == nil {
		*w = append(*w, 0xf6) // null
		return
	}
	w.bytes(value)
}
