package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/must"
)

// Pinned is the path of a program that a module below tools/ pins, apart from the product.
func Pinned(module, program string) string {
	return filepath.Join(Repository(), ".cache", module, "bin", program)
}

// FreeAddress returns an address on loopback that nobody listens at.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l := must.Get(net.Listen("tcp", "127.0.0.1:0"))(t, "find a free port")
	defer l.Close()
	return l.Addr().String()
}

// UntilOpen waits until a program listens at an address.
func UntilOpen(t testing.TB, p *Process, address string) {
	t.Helper()
	Until(t, p.name+" at "+address, func() error {
		select {
		case <-p.Ended:
			t.Fatalf("%s has ended", p.name) // what it printed follows
		default:
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// StartResolver runs a DNS server, Pebble's, for which every name has the address 127.0.0.1, and returns its address.
func StartResolver(t testing.TB) string {
	t.Helper()
	address := FreeAddress(t)
	p := Start(t, "pebble-challtestsrv", exec.Command(Pinned("pebble", "pebble-challtestsrv"), "-dnsserver", address,
		"-management", FreeAddress(t), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""))
	UntilOpen(t, p, address)
	return address
}

// NewRequest makes a key and a request for it.
func NewRequest(t testing.TB, template *x509.CertificateRequest) (issue.Request, *ecdsa.PrivateKey) {
	t.Helper()
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	csr := must.Get(x509.CreateCertificateRequest(rand.Reader, template, key))(t, "make a request")
	return issue.Request{CSR: csr, Token: rand.Text()}, key
}

// Order gets a certificate from an authority, and verifies that it is for the key and leads to the anchors.
func Order(t testing.TB, a issue.Authority, anchors *x509.CertPool, usage x509.ExtKeyUsage, names ...string) (
	issue.Certificate, *ecdsa.PrivateKey,
) {
	t.Helper()
	r, key := NewRequest(t, &x509.CertificateRequest{DNSNames: names})
	c := must.Get(Collect(t.Context(), must.Get(a.Order(t.Context(), r))(t, "order")))(t, "collect")
	if public, ok := c.Chain[0].PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		t.Errorf("the certificate of %s is for another key", names)
	}
	intermediates := x509.NewCertPool()
	for _, i := range c.Chain[1:] {
		intermediates.AddCert(i)
	}
	for _, name := range names {
		_, err := c.Chain[0].Verify(x509.VerifyOptions{
			DNSName: name, Roots: anchors, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
		})
		if err != nil {
			t.Errorf("verify the certificate of %s: %v", name, err)
		}
	}
	return c, key
}

// Collect asks an order until it has a certificate, or fails otherwise than that it has none yet.
func Collect(ctx context.Context, o issue.Order) (issue.Certificate, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Hang); ; <-tick.C {
		c, err := o.Collect(ctx)
		if !errors.Is(err, issue.ErrPending) || time.Now().After(deadline) {
			return c, err
		}
	}
}
