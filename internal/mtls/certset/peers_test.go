package certset

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// TestPeers makes public key infrastructures at random, sound ones and others, and holds the verdict on each against
// TLS peers: Go's library, OpenSSL, curl. What is published connects with all of them; what is refused fails with one
// at least, unless the reason is a rule of ours. SEVAGENT_PKIS says how many (100), and SEVAGENT_SEED which (1): make
// stress takes more, and others each time.
func TestPeers(t *testing.T) {
	for _, program := range []string{"openssl", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	n, seed := number(t, "SEVAGENT_PKIS", 100), number(t, "SEVAGENT_SEED", 1)
	if testing.Short() {
		n = 10
	}
	t.Logf("SEVAGENT_SEED=%d", seed)
	keys := newKeys(t)
	published, refused := 0, 0
	for i := range n {
		p := &pki{T: t, rand: rand.New(rand.NewPCG(uint64(seed), uint64(i))), keys: keys}
		s, err := set(p.secret())
		switch {
		case err == nil:
			published++
			if why := connect(t, s); why != nil {
				t.Errorf("PKI %d (%s) is published, but %v", i, p.shape, why)
			}
		case isHeld(err) || strings.Contains(err.Error(), "expired on"):
		case slices.ContainsFunc(policy, func(rule string) bool { return strings.Contains(err.Error(), rule) }):
			refused++
		default:
			refused++
			if p.works() {
				t.Errorf("PKI %d (%s) is refused, but works everywhere: %v", i, p.shape, err)
			}
		}
	}
	t.Logf("%d published, %d refused", published, refused)
	if n >= 100 && (published < n/4 || refused < n/10) {
		t.Errorf("%d published and %d refused of %d show too little", published, refused, n)
	}
}

// policy is what is refused although it may work: what goes by the order in which OpenSSL happens to read certificates,
// and what RFC 8446, section 4.4.2.2, forbids and OpenSSL allows, a key usage of keyAgreement.
var policy = []string{"cannot tell which", "does not include digitalSignature"}

func number(t *testing.T, variable string, fallback int) int {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return fallback
	}
	return must.Get(strconv.Atoi(text))(t, "read %s", variable)
}

// newKeys makes keys to choose from, since making one for each certificate takes long.
func newKeys(t *testing.T) (keys []crypto.Signer) {
	for range 6 {
		keys = append(keys, mtlstest.NewKey(t))
	}
	p384 := must.Get(ecdsa.GenerateKey(elliptic.P384(), crand.Reader))(t, "make a key")
	rsaKey := must.Get(rsa.GenerateKey(crand.Reader, 2048))(t, "make a key")
	_, ed, err := ed25519.GenerateKey(crand.Reader)
	must.Do(t, err, "make a key")
	return append(keys, p384, rsaKey, ed)
}

// pki is one infrastructure.
type pki struct {
	*testing.T
	rand  *rand.Rand
	keys  []crypto.Signer
	shape []string // what is peculiar about it

	chain, anchors certs
	key            crypto.Signer
}

// one reports true once in n, and notes what that means.
func (p *pki) one(n int, what string) bool {
	if p.rand.IntN(n) != 0 {
		return false
	}
	p.shape = append(p.shape, what)
	return true
}

