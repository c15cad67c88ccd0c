package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/must"
)

// write makes a file below dir.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	must.Do(t, os.MkdirAll(filepath.Dir(file), 0o755), "make a directory")
	must.Do(t, os.WriteFile(file, []byte(content), 0o644), "write a file")
	return file
}

// loadText loads one file, c.yaml, that is nowhere.
func loadText(text string) (Config, error) {
	return load([]string{"c.yaml"}, map[string][]byte{"c.yaml": []byte(text)})
}

func TestDefaultFile(t *testing.T) {
	const file = "testdata/default.yaml"
	cfg := must.Get(Load(file))(t, "load the configuration")
	want := Default()
	// empty in the file, absent without it
	want.MTLS.Secrets, want.MTLS.Endpoints, want.MTLS.Consumers = []Secret{}, []string{}, []Consumer{}
	want.MTLS.Issue = []Issue{}
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("%s differs from Default() (-want +got):\n%s", file, diff)
	}

	// Every key is in the file.
	data := must.Get(os.ReadFile(file))(t, "read a file")
	d := newDecoder()
	d.read(file, data, &cfg)
	for _, key := range leaves(reflect.TypeFor[Config](), "") {
		if _, ok := d.places[key]; !ok {
			t.Errorf("%s does not set %s", file, key)
		}
	}
}

// leaves returns the full names of all keys below t.
func leaves(t reflect.Type, prefix string) (keys []string) {
	if t.Kind() != reflect.Struct || scalarParser(t) != nil {
		return []string{strings.TrimSuffix(prefix, ".")}
	}
	for i := range t.NumField() {
		keys = append(keys, leaves(t.Field(i).Type, prefix+t.Field(i).Tag.Get("yaml")+".")...)
	}
	return keys
}

