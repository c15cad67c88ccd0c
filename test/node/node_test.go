//go:build node

package node

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNode takes a node through its life, once with each transport.
func TestNode(t *testing.T) {
	for _, c := range []struct {
		name        string
		mount, node bool
		transport   string
	}{
		{"ioctl", false, true, "ioctl"},
		{"configfs", true, false, "configfs"},
		{"both", true, true, "configfs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, c.mount, c.node)
			m.configure("")
			first := m.secret("first")
			m.aws("secretsmanager", "create-secret", "--name", secretName, "--secret-string", first)
			write(t, ecsConfig, "# our own\nECS_LOGLEVEL=info\n")
			m.bootstrap()

			t.Run("transport", func(t *testing.T) {
				if out := m.must("sevagent", "status"); !strings.Contains(out, "over "+c.transport) {
					t.Errorf("status does not tell of %s:\n%s", c.transport, out)
				}
			})
			t.Run("ecs.config", func(t *testing.T) {
				text := read(t, ecsConfig)
				for _, want := range []string{"# our own\nECS_LOGLEVEL=info\n", "ECS_CLUSTER=test\n", `"sevagent.attested":"simulated"`, `"sevagent.tcb":"4.0.29.222"`} {
					if !strings.Contains(text, want) {
						t.Errorf("%q is missing in\n%s", want, text)
					}
				}
			})
			t.Run("again", func(t *testing.T) {
				out := m.must("bootstrap", "--cluster", "test", "--mtls-secret", secretName, "--services", "none")
				if strings.Contains(out, "written") {
					t.Errorf("bootstrap changed something:\n%s", out)
				}
			})
			t.Run("certificates", func(t *testing.T) { m.expect(t, "first") })
			t.Run("evidence", func(t *testing.T) { m.verifyEvidence(t) })
			t.Run("rotation", func(t *testing.T) {
				m.aws("secretsmanager", "put-secret-value", "--secret-id", secretName, "--secret-string", m.secret("second"))
				m.must("sevagent", "refresh")
				m.expect(t, "second")
			})
			t.Run("broken secret", func(t *testing.T) {
				m.aws("secretsmanager", "put-secret-value", "--secret-id", secretName, "--secret-string", `{"client_cert": "", "client_key": "x"}`)
				if _, errs, status := m.run("sevagent", "refresh"); status != 1 || !strings.Contains(errs, secretName) {
					t.Errorf("refresh: exit status %d, %q", status, errs)
				}
				m.expect(t, "second")
				if status, checks := m.health(); status != http.StatusOK || !strings.Contains(checks, "client_cert") {
					t.Errorf("readyz: %d %s, want 200 with a warning that names the field", status, checks)
				}
			})
			t.Run("roll-back", func(t *testing.T) {
				var v struct{ VersionIdsToStages map[string][]string }
				if err := json.Unmarshal([]byte(m.aws("secretsmanager", "describe-secret", "--secret-id", secretName)), &v); err != nil {
					t.Fatal(err)
				}
				var current, previous string
				for id, labels := range v.VersionIdsToStages {
					if slices.Contains(labels, "AWSCURRENT") {
						current = id
					}
					if slices.Contains(labels, "AWSPREVIOUS") {
						previous = id
					}
				}
				m.aws("secretsmanager", "update-secret-version-stage", "--secret-id", secretName, "--version-stage", "AWSCURRENT",
					"--move-to-version-id", previous, "--remove-from-version-id", current)
				m.must("sevagent", "refresh")
				m.expect(t, "second")
			})
			t.Run("Secrets Manager out of reach", func(t *testing.T) {
				m.aws("secretsmanager", "delete-secret", "--secret-id", secretName)
				if _, errs, status := m.run("sevagent", "refresh"); status != 1 {
					t.Errorf("refresh: exit status %d, %q", status, errs)
				}
				m.expect(t, "second")
			})
			t.Run("bad configuration at reload", func(t *testing.T) {
				m.configure("mtls: {poll_intervall: 5m}\n")
				m.agent.Process.Signal(syscall.SIGHUP)
				m.until("the refusal", func() error {
					if _, checks := m.health(); !strings.Contains(checks, "unknown key") {
						return os.ErrNotExist
					}
					return nil
				})
				m.expect(t, "second")
			})
			t.Run("stop", func(t *testing.T) {
				if took := m.stopAgent(); took > 2*time.Second {
					t.Errorf("the agent took %v to stop", took)
				}
			})
			t.Run("restart", func(t *testing.T) {
				before := read(t, filepath.Join(published, "manifest.json"))
				m.configure("")
				m.startAgent()
				m.until("readiness", func() error {
					if status, _ := m.health(); status != http.StatusOK {
						return os.ErrNotExist
					}
					return nil
				})
				if after := read(t, filepath.Join(published, "manifest.json")); after != before {
					t.Error("a restart published again")
				}
			})
		})
	}
}

