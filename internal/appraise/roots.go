package appraise

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"github.com/google/go-sev-guest/verify/trust"

	"sevagent/internal/snp"
)

// Names of the trust anchors in a verdict.
const (
	RootsAMD    = "amd"
	RootsCustom = "custom"
)

// roots are the trust anchors by product line, in the form that go-sev-guest takes.
type roots map[string][]*trust.AMDRootCerts

// amdRoots builds AMD's embedded roots. The library's own defaults know the ASK but no ASVK and so refuse
// every report signed by a VLEK, as all of EC2's shared tenancy are (go-sev-guest v0.15.0, verify/trust).
//
// They are constants, so they are read once.
var amdRoots = sync.OnceValues(func() (roots, error) {
	embedded := map[string][2][]byte{
		"Milan": {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		"Genoa": {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		"Turin": {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	}
	r := make(roots)
	for product, bundles := range embedded {
		certs := trust.AMDRootCertsProduct(product)
		certs.ProductCerts = new(trust.ProductCerts)
		for _, bundle := range bundles {
			// Turin's VLEK bundle has CRLF line ends and trailing blank lines that the library does not parse.
			clean := append(bytes.TrimSpace(bytes.ReplaceAll(bundle, []byte("\r"), nil)), '\n')
			if err := certs.ProductCerts.FromKDSCertBytes(clean); err != nil {
				return nil, fmt.Errorf("read embedded AMD roots for %s: %w", product, err)
			}
		}
		r[product] = []*trust.AMDRootCerts{certs}
	}
	return r, nil
})

// issuer returns the ARK of a product line and the intermediate that endorses keys of this kind. Either is nil where
// there is none.
func (r roots) issuer(line string, kind snp.SigningKey) (ark, intermediate *x509.Certificate) {
	if r[line] == nil {
		return nil, nil
	}
	certs := r[line][0].ProductCerts
	if kind == snp.SignedByVLEK {
		return certs.Ark, certs.Asvk
	}
	return certs.Ark, certs.Ask
}

// customRoots builds roots from PEM certificates named as AMD names its own: ARK-<product>, SEV-<product> and
// SEV-VLEK-<product>. If all are of Nitro hypervisors, AMD's stay.
func customRoots(data []byte) (roots, error) {
	r := make(roots)
	nitro := false
	for n := 0; len(bytes.TrimSpace(data)) > 0; n++ {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("read custom roots: entry %d is not a PEM certificate", n)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read custom roots: entry %d: %w", n, err)
		}
		if nitroRoot(cert) { // of the documents beside reports: Policy.NitroRoots
			nitro = true
			continue
		}
		name := cert.Subject.CommonName
		product := name[strings.LastIndexByte(name, '-')+1:]
		if r[product] == nil {
			certs := trust.AMDRootCertsProduct(product)
			certs.ProductCerts = new(trust.ProductCerts)
			r[product] = []*trust.AMDRootCerts{certs}
		}
		known := r[product][0].ProductCerts
		switch name {
		case "ARK-" + product:
			known.Ark = cert
		case "SEV-" + product:
			known.Ask = cert
		case "SEV-VLEK-" + product:
			known.Asvk = cert
		default:
			return nil, fmt.Errorf(
				"read custom roots: entry %d: common name %q is none of ARK-, SEV- and SEV-VLEK-<product>, "+
					"and not that of a .nitro-enclaves", n, name)
		}
	}
	for product, certs := range r {
		if err := checkRoots(certs[0].ProductCerts); err != nil {
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

// checkRoots reports whether the intermediates were signed by the ARK.
func checkRoots(c *trust.ProductCerts) error {
	if c.Ark == nil {
		return fmt.Errorf("no ARK")
	}
	if c.Ask == nil && c.Asvk == nil {
		return fmt.Errorf("neither ASK nor ASVK")
	}
	for _, ica := range []*x509.Certificate{c.Ask, c.Asvk} {
		if ica == nil {
			continue
		}
		if err := ica.CheckSignatureFrom(c.Ark); err != nil {
			return fmt.Errorf("%s: %w", ica.Subject.CommonName, err)
		}
	}
	return nil
}
