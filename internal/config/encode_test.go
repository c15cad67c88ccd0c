package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/must"
)

// What Encode writes is read as the same configuration.
func TestEncode(t *testing.T) {
	const text = `# hunter2
mtls:
  secrets: [node/mtls, {name: "file:///etc/ca.pem", as: ca_cert}, {name: b, fields: {client_cert: a}}]
  key_mode: "0440"
  owner: "1000:0"
  poll_interval: 90s
  consumers: [{name: web, owner: "33:33", files: [client.pem]}]
  issue:
  - {name: node, from: acme, gives: [client], dns: [a.example.com], directory: "https://ca.example.com/d", eab: eab}
attestation: {rate: 0.5, kds: ""}
`
	path := filepath.Join(t.TempDir(), "config.yaml")
	load := func(text []byte) Config {
		t.Helper()
		must.Do(t, os.WriteFile(path, text, 0o600), "write a configuration")
		return must.Get(Load(path))(t, "load %s", text)
	}
	want := load([]byte(text))
	encoded := must.Get(want.Encode())(t, "encode %+v", want)
	if diff := cmp.Diff(want, load(encoded)); diff != "" {
		t.Errorf("it is read differently (-want +got):\n%s\n%s", diff, encoded)
	}
	if strings.Contains(string(encoded), "hunter2") {
		t.Errorf("the encoding has a comment:\n%s", encoded)
	}
	want.MTLS.Issue[0].Directory = "https://user:hunter2@ca.example.com/d"
	encoded = must.Get(want.Encode())(t, "encode %+v", want)
	if text := string(encoded); strings.Contains(text, "hunter2") || !strings.Contains(text, "//…@ca.example.com/d") {
		t.Errorf("the encoding has a password:\n%s", encoded)
	}
}
