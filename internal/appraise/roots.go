package appraise

import (
	"bytes"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"sevagent/internal/snp"
)

// Names of the trust anchors in a verdict.
const (
	RootsAMD    = "amd"
	RootsCustom = "custom"
)

// anchors are AMD's certificates of a product line. Where there is no certificate, it is nil.
type anchors struct{ ark, ask, asvk *x509.Certificate }

// roots are the trust anchors by product line.
type roots map[string]*anchors

// amdPEM has AMD's certificates of all product lines, as https://kdsintf.amd.com/vcek/v1/Milan/cert_chain and
// vlek/v1/Milan/cert_chain serve them. go-sev-guest has them, too, which a test compares.
//
//go:embed amd.pem
var amdPEM []byte

// amdRoots reads AMD's own roots. They are constants: they are read once, and a test verifies their signatures.
var amdRoots = sync.OnceValues(func() (roots, error) {
	r, _, err := readRoots(amdPEM)
	return r, err
})

// issuer returns the ARK of a product line and the intermediate that endorses keys of this kind. Either is nil where
// there is none.
func (r roots) issuer(line string, kind snp.SigningKey) (ark, intermediate *x509.Certificate) {
	a := r[line]
	switch {
	case a == nil:
		return nil, nil
	case kind == snp.SignedByVLEK:
		return a.ark, a.asvk
	}
	return a.ark, a.ask
}

// customRoots builds roots from a policy's PEM. If all are of Nitro hypervisors, AMD's stay.
func customRoots(data []byte) (roots, error) {
	r, nitro, err := readRoots(data)
	if err != nil {
		return nil, fmt.Errorf("read custom roots: %w", err)
	}
	for product, a := range r {
		if err := a.check(); err != nil {
			return nil, fmt.Errorf("read custom roots: %s: %w", product, err)
		}
	}
	if len(r) == 0 && nitro {
		return amdRoots()
	}
	if len(r) == 0 {
		return nil, fmt.Errorf("read custom roots: no certificate in it")
	}
	return r, nil
}

// readRoots reads PEM certificates named as AMD names its own: ARK-<product>, SEV-<product> and SEV-VLEK-<product>.
// nitro reports whether roots of Nitro hypervisors are among them.
func readRoots(data []byte) (r roots, nitro bool, err error) {
	r = make(roots)
	for n := 0; len(bytes.TrimSpace(data)) > 0; n++ {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
			return nil, false, fmt.Errorf("entry %d is not a PEM certificate", n)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, false, fmt.Errorf("entry %d: %w", n, err)
		}
		if nitroRoot(cert) { // of the documents beside reports: Policy.NitroRoots
			nitro = true
			continue
		}
		name := cert.Subject.CommonName
		product := name[strings.LastIndexByte(name, '-')+1:]
		if r[product] == nil {
			r[product] = new(anchors)
		}
		switch name {
		case "ARK-" + product:
			r[product].ark = cert
		case "SEV-" + product:
			r[product].ask = cert
		case "SEV-VLEK-" + product:
			r[product].asvk = cert
		default:
			return nil, false, fmt.Errorf("entry %d: common name %q is none of ARK-, SEV- and SEV-VLEK-<product>, "+
				"and not that of a .nitro-enclaves", n, name)
		}
	}
	return r, nitro, nil
}

// check reports whether the intermediates were signed by the ARK.
func (a *anchors) check() error {
	if a.ark == nil {
		return fmt.Errorf("no ARK")
	}
	if a.ask == nil && a.asvk == nil {
		return fmt.Errorf("neither ASK nor ASVK")
	}
	for _, ica := range []*x509.Certificate{a.ask, a.asvk} {
		if ica == nil {
			continue
		}
		if err := ica.CheckSignatureFrom(a.ark); err != nil {
			return fmt.Errorf("%s: %w", ica.Subject.CommonName, err)
		}
	}
	return nil
}
