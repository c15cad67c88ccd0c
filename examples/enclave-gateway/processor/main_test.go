package main

import (
	"crypto/x509"
	"net/url"
	"testing"

	"sevagent/internal/must"
)

func TestAllowed(t *testing.T) {
	id := must.Get(url.Parse("spiffe://example.com/gateway"))(t, "parse the URI")
	leaf := &x509.Certificate{DNSNames: []string{"a.internal", "b.internal"}, URIs: []*url.URL{id}}
	leaf.Subject.CommonName = "common"
	for name, want := range map[string]bool{
		"a.internal": true, "b.internal": true, "spiffe://example.com/gateway": true,
		"common": false, "internal": false, "A.internal": false,
		"*.internal": false, "spiffe://example.com/": false, "": false,
	} {
		if err := allowed(leaf, []string{"other", name}); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}