// secret makes a root, up to two intermediates, a leaf for client and server, and puts them where people put them.
func (p *pki) secret() []byte {
	order := p.rand.Perm(len(p.keys))
	next := func() crypto.Signer { k := p.keys[order[0]]; order = order[1:]; return k }
	issuer := mtlstest.NewCAFor(p, "root", next(), nil, p.odd(true)...)
	p.anchors = certs{issuer.Cert}
	if p.one(6, "renewed root") {
		p.anchors = append(p.anchors, mtlstest.NewCAFor(p, "root", issuer.Key, nil).Cert)
	}
	if p.one(6, "root of the same name") {
		p.anchors = append(p.anchors, mtlstest.NewCAFor(p, "root", next(), nil).Cert)
	}
	var between certs
	for i := range p.rand.IntN(3) {
		name, key, parent := fmt.Sprint("intermediate-", i), next(), issuer
		issuer = mtlstest.NewCAFor(p, name, key, parent, p.odd(true)...)
		between = append(certs{issuer.Cert}, between...)
		if p.one(8, "twin "+name) {
			twin := mtlstest.NewCAFor(p, name, key, parent, p.odd(true)...)
			between = append(between, twin.Cert)
		}
	}
	p.key = next()
	noKeyID := issuer
	if p.one(8, "no authority key identifier") {
		c := *issuer.Cert
		c.SubjectKeyId = nil
		noKeyID = &mtlstest.CA{Cert: &c, Key: issuer.Key}
	}
	leaf := noKeyID.LeafFor(p, "node", p.key, p.odd(false)...)

	for _, c := range between {
		switch {
		case p.one(12, "missing intermediate"):
		case p.one(6, "intermediate in ca_cert"):
			p.anchors = append(p.anchors, c)
		default:
			p.chain = append(p.chain, c)
		}
	}
	if p.one(6, "root in client_cert") {
		p.chain = append(p.chain, p.anchors[0])
	}
	if p.one(12, "no root") && len(p.anchors) > 1 {
		p.anchors = p.anchors[1:]
	}
	p.chain = append(certs{leaf}, p.chain...)
	if p.one(4, "any order") {
		p.rand.Shuffle(len(p.chain), func(i, j int) { p.chain[i], p.chain[j] = p.chain[j], p.chain[i] })
		p.rand.Shuffle(len(p.anchors), func(i, j int) { p.anchors[i], p.anchors[j] = p.anchors[j], p.anchors[i] })
	}
	chain, key := mtlstest.CertPEM(p.chain...), mtlstest.KeyPEM(p, p.key)
	return mtlstest.Fields{
		clientCert: chain, clientKey: key, serverCert: chain, serverKey: key, caCert: mtlstest.CertPEM(p.anchors...),
	}.JSON(p)
}

// odd returns what is peculiar about one certificate; most have nothing.
func (p *pki) odd(ca bool) (changes []mtlstest.Change) {
	add := func(n int, what string, change mtlstest.Change) {
		if p.one(n, what) {
			changes = append(changes, change)
		}
	}
	const day = 24 * time.Hour
	add(16, "expired", mtlstest.Valid(-3*day, -2*day))
	add(24, "extended key usage any", mtlstest.Usage(x509.ExtKeyUsageAny))
	add(24, "extended key usage of one kind", mtlstest.Usage(x509.ExtKeyUsageClientAuth))
	add(16, "key usage", func(c *x509.Certificate) { c.KeyUsage = 1 << p.rand.IntN(7) })
	add(24, "no key usage", func(c *x509.Certificate) { c.KeyUsage = 0 })
	if len(p.anchors) > 0 {
		wrong := p.anchors[p.rand.IntN(len(p.anchors))]
		add(16, "authority key identifier by serial", issuedBy(p, wrong, wrong.SerialNumber))
	}
	if ca {
		add(12, "path length", func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = p.rand.IntN(2), true })
		add(12, "name constraint", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} })
		add(24, "another name constraint", func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.net"}, true
		})
		add(24, "no CA", func(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.MaxPathLenZero = false, 0, false })
	} else {
		add(12, "address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
		add(24, "critical extension", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true,
				Value: []byte{5, 0}})
		})
	}
	return changes
}

// works reports whether the certificates as they were given connect.
func (p *pki) works() bool {
	i := indexLeaf(p.chain, p.key)
	chain := slices.Concat(p.chain[i:i+1], p.chain[:i], p.chain[i+1:])
	text := mtlstest.CertPEM(chain...)
	return connectAs(p.T, text, text, mtlstest.KeyPEM(p, p.key), p.anchors) == nil
}

