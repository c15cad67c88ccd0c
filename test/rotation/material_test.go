// Package rotation holds the published directory to its promise while it rotates, and beside it the strategies of its
// peers. Its benchmarks need no build tag; the stress test, with real processes as readers, is run by test/run.
package rotation

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

// material is one version of a secret, and the eight files that a directory has of it.
type material struct {
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
		return 0o400
	}
	return 0o444
}

// newMaterial makes n versions. Each client's leaf has a trust anchor of its own, so that a ca.crt of another version
// is as wrong as a client.key of another one.
func newMaterial(tb testing.TB, n int) []material {
	tb.Helper()
	now := time.Now()
	servers := lab.NewCA(tb, "Server CA")
	all := make([]material, n)
	for i := range all {
		clients := lab.NewCA(tb, fmt.Sprintf("Client CA %d", i))
		issue := func(ca *simca.CA, name string) simca.Leaf {
			return must.Get(ca.Issue(fmt.Sprintf("%s-%d", name, i), now.Add(-time.Hour), now.AddDate(0, 0, 90)))(tb,
				"issue a certificate")
		}
		client, server := issue(clients, "client"), issue(servers, "server")
		anchors := clients.PEM() + servers.PEM()
		all[i] = material{secret: lab.Secret(client, server, anchors), files: []file{
			{"client.crt", []byte(client.Cert)}, {"client.key", []byte(client.Key)}, {"ca.crt", []byte(anchors)},
			{"server.crt", []byte(server.Cert)}, {"server.key", []byte(server.Key)},
			{"client.pem", []byte(client.Key + client.Cert)}, {"server.pem", []byte(server.Key + server.Cert)},
			{"manifest.json", fmt.Appendf(nil, `{"version": "%d", "published": %q}`, i, now.Format(time.RFC3339))},
		}}
	}
	return all
}

// loadResolved loads what is current, as the contract asks: ..data is resolved once.
func loadResolved(dir string, pause time.Duration) error {
	_, err := lab.LoadCurrent(dir, pause)
	return err
}

func loadOne(dir string) error {
	_, err := lab.LoadOne(dir)
	return err
}

// tally is what a reader has met.
type tally struct {
	Loads      int
	Mismatches int
	Missing    int
	First      string // failure
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

func (t *tally) bad() int { return t.Mismatches + t.Missing }

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
