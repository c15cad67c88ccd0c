package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
)

// NewCA makes a certificate authority.
func NewCA(t testing.TB, name string) *simca.CA {
	t.Helper()
	return must.Get(simca.New(name, time.Now()))(t, "make a CA")
}

// ClientSecret is a secret with a client of the CA that has just been issued.
func ClientSecret(t testing.TB, ca *simca.CA, name string) string {
	t.Helper()
	return must.Get(ca.ClientSecret(name, time.Now()))(t, "make the secret of %s", name)
}

// Secret is a secret with a client, a server, and trust anchors that need not be those of the leaves' own CA.
func Secret(client, server simca.Leaf, anchors string) string {
	text, _ := json.Marshal(map[string]string{ // strings always become JSON
		"client_cert": client.Cert, "client_key": client.Key, "server_cert": server.Cert, "server_key": server.Key,
		"ca_cert": anchors,
	})
	return string(text)
}

// Current resolves a published directory once, as the contract asks of its readers: it returns the path of the
// generation to read everything from.
func Current(dir string) (string, error) {
	target, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, target), nil
}

// Fits reports why a leaf, its key and trust anchors do not belong together.
func Fits(leaf, key, anchors []byte, usage x509.ExtKeyUsage) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair(leaf, key)
	if err != nil {
		return pair, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(anchors) {
		return pair, errors.New("no trust anchor")
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}})
	return pair, err
}

// Load reads leaf, key and trust anchors of a client from a directory, in that order, with a pause between one file and
// the next.
func Load(dir string, pause time.Duration) error {
	var content [3][]byte
	for i, name := range []string{"client.crt", "client.key", "ca.crt"} {
		if i > 0 {
			time.Sleep(pause)
		}
		var err error
		if content[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	_, err := Fits(content[0], content[1], content[2], x509.ExtKeyUsageClientAuth)
	return err
}

// LoadCurrent is Load for the generation that is current in a published directory, which it returns.
func LoadCurrent(dir string, pause time.Duration) (generation string, err error) {
	if generation, err = Current(dir); err == nil {
		err = Load(generation, pause)
	}
	return generation, err
}

// LoadOne reads client.pem of a directory, in one go.
func LoadOne(dir string) (tls.Certificate, error) {
	content, err := os.ReadFile(filepath.Join(dir, "client.pem"))
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(content, content)
	if err != nil {
		err = fmt.Errorf("client.pem: %w", err)
	}
	return pair, err
}