// TestNoDevice: in mode enforce the agent does not start, and says what is missing; in mode warn it goes on.
func TestNoDevice(t *testing.T) {
	m := newMachine(t, false, false)
	m.configure("")
	if _, errs, status := m.run("sevagent", "run"); status != 1 || !strings.Contains(errs, "not an SEV-SNP guest") {
		t.Errorf("run: exit status %d, %q", status, errs)
	}
	if _, errs, status := m.run("sevagent", "check"); status != 1 || !strings.Contains(errs, "not an SEV-SNP guest") {
		t.Errorf("check: exit status %d, %q", status, errs)
	}
	write(t, filepath.Join(configDir, "conf.d/90-warn.yaml"), "attestation: {mode: warn}\n")
	m.startAgent()
	m.until("readiness", func() error {
		if status, checks := m.health(); status != http.StatusOK || !strings.Contains(checks, "not an SEV-SNP guest") {
			return os.ErrNotExist
		}
		return nil
	})
	if _, errs, status := m.run("sevagent", "evidence"); status != 1 || !strings.Contains(errs, "not_snp_guest") {
		t.Errorf("evidence: exit status %d, %q", status, errs)
	}
}

// TestDeviceFaults: each shows in the agent's answer with its code.
func TestDeviceFaults(t *testing.T) {
	m := newMachine(t, false, true)
	m.configure("")
	m.startAgent()
	m.until("readiness", func() error {
		if status, _ := m.health(); status != http.StatusOK {
			return os.ErrNotExist
		}
		return nil
	})
	fault := filepath.Join(m.dir, "fault")
	for _, c := range []struct{ fault, code string }{
		{"firmware 0x27", "firmware_error"},
		{"wiped", "vmpck_disabled"},
		{"echo", "report_data_mismatch"},
		{"flip", "signature_invalid"},
		{"table", "certificate_malformed"},
	} {
		write(t, fault, c.fault)
		if _, errs, status := m.run("sevagent", "evidence"); status != 1 || !strings.Contains(errs, c.code) {
			t.Errorf("%s: exit status %d, %q, want %s", c.fault, status, errs, c.code)
		}
	}
	write(t, fault, "version6")
	if out := m.must("sevagent", "evidence"); !strings.Contains(out, "unsupported_report_version") {
		t.Errorf("a newer report is served without its verdict: %s", out)
	}
	write(t, fault, "")
	m.must("sevagent", "evidence")
}

// expect checks what a container would load, with openssl as the judge.
func (m *machine) expect(t *testing.T, name string) {
	t.Helper()
	subject := openssl(t, "x509", "-in", filepath.Join(published, "client.crt"), "-noout", "-subject")
	if !strings.Contains(subject, name) {
		t.Errorf("published is %q, want %s", subject, name)
	}
	openssl(t, "verify", "-CAfile", filepath.Join(published, "ca.crt"), filepath.Join(published, "client.crt"))
	fromCert := openssl(t, "x509", "-in", filepath.Join(published, "client.crt"), "-noout", "-pubkey")
	if fromKey := openssl(t, "pkey", "-in", filepath.Join(published, "client.key"), "-pubout"); fromKey != fromCert {
		t.Error("key and certificate do not belong together")
	}
	var doc struct {
		Binding struct {
			SPKI string `json:"spki_sha256"`
		}
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(published, "evidence.json"))), &doc); err != nil {
		t.Fatal(err)
	}
	der := exec.Command("sh", "-c", "openssl x509 -in "+filepath.Join(published, "client.crt")+" -noout -pubkey | openssl pkey -pubin -outform DER | openssl sha256 -r")
	sum, err := der.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := strings.Cut(string(sum), " "); got != doc.Binding.SPKI {
		t.Errorf("evidence.json binds key %s, published is %s", doc.Binding.SPKI, got)
	}
}

// verifyEvidence plays the relying party, and measures what a container waits.
func (m *machine) verifyEvidence(t *testing.T) {
	const nonce = "000102030405060708090a0b0c0d0e0f"
	file := filepath.Join(t.TempDir(), "evidence.json")
	m.must("sevagent", "evidence", "--nonce", nonce, "--bind", "client", "-o", file)
	verify := []string{"evidence", "verify", file, "--policy", filepath.Join(m.dir, "policy.yaml"), "--region", "us-east-2", "--nonce"}
	m.must("sevctl", append(verify, nonce, "--allow-custom-roots")...)
	if _, _, status := m.run("sevctl", append(verify, strings.Repeat("ff", 16), "--allow-custom-roots")...); status != 1 {
		t.Errorf("another nonce: exit status %d, want 1", status)
	}
	if _, _, status := m.run("sevctl", append(verify, nonce)...); status != 2 {
		t.Errorf("custom roots without the flag: exit status %d, want 2", status)
	}
	var took []time.Duration
	for range 20 {
		began := time.Now()
		m.must("sevagent", "evidence")
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("sevagent evidence, 20 calls: median %v, slowest %v", took[10], took[19])
}

func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDemoWithoutRoot runs the demonstration as a user who owns nothing.
func TestDemoWithoutRoot(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "demo") // the repository may be closed to other users
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod("/dev/shm", 0o1777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sevagent", "bootstrap", "sevctl", "sevsim"} {
		content, err := os.ReadFile(bin(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "sevsim"), "demo")
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Every step held.") || !strings.Contains(string(out), "caller       uid 65534") {
		t.Errorf("demo as nobody: %v\n%s", err, out)
	}
}