func TestLoadAccepts(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		change     func(*Config)
	}{
		{"empty file", "", func(*Config) {}},
		{"comment only", "# nothing\n", func(*Config) {}},
		{"document marker only", "---\n", func(*Config) {}},
		{"sections without keys", "log:\nattestation: ~\nmtls: null\nlisten: {}\n", func(*Config) {}},
		{"unquoted modes and owner", "mtls: {key_mode: 0400, cert_mode: 644, owner: 10:20}\n", func(c *Config) {
			c.MTLS.KeyMode, c.MTLS.CertMode, c.MTLS.Owner = 0o400, 0o644, Owner{10, 20}
		}},
		{"quoted modes and owner", "mtls: {key_mode: \"0400\", cert_mode: '0644', owner: \"0:0\"}\n", func(c *Config) {
			c.MTLS.KeyMode, c.MTLS.CertMode = 0o400, 0o644
		}},
		{"whole number as a rate", "attestation: {rate: 50, burst: 0x10}\n", func(c *Config) {
			c.Attestation.Rate, c.Attestation.Burst = 50, 16
		}},
		{"no KDS", "attestation: {kds: ''}\n", func(c *Config) { c.Attestation.KDS = "" }},
		{"KDS on loopback", "attestation: {kds: 'http://[::1]:8080/kds', cache: /c}\n", func(c *Config) {
			c.Attestation.KDS, c.Attestation.Cache = "http://[::1]:8080/kds", "/c"
		}},
		{"policy file", "attestation: {policy: ./policy}\n", func(c *Config) { c.Attestation.Policy = "./policy" }},
		{"consumers", "mtls:\n  ca_overlap: 720h\n" +
			"  consumers:\n  - {name: web-1, owner: 101:102, files: [client.pem, ca.crt, cert-19.pem]}\n" +
			"  - name: api\n    files: [server.key]\n", func(c *Config) {
			c.MTLS.CAOverlap = 720 * time.Hour
			c.MTLS.Consumers = []Consumer{{"web-1", Owner{101, 102}, []string{"client.pem", "ca.crt", "cert-19.pem"}},
				{"api", Owner{}, []string{"server.key"}}}
		}},
		{"bounds of intervals", "mtls: {poll_interval: 5s, probe_interval: 24h}\n", func(c *Config) {
			c.MTLS.PollInterval, c.MTLS.ProbeInterval = 5*time.Second, 24*time.Hour
		}},
		{"forms of secrets", `mtls:
  secrets:
    - arn:aws:secretsmanager:us-east-2:123456789012:secret:team/mtls-AbCdEf
    - arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:x
    - team/mtls_+=.@-
    - file:///run/x.pem
    - {name: k8s, fields: {client_cert: tls.crt, client_key: tls.key, ca_cert: ca.crt}}
    - {name: old, validate: none}
    - name: file:///run/bundle.pem
      as: peer_ca
    - name: "plain"
`, func(c *Config) {
			c.MTLS.Secrets = []Secret{
				{Name: "arn:aws:secretsmanager:us-east-2:123456789012:secret:team/mtls-AbCdEf"},
				{Name: "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:x"},
				{Name: "team/mtls_+=.@-"}, {Name: "file:///run/x.pem"},
				{Name: "k8s", Fields: Fields{ClientCert: "tls.crt", ClientKey: "tls.key", CACert: "ca.crt"}},
				{Name: "old", Validate: "none"}, {Name: "file:///run/bundle.pem", As: "peer_ca"}, {Name: "plain"},
			}
		}},
		{"forms of endpoints", "mtls: {endpoints: ['enclave.internal:8443', '10.0.0.1:1', '[fd00::1]:65535']}\n",
			func(c *Config) {
				c.MTLS.Endpoints = []string{"enclave.internal:8443", "10.0.0.1:1", "[fd00::1]:65535"}
			}},
		{"no TCP", "listen: {tcp: ''}\n", func(c *Config) { c.Listen.TCP = "" }},
		{"TCP on localhost", "listen: {tcp: localhost:80}\n", func(c *Config) { c.Listen.TCP = "localhost:80" }},
		{"TCP on IPv6", "listen: {tcp: '[::1]:80'}\n", func(c *Config) { c.Listen.TCP = "[::1]:80" }},
		{"an anchor that nothing refers to", "log: &a {level: warn}\n", func(c *Config) { c.Log.Level = "warn" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := Default()
			tt.change(&want)
			got := must.Get(loadText(tt.text))(t, "load the configuration")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// numbered repeats a text with %d in it.
func numbered(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// TestManyUnknownKeys: a file with many is likely to be another one, of which no log should have every line.
func TestManyUnknownKeys(t *testing.T) {
	_, err := loadText("log: {level: info}\n" + numbered("secret%d: x\n", 9))
	if err == nil || strings.Count(err.Error(), "\n") != 5 || strings.Contains(err.Error(), "secret5") ||
		!strings.HasSuffix(err.Error(), "c.yaml:7: more unknown keys from here on") {
		t.Errorf("got\n%v\nwant five unknown keys, and that there are more", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	const directory = "the name of a directory: 1 to 32 lower-case letters, digits and dashes"
	const notClean = ` is not an absolute path without "..", "//" and a final "/"`
	socket := "/" + strings.Repeat("s", 107)
	for _, tt := range []struct{ name, text, want string }{
		// The file.
		{"not YAML", "log: {level: info}\nmtls: [\n", "2: not YAML: did not find expected node content"},
		{"unknown anchor", "log: *x\n", "1: not YAML: unknown anchor 'x' referenced"},
		{"second document", "log:\n  level: warn\n---\nlog:\n", "3: a second YAML document; one file holds one"},
		{"too large", strings.Repeat("#", maxFile+1), "1: the file is larger than 1048576 bytes"},
		{"not a mapping", "hello\n", "1: want a mapping with the keys log, attestation, mtls, listen"},

		// Keys.
		{"unknown key, mistyped", "mtls:\n  pol_interval: 5m\n",
			"2: mtls.pol_interval: unknown key; did you mean poll_interval?"},
		{"unknown key, section mistyped", "attestaton:\n  mode: warn\n",
			"1: attestaton: unknown key; did you mean attestation?"},
		{"unknown key, other section", "poll_interval: 5m\n",
			"1: poll_interval: unknown key; did you mean mtls.poll_interval?"},
		{"unknown key, like none", "log:\n  colour: x\n", "2: log.colour: unknown key; there are level, format"},
		{"unknown key, short", "foo: x\n", "1: foo: unknown key; there are log, attestation, mtls, listen"},
		{"unknown key, long", "log:\n  hunter2-hunter2-hunter2-hunter2-hunter2: x\n",
			"2: log.\"hunter2-…\": unknown key; there are level, format"},
		{"another file", "user: admin\n" + numbered("secret-%d: x\n", 9),
			`1: not a configuration: "user" and all other keys are unknown; there are log, attestation, mtls, listen`},
		{"another file, with long keys", "https://admin:hunter2@registry.example.com: x\nb: y\n",
			`1: not a configuration: "https://…" and all other keys are unknown; ` +
				"there are log, attestation, mtls, listen"},
		{"not YAML, with a secret", "log: *hunter2-hunter2-hunter2\n",
			"1: not YAML: unknown anchor 'hunter2… referenced"},
		{"unknown key, of several lines", "log:\n  \"a\\nb\": x\n",
			"2: log.\"a\\nb\": unknown key; there are level, format"},
		{"unknown key, of another case", "log:\n  Level: warn\n", "2: log.Level: unknown key; did you mean level?"},
		{"merge key", "log:\n  <<: {level: warn}\n", "2: log.\"<<\": unknown key; there are level, format"},
		{"key that is a list", "? [a]\n: b\n", "1: a key that is not a word"},
		{"doubled key", "mtls:\n  path: /a\n  path: /a\n", "3: mtls.path: set twice, first in line 2"},
		{"doubled section", "log: {level: warn}\nlog: {format: json}\n", "2: log: set twice, first in line 1"},

		// Consumers.
		{"consumer without a name", "mtls:\n  consumers:\n  - files: [ca.crt]\n",
			`3: mtls.consumers[0].name: "" is not ` + directory},
		{"consumer with a file's name", "mtls: {consumers: [{name: ca.crt, files: [ca.crt]}]}\n",
			`1: mtls.consumers[0].name: "ca.crt" is not ` + directory},
		{"consumer twice", "mtls:\n  consumers:\n  - {name: a, files: [ca.crt]}\n  - {name: a, files: [ca.crt]}\n",
			"4: mtls.consumers[1].name: the same name as mtls.consumers[0]"},
		{"consumer without files", "mtls: {consumers: [{name: a}]}\n",
			"1: mtls.consumers[0].files: empty; name some, such as client.pem and ca.crt"},
		{"consumer of another file", "mtls: {consumers: [{name: a, files: [../x]}]}\n",
			`1: mtls.consumers[0].files[0]: "../x" is not one of client.crt, client.key, client.pem, server.crt, ` +
				`server.key, server.pem, ca.crt, issuer.crt, cert-N.pem, credential-bundle.private-key.pem`},
		{"consumer's file twice", "mtls: {consumers: [{name: a, files: [ca.crt, ca.crt]}]}\n",
			"1: mtls.consumers[0].files[1]: named twice"},
		{"too many consumers", "mtls: {consumers: [" + numbered("{name: a%d, files: [ca.crt]},", 9) + "]}\n",
			"1: mtls.consumers: 9 consumers, at most 8 are allowed"},
		{"overlap", "mtls: {ca_overlap: 721h}\n", "1: mtls.ca_overlap: 721h0m0s is not between 0s and 720h"},

		// Types.
		{"alias", "log: &a {level: warn}\nmtls: {path: /x}\nlisten: *a\n", "3: listen: an alias; write the value out"},
		{"tag", "log:\n  level: !!str warn\n", "2: log.level: a tag, \"!!str\"; leave it out"},
		{"list instead of a mapping", "log: [info]\n", "1: log: want a mapping with the keys level, format"},
		{"text instead of a mapping", "log: info\n", "1: log: want a mapping with the keys level, format"},
		{"mapping instead of text", "log:\n  level: {a: b}\n", "2: log.level: want one value, not a list or a mapping"},
		{"text instead of a list", "mtls:\n  secrets: name\n", "2: mtls.secrets: want a list"},
		{"nothing instead of a list", "mtls:\n  secrets:\n", "2: mtls.secrets: no value; write [] for an empty list"},
		{"nothing instead of text", "listen:\n  tcp:\n", "2: listen.tcp: no value; give one or remove the key"},
		{"nothing in a list", "mtls:\n  secrets:\n  - a\n  -\n",
			"4: mtls.secrets[1]: no value; give one or remove the key"},
		{"number instead of text", "log:\n  level: 1\n", "2: log.level: 1 is not text; put it in quotes"},
		{"number in a list", "mtls:\n  secrets: [123]\n", "2: mtls.secrets[0]: 123 is not text; put it in quotes"},
		{"duration of words", "mtls:\n  poll_interval: \"5 minutes\"\n",
			"2: mtls.poll_interval: \"5 minutes\" is not a duration such as \"5m\""},
		{"duration without a unit", "mtls:\n  poll_interval: 300\n",
			"2: mtls.poll_interval: \"300\" is not a duration such as \"5m\""},
		{"yes", "mtls:\n  allow_disk: yes\n", "2: mtls.allow_disk: \"yes\" is neither true nor false"},
		{"quoted boolean", "mtls:\n  allow_disk: \"true\"\n", "2: mtls.allow_disk: \"true\" is neither true nor false"},
		{"rate of words", "attestation:\n  rate: fast\n", "2: attestation.rate: \"fast\" is not a number"},
		{"quoted rate", "attestation:\n  rate: \"1\"\n", "2: attestation.rate: \"1\" is not a number"},
		{"rate NaN", "attestation:\n  rate: .nan\n", "2: attestation.rate: \".nan\" is not a number"},
		{"fractional burst", "attestation:\n  burst: 1.5\n", "2: attestation.burst: \"1.5\" is not a whole number"},
		{"octal burst", "attestation:\n  burst: 010\n", "2: attestation.burst: \"010\" is not a whole number"},
		{"mode that is not octal", "mtls:\n  key_mode: \"0489\"\n",
			"2: mtls.key_mode: \"0489\" is not an octal mode such as \"0400\", at most \"0777\""},
		{"mode with set-user-ID", "mtls:\n  key_mode: \"4440\"\n",
			"2: mtls.key_mode: \"4440\" is not an octal mode such as \"0400\", at most \"0777\""},
		{"mode of words", "mtls:\n  cert_mode: a+r\n",
			"2: mtls.cert_mode: \"a+r\" is not an octal mode such as \"0400\", at most \"0777\""},
		{"owner by name", "mtls:\n  owner: root:root\n",
			"2: mtls.owner: \"root:root\" is not a numeric uid:gid such as \"0:0\""},
		{"owner without group", "mtls:\n  owner: 0\n", "2: mtls.owner: \"0\" is not a numeric uid:gid such as \"0:0\""},
		{"owner that chown ignores", "mtls:\n  owner: \"-1:0\"\n",
			"2: mtls.owner: \"-1:0\" is not a numeric uid:gid such as \"0:0\""},

		// Values.
		{"level", "log:\n  level: INFO\n", "2: log.level: \"INFO\" is not one of debug, info, warn, error"},
		{"format", "log:\n  format: xml\n", "2: log.format: \"xml\" is not one of auto, text, json"},
		{"mode", "attestation:\n  mode: strict\n", "2: attestation.mode: \"strict\" is not one of enforce, warn, off"},
		{"transport", "attestation:\n  transport: vsock\n",
			"2: attestation.transport: \"vsock\" is not one of auto, configfs, ioctl"},
		{"device", "attestation:\n  device: sev-guest\n", "2: attestation.device: \"sev-guest\"" + notClean},
		{"configfs", "attestation:\n  configfs: /sys/\n", "2: attestation.configfs: \"/sys/\"" + notClean},
		{"no policy", "attestation:\n  policy: \"\"\n",
			"2: attestation.policy: empty; name a built-in profile or a file"},
		{"unknown profile", "attestation:\n  policy: aws\n", "2: attestation.policy: " +
			"\"aws\" is none of the profiles aws-shared and aws-dedicated; a file's path has a \"/\" or \".\""},
		{"rate 0", "attestation:\n  rate: 0\n", "2: attestation.rate: 0 is not above 0 and at most 50"},
		{"rate 50.5", "attestation:\n  rate: 50.5\n", "2: attestation.rate: 50.5 is not above 0 and at most 50"},
		{"burst 0", "attestation:\n  burst: 0\n", "2: attestation.burst: 0 is not between 1 and 64"},
		{"burst 65", "attestation:\n  burst: 65\n", "2: attestation.burst: 65 is not between 1 and 64"},
		{"KDS in the clear", "attestation:\n  kds: http://kdsintf.amd.com\n",
			"2: attestation.kds: \"http://kdsintf.amd.com\" is not https; http is for loopback only"},
		{"KDS by another scheme", "attestation:\n  kds: ftp://127.0.0.1\n",
			"2: attestation.kds: \"ftp://127.0.0.1\" is not https; http is for loopback only"},
		{"KDS without a scheme", "attestation:\n  kds: kdsintf.amd.com\n",
			"2: attestation.kds: \"kdsintf.amd.com\" is not a URL such as https://kdsintf.amd.com"},
		{"KDS with a query", "attestation:\n  kds: https://a/?b=c\n",
			"2: attestation.kds: \"https://a/?b=c\" is not a URL such as https://kdsintf.amd.com"},
		{"KDS with a password", "attestation:\n  kds: https://a:b@c\n",
			"2: attestation.kds: \"https://a:b@c\" is not a URL such as https://kdsintf.amd.com"},
		{"relative cache", "attestation:\n  cache: sevagent\n", "2: attestation.cache: \"sevagent\"" + notClean},
		{"relative path", "mtls:\n  path: mtls\n", "2: mtls.path: \"mtls\"" + notClean},
		{"path upwards", "mtls:\n  path: /etc/../mtls\n", "2: mtls.path: \"/etc/../mtls\"" + notClean},
		{"path /", "mtls:\n  path: /\n", "2: mtls.path: \"/\"" + notClean},
		{"path of two lines", "mtls:\n  path: |\n    /etc/mtls\n", "2: mtls.path: \"/etc/mtls\\n\"" + notClean},
		{"21 secrets", "mtls:\n  secrets: [a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u]\n",
			"2: mtls.secrets: 21 secrets, at most 20 are allowed"},
		{"empty secret", "mtls:\n  secrets: [\"\"]\n",
			"2: mtls.secrets[0]: \"\" is not the name of a secret: 1 to 512 letters, digits and /_+=.@-"},
		{"secret with a space", "mtls:\n  secrets:\n  - a b\n",
			"3: mtls.secrets[0]: \"a b\" is not the name of a secret: 1 to 512 letters, digits and /_+=.@-"},
		{"ARN of something else", "mtls:\n  secrets: [\"arn:aws:s3:::bucket\"]\n",
			"2: mtls.secrets[0]: \"arn:aws:s3:::bucket\" is not the ARN of a Secrets Manager secret"},
		{"ARN with a JSON key",
			"mtls:\n  secrets: [\"arn:aws:secretsmanager:us-east-2:123456789012:secret:a:key::\"]\n",
			"2: mtls.secrets[0]: \"arn:aws:secretsmanager:us-east-2:123456789012:secret:a:key::\" is not the ARN of " +
				"a Secrets Manager secret"},
		{"relative file", "mtls:\n  secrets: [\"file://x.pem\"]\n",
			"2: mtls.secrets[0]: \"file://x.pem\" does not name a clean absolute path, file:///path"},
		{"secret without a name", "mtls:\n  secrets:\n  - {as: ca_cert}\n", "3: mtls.secrets[0]: \"\" is not the name of a " +
			"secret: 1 to 512 letters, digits and /_+=.@-"},
		{"secret with a wrong name", "mtls:\n  secrets:\n  - as: ca_cert\n    name: a b\n",
			"4: mtls.secrets[0].name: \"a b\" is not the name of a secret: 1 to 512 letters, digits and /_+=.@-"},
		{"unknown key of a secret", "mtls:\n  secrets:\n  - name: a\n    feilds: {}\n",
			"4: mtls.secrets[0].feilds: unknown key; did you mean fields?"},
		{"unknown field", "mtls:\n  secrets:\n  - name: a\n    fields: {client_crt: tls.crt}\n",
			"4: mtls.secrets[0].fields.client_crt: unknown key; did you mean client_cert?"},
		{"validate: all", "mtls:\n  secrets: [{name: a, validate: all}]\n",
			"2: mtls.secrets[0].validate: \"all\" is not none"},
		{"as: server_cert", "mtls:\n  secrets: [{name: a, as: server_cert}]\n",
			"2: mtls.secrets[0].as: \"server_cert\" is not one of ca_cert, peer_ca"},
		{"as and fields", "mtls:\n  secrets: [{name: a, as: ca_cert, fields: {ca_cert: x}}]\n",
			"2: mtls.secrets[0]: as, fields: only one of them; validate and as are for PEM, fields for JSON"},
		{"fields of one key", "mtls:\n  secrets: [{name: a, fields: {client_cert: x, ca_cert: x}}]\n",
			"2: mtls.secrets[0].fields.ca_cert: the key \"x\" gives client_cert as well"},
		{"field with the name of another", "mtls:\n  secrets: [{name: a, fields: {ca_cert: client_cert}}]\n",
			"2: mtls.secrets[0].fields.ca_cert: the key \"client_cert\" gives client_cert as well"},
		{"same secret", "mtls:\n  secrets:\n  - a\n  - b\n  - a\n",
			"5: mtls.secrets[2]: the same secret as mtls.secrets[0]"},
		{"poll too often", "mtls:\n  poll_interval: 4s\n", "2: mtls.poll_interval: 4s is not between 5s and 24h"},
		{"probe too seldom", "mtls:\n  probe_interval: 25h\n",
			"2: mtls.probe_interval: 25h0m0s is not between 5s and 24h"},
		{"key for everyone", "mtls:\n  key_mode: 0444\n",
			"2: mtls.key_mode: \"0444\" lets everyone at the private keys; the last digit must be 0"},
		{"key for nobody", "mtls:\n  key_mode: \"0040\"\n", "2: mtls.key_mode: \"040\" does not let the owner read"},
		{"certificates that everyone writes", "mtls:\n  cert_mode: \"0666\"\n",
			"2: mtls.cert_mode: \"0666\" lets everyone replace the trust anchors"},
		{"endpoint without a port", "mtls:\n  endpoints: [host]\n",
			"2: mtls.endpoints[0]: \"host\" is not host:port, with an IPv6 address in brackets"},
		{"endpoint without brackets", "mtls:\n  endpoints: [\"fd00::1:443\"]\n",
			"2: mtls.endpoints[0]: \"fd00::1:443\" is not host:port, with an IPv6 address in brackets"},
		{"endpoint without a host", "mtls:\n  endpoints: [\":443\"]\n",
			"2: mtls.endpoints[0]: \"\" is not the name or address of a host in \":443\""},
		{"endpoint as a URL", "mtls:\n  endpoints: [\"https://a:443\"]\n",
			"2: mtls.endpoints[0]: \"https://a:443\" is not host:port, with an IPv6 address in brackets"},
		{"endpoint with port 0", "mtls:\n  endpoints: [\"a:0\"]\n",
			"2: mtls.endpoints[0]: \"a:0\" has no port from 1 to 65535"},
		{"endpoint with port 65536", "mtls:\n  endpoints: [\"a:65536\"]\n",
			"2: mtls.endpoints[0]: \"a:65536\" has no port from 1 to 65535"},
		{"relative socket", "listen:\n  socket: \"@x\"\n", "2: listen.socket: \"@x\"" + notClean},
		{"long socket", "listen:\n  socket: " + socket + "\n", "2: listen.socket: 108 bytes, at most 107 are allowed"},
		{"TCP for all", "listen:\n  tcp: 0.0.0.0:9180\n",
			"2: listen.tcp: \"0.0.0.0:9180\" is not a loopback address; only this machine may ask"},
		{"TCP on no address", "listen:\n  tcp: \":9180\"\n",
			"2: listen.tcp: \"\" is not the name or address of a host in \":9180\""},
		{"TCP on a name", "listen:\n  tcp: localhost.evil:9180\n",
			"2: listen.tcp: \"localhost.evil:9180\" is not a loopback address; only this machine may ask"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := loadText(tt.text)
			if err == nil {
				t.Fatalf("loaded %+v, want an error", cfg)
			}
			if want := "c.yaml:" + tt.want; err.Error() != want {
				t.Errorf("got:\n%s\nwant:\n%s", err, want)
			}
			if diff := cmp.Diff(Config{}, cfg); diff != "" {
				t.Errorf("a configuration came with the error:\n%s", diff)
			}
		})
	}
}

func TestEveryMistakeAtOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "config.yaml", `log:
  level: loud
  levle: info
mtls:
  poll_interval: 5 minutes
  key_mode: "0444"
  secrets: [a, [b], a]
attestation: off
`)
	write(t, dir, "conf.d/10-a.yaml", "mtls: [\n")
	write(t, dir, "conf.d/20-b.yaml", "# x\nlisten: {tcp: \"0.0.0.0:80\", socket: x}\nmtls: {poll_interval: 1s}\n")
	_, err := Load(dir)
	if err == nil {
		t.Fatal("loaded")
	}
	want := strings.ReplaceAll(`DIR/config.yaml:2: log.level: "loud" is not one of debug, info, warn, error
DIR/config.yaml:3: log.levle: unknown key; did you mean level?
DIR/config.yaml:5: mtls.poll_interval: "5 minutes" is not a duration such as "5m"
DIR/config.yaml:6: mtls.key_mode: "0444" lets everyone at the private keys; the last digit must be 0
DIR/config.yaml:7: mtls.secrets[1]: want a mapping with the keys name, validate, as, fields
DIR/config.yaml:7: mtls.secrets[2]: the same secret as mtls.secrets[0]
DIR/config.yaml:8: attestation: want a mapping with the keys mode, transport, device, configfs, policy, nitrotpm, tpm, rate, burst, kds, cache
DIR/conf.d/10-a.yaml:1: not YAML: did not find expected node content
DIR/conf.d/20-b.yaml:2: listen.socket: "x" is not an absolute path without "..", "//" and a final "/"
DIR/conf.d/20-b.yaml:2: listen.tcp: "0.0.0.0:80" is not a loopback address; only this machine may ask
DIR/conf.d/20-b.yaml:3: mtls.poll_interval: 1s is not between 5s and 24h`, "DIR", dir)
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTooMuch(t *testing.T) {
	for name, text := range map[string]string{
		"values":       "mtls:\n  secrets: [" + strings.Repeat("a,", maxNodes) + "]\n",
		"unknown keys": "mtls:\n  x" + strings.Repeat(": 1\n  x", maxNodes) + ": 1\n",
		"nesting":      strings.Repeat("[", 9000),
		"a long value": "log:\n  level: " + strings.Repeat("x", maxFile/2) + "\n",
		"a long key":   "log:\n  " + strings.Repeat("x", 1000) + ": x\n",
	} {
		_, err := loadText(text)
		if err == nil {
			t.Errorf("%s: loaded", name)
			continue
		}
		checkLocated(t, err)
		if n := len(err.Error()); n > 50_000 {
			t.Errorf("%s: an error of %d bytes", name, n)
		}
		if name == "values" &&
			!strings.Contains(err.Error(), "c.yaml:2: more than 10000 keys and values in one file\n") {
			t.Errorf("%s: got\n%.400s\nwhich does not tell the limit", name, err)
		}
	}
}

func TestOverlay(t *testing.T) {
	// A name with the characters of a glob pattern.
	dir := filepath.Join(t.TempDir(), "a[b]*")
	write(t, dir, "config.yaml", "log: {level: debug, format: json}\nmtls: {secrets: [a, b, c], poll_interval: 1m}\n")
	write(t, dir, "conf.d/60-late.yaml", "log: {level: warn}\n")
	// as bootstrap writes it
	write(t, dir, "conf.d/50-bootstrap.yaml", "log: {level: error}\nmtls: {\"secrets\": [\"d\"]}\n")
	write(t, dir, "conf.d/70-none.yaml", "")
	write(t, dir, "conf.d/.80-editor.yaml", "not: read\n")
	write(t, dir, "conf.d/90-other.yml", "not: read\n")
	write(t, dir, "conf.d/ignored.txt", "not YAML: [")
	got := must.Get(Load(dir))(t, "load the configuration")
	want := Default()
	want.Log = Log{Level: "warn", Format: "json"}
	want.MTLS.Secrets, want.MTLS.PollInterval = []Secret{{Name: "d"}}, time.Minute
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A mistake in a secret is where its name stands, also if an earlier file has spelled that out.
func TestSecretOfLaterFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "config.yaml", "mtls: {secrets: [{name: a, as: ca_cert}]}\n")
	write(t, dir, "conf.d/10.yaml", "\nmtls: {secrets: [a b]}\n")
	_, err := Load(dir)
	if want := dir + "/conf.d/10.yaml:2: mtls.secrets[0]: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestAbsent(t *testing.T) {
	dir := t.TempDir()
	got, err := Load(dir)
	if err != nil {
		t.Fatal("an empty directory:", err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("an empty directory (-want +got):\n%s", diff)
	}
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: got %v, want an error that it does not exist", err)
	}
	// A link that leads nowhere is not an absent file.
	must.Do(t, os.Symlink("nowhere", filepath.Join(dir, "config.yaml")), "make a link")
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("config.yaml leads nowhere: got %v, want an error that it does not exist", err)
	}
}

func TestUnreadableOverlay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "conf.d", "a file, not a directory")
	if _, err := Load(dir); err == nil {
		t.Error("conf.d cannot be listed, and Load went on without it")
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	const name = "conf.d/50-bootstrap.yaml"
	if _, err := Check(filepath.Join(dir, "none"), name, []byte("log: {level: warn}")); err != nil {
		t.Error("the directory does not exist:", err)
	}
	write(t, dir, "config.yaml", "log: {level: loud}\n")
	write(t, dir, name, "log: {level: louder}\n")
	if _, err := Check(dir, name, []byte("log: {level: warn}")); err != nil {
		t.Error("the content repairs the directory:", err)
	}
	write(t, dir, "conf.d/60.yaml", "log: {level: loudest}\n")
	if _, err := Check(dir, name, []byte("log: {level: warn}")); err == nil ||
		!strings.HasPrefix(err.Error(), dir+"/conf.d/60.yaml:1: log.level: ") {
		t.Errorf("a later file overrides the content: got %v, want a mistake in 60.yaml", err)
	}
	if _, err := Check(dir, "conf.d/10.yaml", []byte("x: 1\n")); err == nil ||
		!strings.HasPrefix(err.Error(), dir+"/conf.d/10.yaml:1: x: ") {
		t.Errorf("a mistake in the content: got %v", err)
	}
}

func TestNeedsRestart(t *testing.T) {
	// What SIGHUP takes over; every other key is named.
	reloadable := []string{"log.level", "attestation.policy",
		"mtls.secrets", "mtls.issue", "mtls.poll_interval", "mtls.owner", "mtls.key_mode",
		"mtls.cert_mode", "mtls.consumers", "mtls.ca_overlap",
		"mtls.allow_removal", "mtls.endpoints", "mtls.probe_interval"}
	var got, want []string
	old := Default()
	if keys := old.NeedsRestart(old); keys != nil {
		t.Errorf("nothing changed, and %v need a restart", keys)
	}
	for _, key := range leaves(reflect.TypeFor[Config](), "") {
		section, name, _ := strings.Cut(key, ".")
		changed := old
		v, _ := fieldByName(reflect.ValueOf(&changed).Elem(), section)
		v, _ = fieldByName(v, name)
		switch v.Interface().(type) {
		case string:
			v.SetString("changed")
		case bool:
			v.SetBool(!v.Bool())
		case float64:
			v.SetFloat(2)
		case int, time.Duration:
			v.SetInt(2)
		case fs.FileMode:
			v.SetUint(0o400)
		case []string:
			v.Set(reflect.ValueOf([]string{"changed"}))
		case Owner:
			v.Set(reflect.ValueOf(Owner{1, 1}))
		case []Secret:
			v.Set(reflect.ValueOf([]Secret{{Name: "changed"}}))
		case []Issue:
			v.Set(reflect.ValueOf([]Issue{{Name: "changed"}}))
		case []Consumer:
			v.Set(reflect.ValueOf([]Consumer{{Name: "changed"}}))
		}
		got = append(got, changed.NeedsRestart(old)...)
		if !strings.Contains(" "+strings.Join(reloadable, " ")+" ", " "+key+" ") {
			want = append(want, key)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys that need a restart (-want +got):\n%s", diff)
	}
}

func TestSlogLevel(t *testing.T) {
	for level, want := range map[string]string{"debug": "DEBUG", "info": "INFO", "warn": "WARN", "error": "ERROR"} {
		if got := (Log{Level: level}).SlogLevel().String(); got != want {
			t.Errorf("%s: got %s, want %s", level, got, want)
		}
	}
}

// located is how every mistake begins.
var located = regexp.MustCompile(`^c\.yaml:[1-9][0-9]*: [^\n]`)

func checkLocated(t *testing.T, err error) {
	t.Helper()
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if !located.MatchString(line) {
			t.Errorf("a line without a place: %q", line)
		}
	}
}

// FuzzLoad holds Load to: whatever is in a file, it gives a configuration that validates or mistakes that say where.
func FuzzLoad(f *testing.F) {
	data := must.Get(os.ReadFile("testdata/default.yaml"))(f, "read a file")
	f.Add(data)
	for _, s := range []string{
		"", "---\n", "a: *b\n", "log: &a {level: *a}\n", "? {a: b}\n: c\n", "mtls: {secrets: [[], ~, 1, a]}\n",
		"<<: [*a]\n", "\xff\xfea\x00", "log: !!binary aaa\n",
		"log:\n level: \"\\u2028\\n\"\n", "%YAML 1.1\n---\n...\n", "mtls: {key_mode: 0440, owner: 0:0}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := loadText(string(data))
		if err != nil {
			checkLocated(t, err)
			return
		}
		d := newDecoder()
		if cfg.validate(&d.mistakes); d.found != nil {
			t.Errorf("loaded a configuration with mistakes: %v", d.errors())
		}
	})
}