// connect has peers connect that trust the roots of a set alone.
func connect(t *testing.T, s *Set) error {
	if slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "holds no root for") }) {
		return nil
	}
	anchors := must.Get(parseField(caCert, s.file("ca.crt"), true))(t, "parse ca.crt")
	return connectAs(t, s.file("client.crt"), s.file("server.crt"), s.file("client.key"), anchors.certs)
}

// connectAs has a Go client connect to OpenSSL's server, and curl to Go's, all with one key.
func connectAs(t *testing.T, client, server, key string, anchors certs) error {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		must.Do(t, os.WriteFile(file, []byte(text), 0o600), "write %s", name)
		return file
	}
	roots := slices.DeleteFunc(slices.Clone(anchors), func(c *x509.Certificate) bool { return !isRoot(c) })
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	p := peers{
		T: t, client: write("client.crt", client), server: write("server.crt", server), key: write("node.key", key),
		ca: write("ca.crt", mtlstest.CertPEM(roots...)),
		config: &tls.Config{
			RootCAs: pool, ClientCAs: pool, ServerName: "node.example.org", ClientAuth: tls.RequireAndVerifyClientCert,
		},
	}
	return errors.Join(p.toOpenSSL(), p.toGo())
}

type peers struct {
	*testing.T
	client, server, key, ca string // files
	config                  *tls.Config
}

// as returns the configuration of a side in Go.
func (p peers) as(crt string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(crt, p.key)
	if err != nil {
		return nil, fmt.Errorf("Go does not load it: %w", err)
	}
	config := p.config.Clone()
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// toOpenSSL connects Go to "openssl s_server", and reads what that sends after it has verified the client.
func (p peers) toOpenSSL() error {
	config, err := p.as(p.client)
	if err != nil {
		return err
	}
	cmd := exec.Command("openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", p.server,
		"-cert_chain", p.server, "-key", p.key, "-CAfile", p.ca, "-Verify", "9", "-verify_return_error", "-no_ticket")
	stdin := must.Get(cmd.StdinPipe())(p, "make a pipe")
	out := must.Get(cmd.StdoutPipe())(p, "make a pipe")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	must.Do(p, cmd.Start(), "start openssl")
	defer cmd.Wait()
	defer cmd.Process.Kill()
	address, err := accepting(out)
	if err != nil {
		cmd.Wait()
		return fmt.Errorf("openssl s_server does not start: %w: %s", err, errs.String())
	}
	go io.Copy(io.Discard, out)
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return fmt.Errorf("Go to OpenSSL: %w", err)
	}
	defer conn.Close()
	fmt.Fprintln(stdin, "hello")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("Go to OpenSSL: %w", err)
	}
	return nil
}

// accepting returns the address that openssl s_server prints.
func accepting(out io.Reader) (address string, err error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := out.Read(b); err != nil {
			return "", err
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if address, ok := strings.CutPrefix(string(line), "ACCEPT "); ok {
			return address, nil
		}
		line = line[:0]
	}
}

// toGo connects curl to a server in Go.
func (p peers) toGo() error {
	config, err := p.as(p.server)
	if err != nil {
		return err
	}
	l := must.Get(tls.Listen("tcp", "127.0.0.1:0", config))(p, "listen")
	defer l.Close()
	verified := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			verified <- err
			return
		}
		defer conn.Close()
		err = conn.(*tls.Conn).Handshake()
		if err == nil {
			_, err = io.WriteString(conn, "HTTP/1.0 204 No Content\r\n\r\n")
		}
		verified <- err
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	out, err := exec.Command("curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", p.ca, "--cert", p.client,
		"--key", p.key, "--resolve", "node.example.org:"+port+":127.0.0.1", "https://node.example.org:"+port).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl to Go: %w: %s", errors.Join(err, <-verified), out)
	}
	if err := <-verified; err != nil {
		return fmt.Errorf("curl to Go: %w", err)
	}
	return nil
}
