package mtls

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"sevagent/client"
	"sevagent/internal/config"
	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// How a secret is read may change while the agent runs, or while it does not: the same version is then read again, and
// what is published stays until that has given something.
func TestReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := mtlstest.NewCA(t, "ca", nil)
		s, path := newFake([]byte(mtlstest.CertPEM(ca.Cert))), filepath.Join(mtlstest.MemoryDir(t), "mtls")
		read := func(how config.Secret) func(*Config) {
			how.Name = "a"
			return func(c *Config) { c.Settings.MTLS.Secrets = []config.Secret{how} }
		}
		n := start(t, path, map[string]source.Source{"a": s}, read(config.Secret{}))
		apply := func(how config.Secret) {
			read(how)(&n.config)
			n.Apply(n.config.Settings)
			synctest.Wait()
		}
		check := func(step, file string, fetches int) {
			t.Helper()
			got := n.read(t)
			if _, f := s.counts(); got[file] != mtlstest.CertPEM(ca.Cert) || f != fetches || len(got) != 2 {
				t.Errorf("%s: %d fetches, want %d; published %v, want %s", step, f, fetches, got, file)
			}
		}
		check("start", "cert-0.pem", 1)
		apply(config.Secret{As: "ca_cert"})
		check("reload", "ca.crt", 1)
		apply(config.Secret{As: "ca_cert"})
		check("reload without a change", "ca.crt", 0)
		apply(config.Secret{Fields: config.Fields{CACert: "ca.crt"}})
		check("reload with what does not fit", "ca.crt", 1)
		if got := n.secret("a").State; got != client.SecretRejected {
			t.Errorf("secret is %s, want rejected", got)
		}
		apply(config.Secret{Validate: "none"})
		check("reload after a rejection", "cert-0.pem", 1)
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, read(config.Secret{Validate: "none"}))
		check("start without a change", "cert-0.pem", 0)
		n.stop()
		n = start(t, path, map[string]source.Source{"a": s}, read(config.Secret{As: "ca_cert"}))
		check("start with a change", "ca.crt", 1)
	})
}

// The status of a large bundle stays within what clients read.
func TestLargeBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, name := mtlstest.NewKey(t), strings.Repeat("name", 10)
		var text strings.Builder
		for text.Len() < 1<<20-1000 {
			text.WriteString(mtlstest.CertPEM(mtlstest.NewCAFor(t, name, key, nil).Cert))
		}
		s := newFake([]byte(text.String()))
		n := start(t, filepath.Join(mtlstest.MemoryDir(t), "mtls"), map[string]source.Source{"a": s})
		n.isReady(t, true)
		status := n.Status()
		encoded := must.Get(json.Marshal(status))(t, "encode the status")
		if len(encoded) > 1<<20 || len(status.Certificates) != maxListed || len(status.Warnings) != 1 {
			t.Errorf("a status of %d bytes, with %d certificates and the warnings %q", len(encoded), len(status.Certificates),
				status.Warnings)
		}
		n.stop()
		if s.counts(); n.read(t)["cert-0.pem"] != text.String() {
			t.Error("the bundle is not published as it is")
		}
		start(t, n.path, map[string]source.Source{"a": s})
		if _, f := s.counts(); f != 0 {
			t.Errorf("%d fetches after a restart, want that the bundle is restored", f)
		}
		n.stop()
	})
}
