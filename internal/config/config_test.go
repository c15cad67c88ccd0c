package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/appraise"
	"sevagent/internal/config"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestDefaultFile: the file that shows every key with its default is the default.
func TestDefaultFile(t *testing.T) {
	got, err := config.Load("testdata/default.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.MTLS.Secrets, want.MTLS.Endpoints = []string{}, []string{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("testdata/default.yaml (-default +file):\n%s", diff)
	}
}

func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "config.yaml", "mtls:\n  secrets: [one, two]\n  poll_interval: 1m\n  owner: 1000:1001\n  key_mode: 0400\nattestation:\n")
	write(t, dir, "conf.d/90-last.yaml", "mtls: {poll_interval: 10s}")
	write(t, dir, "conf.d/50-bootstrap.yaml", `mtls: {"secrets": ["three"], poll_interval: 30s}`)
	write(t, dir, "conf.d/ignored.txt", "not YAML: [")
	got, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.MTLS.Secrets = []string{"three"}
	want.MTLS.PollInterval = 10 * time.Second
	want.MTLS.Owner = config.Owner{UID: 1000, GID: 1001}
	want.MTLS.KeyMode = 0o400
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEmptyDirectoryIsTheDefault(t *testing.T) {
	got, err := config.Load(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Default(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := config.Load(filepath.Join(t.TempDir(), "absent.yaml")); err == nil {
		t.Error("an absent file loads")
	}
}

// TestMistakes: each with its place, and all that one file has at once.
func TestMistakes(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "mtls:\n  poll_intervall: 5m\n", "FILE:2: mtls.poll_intervall: unknown key; there are allow_disk, cert_mode"},
		{"unknown section", "tls: {}\n", "FILE:1: tls: unknown key"},
		{"doubled key", "mtls:\n  path: /a\n  path: /b\n", "FILE:3: mtls.path: set twice; first in line 2"},
		{"doubled section", "mtls: {path: /a}\nlog: {}\nmtls: {path: /b}\n", "FILE:3: mtls: set twice; first in line 1"},
		{"two documents", "log: {level: info}\n---\nlog: {level: debug}\n", "FILE:2: a second YAML document"},
		{"not YAML", "log: [\n", "FILE:1: not YAML"},
		{"list for mapping", "log: [a]\n", "FILE:1: log: want a mapping"},
		{"mapping for list", "mtls: {secrets: {a: b}}\n", "FILE:1: mtls.secrets: want a list"},
		{"list for scalar", "log: {level: [a]}\n", "FILE:1: log.level: want one value"},
		{"number for text", "log: {level: 5}\n", "FILE:1: log.level: 5 is not text"},
		{"text for bool", "mtls: {allow_disk: \"yes\"}\n", "FILE:1: mtls.allow_disk: \"yes\" is neither true nor false"},
		{"alias", "log: &a {level: info}\nmtls: *a\n", "FILE:2: mtls: an alias"},
		{"duration", "mtls: {poll_interval: 5 minutes}\n", "FILE:1: mtls.poll_interval: \"5 minutes\" is not a duration"},
		{"short interval", "mtls: {poll_interval: 1s}\n", "FILE:1: mtls.poll_interval: 1s is not between 5s and 24h0m0s"},
		{"mode", "attestation: {mode: on}\n", "FILE:1: attestation.mode: \"on\" is not one of enforce, warn, off"},
		{"rate", "attestation: {rate: 0}\n", "FILE:1: attestation.rate: 0 is not above 0"},
		{"rate not a number", "attestation: {rate: .nan}\n", "attestation.rate"},
		{"burst", "attestation: {burst: 65}\n", "FILE:1: attestation.burst: 65 is not between 1 and 64"},
		{"relative path", "mtls: {path: etc/mtls}\n", "FILE:1: mtls.path: \"etc/mtls\" is not an absolute path"},
		{"path with dots", "mtls: {path: /etc/../mtls}\n", "FILE:1: mtls.path: \"/etc/../mtls\" is not an absolute path"},
		{"owner", "mtls: {owner: \"root:root\"}\n", "FILE:1: mtls.owner: \"root:root\" is not numeric"},
		{"open keys", "mtls: {key_mode: \"0444\"}\n", "FILE:1: mtls.key_mode: 0444 lets everyone at the private keys"},
		{"not octal", "mtls: {cert_mode: \"0999\"}\n", "FILE:1: mtls.cert_mode: \"0999\" is not an octal mode"},
		{"ARN", "mtls:\n  secrets:\n  - arn:aws:s3:::bucket\n", "FILE:3: mtls.secrets[0]: \"arn:aws:s3:::bucket\" is not the ARN of a Secrets Manager secret"},
		{"same secret", "mtls:\n  secrets:\n  - a\n  - a\n", "FILE:4: mtls.secrets[1]: the same secret as mtls.secrets[0]"},
		{"relative file", "mtls: {secrets: [\"file://a\"]}\n", "FILE:1: mtls.secrets[0]: \"file://a\" does not name an absolute path"},
		{"21 secrets", "mtls: {secrets: [" + strings.TrimSuffix(strings.Repeat("x,", 21), ",") + "]}\n", "FILE:1: mtls.secrets: 21 secrets, at most 20 are allowed"},
		{"endpoint", "mtls: {endpoints: [enclave.example.com]}\n", "FILE:1: mtls.endpoints[0]: \"enclave.example.com\" is not host:port"},
		{"port", "mtls: {endpoints: [\"a:70000\"]}\n", "FILE:1: mtls.endpoints[0]: \"a:70000\" has no port between 1 and 65535"},
		{"open listener", "listen: {tcp: \"0.0.0.0:9180\"}\n", "FILE:1: listen.tcp: \"0.0.0.0:9180\" is not a loopback address"},
		{"long socket", "listen: {socket: /" + strings.Repeat("a", 107) + "}\n", "FILE:1: listen.socket: 108 bytes, at most 107"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, t.TempDir(), "config.yaml", c.text)
			_, err := config.Load(file)
			if want := strings.ReplaceAll(c.want, "FILE", file); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("err = %v\nwant one that says %q", err, want)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		file := write(t, t.TempDir(), "config.yaml", "log: {level: loud}\nmtls:\n  path: x\n  wrong: 1\n")
		_, err := config.Load(file)
		if err == nil || len(strings.Split(err.Error(), "\n")) != 3 {
			t.Errorf("err = %v, want three lines", err)
		}
	})
}

