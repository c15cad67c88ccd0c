// Package rotation holds the published directory to its promise while it rotates, and beside it the strategies of its
// peers. Its benchmarks need no build tag; the stress test, with real processes as readers, has test/rotation/run.
package rotation

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/sim/simca"
)

// material is one version of a secret, and the eight files that a directory has of it.
type material struct {
	anchor string // of the client's leaf alone, PEM
	secret string // JSON
	files  []file
}

type file struct {
	name    string
	content []byte
}

func (f file) mode() os.FileMode {
	switch f.name {
	case "client.key", "server.key", "client.pem", "server.pem":
		return 0o440
	}
	return 0o444
}

// newMaterial makes n versions. Each client's leaf has a trust anchor of its own, so that a ca.crt of another version is
// as wrong as a client.key of another one. The servers' anchor is the same in all, so that a client and a server that
// are one rotation apart can talk.
func newMaterial(tb testing.TB, n int) []material {
	tb.Helper()
	now := time.Now()
	servers, err := simca.New("Server CA", now)
	if err != nil {
		tb.Fatal(err)
	}
	all := make([]material, n)
	for i := range all {
		clients, err := simca.New(fmt.Sprintf("Client CA %d", i), now)
		if err != nil {
			tb.Fatal(err)
		}
		issue := func(ca *simca.CA, name string) simca.Leaf {
			leaf, err := ca.Issue(fmt.Sprintf("%s-%d", name, i), now.Add(-time.Hour), now.AddDate(0, 0, 90))
			if err != nil {
				tb.Fatal(err)
			}
			return leaf
		}
		client, server := issue(clients, "client"), issue(servers, "server")
		anchors := clients.PEM() + servers.PEM()
		secret, err := json.Marshal(map[string]string{
			"client_cert": client.Cert, "client_key": client.Key, "ca_cert": anchors,
			"server_cert": server.Cert, "server_key": server.Key,
		})
		if err != nil {
			tb.Fatal(err)
		}
		all[i] = material{anchor: clients.PEM(), secret: string(secret), files: []file{
			{"client.crt", []byte(client.Cert)}, {"client.key", []byte(client.Key)}, {"ca.crt", []byte(anchors)},
			{"server.crt", []byte(server.Cert)}, {"server.key", []byte(server.Key)},
			{"client.pem", []byte(client.Key + client.Cert)}, {"server.pem", []byte(server.Key + server.Cert)},
			{"manifest.json", fmt.Appendf(nil, `{"version": "%d", "published": %q}`, i, now.Format(time.RFC3339))},
		}}
	}
	return all
}

// resolve is the first half of the contract: the generation that is current, to read everything from.
func resolve(dir string) (string, error) {
	target, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, target), nil
}

// fits reports why a leaf, a key and anchors do not belong together.
func fits(certPEM, keyPEM, caPEM []byte, usage x509.ExtKeyUsage) error {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return errors.New("no trust anchor")
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// load reads leaf, key and anchors of a client, in that order, and waits after each file.
func load(dir string, wait func()) error {
	var content [3][]byte
	for i, name := range []string{"client.crt", "client.key", "ca.crt"} {
		if i > 0 {
			wait()
		}
		var err error
		if content[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return fits(content[0], content[1], content[2], x509.ExtKeyUsageClientAuth)
}

// loadOne reads client.pem alone, in one go.
func loadOne(dir string) error {
	content, err := os.ReadFile(filepath.Join(dir, "client.pem"))
	if err != nil {
		return err
	}
	_, err = tls.X509KeyPair(content, content)
	return err
}

// tally is what a reader has met.
type tally struct {
	Loads      int    `json:"loads"`
	Mismatches int    `json:"mismatches"`
	Missing    int    `json:"missing"`
	First      string `json:"first,omitempty"` // failure
}

func (t *tally) note(err error) {
	t.Loads++
	switch {
	case err == nil:
		return
	case errors.Is(err, fs.ErrNotExist):
		t.Missing++
	default:
		t.Mismatches++
	}
	if t.First == "" {
		t.First = err.Error()
	}
}

func (t *tally) add(o tally) {
	t.Loads += o.Loads
	t.Mismatches += o.Mismatches
	t.Missing += o.Missing
}

// percentile of durations, in ms.
func percentile(d []time.Duration, p int) float64 {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, len(d)*p/100)].Seconds() * 1000
}

// removeAll removes a directory that has immutable files.
func removeAll(dir string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (d.IsDir() || d.Type().IsRegular()) {
			if f, err := os.Open(path); err == nil {
				unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
				f.Close()
			}
		}
		return nil
	})
	os.RemoveAll(dir)
}
