package appraise

import (
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

// TestRevoked covers what package verify's tests cannot make certificates for: AMD's serial number 0, and the list of
// another product.
func TestRevoked(t *testing.T) {
	now := time.Now()
	cert := func(name, issuer string, serial int64) *x509.Certificate {
		return &x509.Certificate{RawSubject: []byte(name), RawIssuer: []byte(issuer), SerialNumber: big.NewInt(serial)}
	}
	r := make(roots)
	for i, product := range []string{"Milan", "Genoa"} {
		r[product] = &anchors{
			ark:  cert("ARK-"+product, "ARK-"+product, int64(100*i+1)),
			ask:  cert("SEV-"+product, "ARK-"+product, int64(100*i+2)),
			asvk: cert("SEV-VLEK-"+product, "ARK-"+product, int64(100*i+3)),
		}
	}
	r["Genoa"].ask = nil // custom roots may have one intermediate
	list := &x509.RevocationList{NextUpdate: now, RevokedCertificateEntries: []x509.RevocationListEntry{
		{SerialNumber: big.NewInt(0)}, {SerialNumber: big.NewInt(3)},
	}}
	milan := revocations{"ARK-Milan": list}
	for name, c := range map[string]struct {
		known  revocations
		issuer string
		want   string
	}{
		"serial number 0 is nobody's":                {milan, "SEV-Milan", ""},
		"the intermediate above it":                  {milan, "SEV-VLEK-Milan", CodeCertificateRevoked},
		"the same number under another root":         {revocations{"ARK-Genoa": list}, "SEV-VLEK-Genoa", ""},
		"no list for its product":                    {milan, "SEV-VLEK-Genoa", CodeRevocationUnknown},
		"an issuer that is none of the roots":        {milan, "SEV-Turin", CodeRevocationUnknown},
		"no list asked for":                          {nil, "SEV-VLEK-Milan", ""},
		"lists asked for, and none of them readable": {revocations{}, "SEV-Milan", CodeRevocationUnknown},
	} {
		if got, reason := c.known.revoked(cert("SEV-VCEK", c.issuer, 0), r, now); got != c.want {
			t.Errorf("%s: code %q (%s), want %q", name, got, reason, c.want)
		}
	}
}