func TestCheckIsLoadWithAnotherContent(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "config.yaml", "log: {level: info}\n")
	const name = "conf.d/50-bootstrap.yaml"
	if err := config.Check(dir, name, []byte("mtls: {path: relative}\n")); err == nil || !strings.Contains(err.Error(), name+":1: mtls.path") {
		t.Errorf("err = %v", err)
	}
	if err := config.Check(dir, name, []byte("mtls: {path: /etc/ecs/mtls}\n")); err != nil {
		t.Error(err)
	}
	write(t, dir, name, "broken: [")
	if err := config.Check(dir, name, []byte("mtls: {path: /etc/ecs/mtls}\n")); err != nil {
		t.Errorf("the content that is to be replaced counts: %v", err)
	}
}

func TestNeedsRestart(t *testing.T) {
	old, changed := config.Default(), config.Default()
	changed.MTLS.PollInterval, changed.Log.Level = time.Minute, "debug"
	if keys := changed.NeedsRestart(old); keys != nil {
		t.Errorf("what a reload takes over needs a restart: %v", keys)
	}
	changed.Listen.TCP, changed.MTLS.Path = "", "/mtls"
	if diff := cmp.Diff([]string{"mtls.path", "listen.tcp"}, changed.NeedsRestart(old)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	psp, err := sim.New(sim.DefaultOptions(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "roots.pem", string(psp.Roots()))
	file := write(t, dir, "policy.yaml", `profile: aws-shared
roots: roots.pem
vmpl: {mode: enforce, value: 0}
min_reported_tcb:
  mode: enforce
  value: {bootloader: 4, tee: 0, snp: 29, microcode: 222}
platform_unknown: {mode: ""}
`)
	got, err := config.LoadPolicy(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := appraise.Builtin(appraise.AWSShared)
	if err != nil {
		t.Fatal(err)
	}
	want.Name, want.Roots, want.RootsPEM = file, "roots.pem", psp.Roots()
	want.VMPL.Mode = appraise.Enforce
	want.MinReportedTCB.Value = snp.TCB{Bootloader: 4, SNP: 29, Microcode: 222}
	want.PlatformUnknown.Mode = ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []struct{ name, text, want string }{
		{"no profile", "vmpl: {mode: warn}\n", "profile: no built-in policy"},
		{"mode", "profile: aws-shared\nvmpl: {mode: maybe}\n", ":2: vmpl.mode: \"maybe\" is not one of enforce, warn"},
		{"signer", "profile: aws-shared\nsigner: {value: ARK}\n", "signer.value: \"ARK\""},
		{"bit", "profile: aws-shared\nplatform_required: {value: [ECC]}\n", "platform_required.value[0]: \"ECC\" is not the name of a bit"},
		{"measurement", "profile: aws-shared\nmeasurement: {mode: enforce, value: [abc]}\n", "measurement.value[0]"},
		{"TCB", "profile: aws-shared\nmin_launch_tcb: {value: {snp: 256}}\n", ":2: min_launch_tcb.value.snp: \"256\" is not a whole number in range"},
		{"rule", "profile: aws-shared\nsgner: {}\n", ":2: sgner: unknown key"},
		{"roots", "profile: aws-shared\nroots: absent.pem\n", ":2: roots:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := config.LoadPolicy(write(t, t.TempDir(), "policy.yaml", c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want one that says %q", err, c.want)
			}
		})
	}
	if _, err := config.LoadPolicy("azure"); err == nil || !strings.Contains(err.Error(), "no built-in policy") {
		t.Errorf("err = %v", err)
	}
}

// FuzzLoad: every line of an error begins with a place, and nothing panics.
func FuzzLoad(f *testing.F) {
	f.Add([]byte("mtls: {path: /a}\n---\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("log: {level: 5}\nmtls:\n  secrets: [a, a]\n"))
	place := regexp.MustCompile(`^(.*config\.yaml:[0-9]+|default): `)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(file)
		if err == nil {
			return
		}
		if !place.MatchString(err.Error()) {
			t.Errorf("%q has no place", err)
		}
	})
}
