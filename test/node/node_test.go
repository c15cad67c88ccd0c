//go:build node

package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/test/lab"
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
			m.aws("secretsmanager", "create-secret", "--name", secretName, "--secret-string",
				lab.ClientSecret(t, m.ca, "first"))
			lab.Write(t, lab.ECSConfig, "# our own\nECS_LOGLEVEL=info\n")
			m.bootstrap()

			t.Run("transport", func(t *testing.T) {
				if out := m.must("sevagent", "status"); !strings.Contains(out, "over "+c.transport) {
					t.Errorf("status does not name %s:\n%s", c.transport, out)
				}
			})
			t.Run("ecs.config", func(t *testing.T) {
				text := lab.Read(t, lab.ECSConfig)
				for _, want := range []string{
					"# our own\nECS_LOGLEVEL=info\n", "ECS_CLUSTER=test\n", `"sevagent.attested":"simulated"`,
					`"sevagent.tcb":"4.0.29.222"`,
				} {
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
				m.put(lab.ClientSecret(t, m.ca, "second"))
				m.must("sevagent", "refresh")
				m.expect(t, "second")
			})
			t.Run("broken secret", func(t *testing.T) {
				m.put(`{"client_cert": "x", "client_key": "x"}`)
				m.fails(t, 1, secretName, "sevagent", "refresh")
				m.expect(t, "second")
				if status, checks := m.health(); status != http.StatusOK || !strings.Contains(checks, "client_cert") {
					t.Errorf("readyz: %d %s, want 200 with a warning that names the field", status, checks)
				}
			})
			t.Run("roll-back", func(t *testing.T) {
				var v struct{ VersionIdsToStages map[string][]string }
				described := m.aws("secretsmanager", "describe-secret", "--secret-id", secretName)
				must.Do(t, json.Unmarshal([]byte(described), &v), "decode the secret's versions")
				var current, previous string
				for id, labels := range v.VersionIdsToStages {
					if slices.Contains(labels, "AWSCURRENT") {
						current = id
					}
					if slices.Contains(labels, "AWSPREVIOUS") {
						previous = id
					}
				}
				m.aws("secretsmanager", "update-secret-version-stage", "--secret-id", secretName, "--version-stage",
					"AWSCURRENT",
					"--move-to-version-id", previous, "--remove-from-version-id", current)
				m.must("sevagent", "refresh")
				m.expect(t, "second")
			})
			t.Run("Secrets Manager out of reach", func(t *testing.T) {
				m.aws("secretsmanager", "delete-secret", "--secret-id", secretName)
				m.fails(t, 1, "", "sevagent", "refresh")
				m.expect(t, "second")
			})
			t.Run("bad configuration at reload", func(t *testing.T) {
				m.configure("mtls: {poll_intervall: 5m}\n")
				m.agent.Signal(syscall.SIGHUP)
				m.untilHealth("unknown key")
				m.expect(t, "second")
			})
			t.Run("restart", func(t *testing.T) {
				before := lab.Read(t, lab.Published+"/manifest.json")
				m.agent.Stop(t, syscall.SIGTERM)
				m.configure("")
				m.startAgent()
				m.agent.UntilReady()
				if after := lab.Read(t, lab.Published+"/manifest.json"); after != before {
					t.Error("a restart published again")
				}
			})
		})
	}
}

// TestNoDevice: in mode enforce the agent does not start, and reports what is missing; in mode warn it goes on.
func TestNoDevice(t *testing.T) {
	const missing = "not an SEV-SNP guest"
	m := newMachine(t, false, false)
	m.configure("")
	m.fails(t, 1, missing, "sevagent", "run")
	m.fails(t, 1, missing, "sevagent", "check")
	lab.Write(t, lab.ConfigDir+"/conf.d/90-warn.yaml", "attestation: {mode: warn}\n")
	m.startAgent()
	m.agent.UntilReady()
	if status := m.untilHealth(missing); status != http.StatusOK {
		t.Errorf("readyz: %d, want 200", status)
	}
	m.fails(t, 1, "not_snp_guest", "sevagent", "evidence")
}

// TestDeviceFaults: each fault shows in the agent's answer, with its code.
func TestDeviceFaults(t *testing.T) {
	m := newMachine(t, false, true)
	m.configure("")
	m.startAgent()
	m.agent.UntilReady()
	fault := filepath.Join(m.dir, "fault")
	for _, c := range []struct{ fault, code string }{
		{"firmware 0x27", "firmware_error"},
		{"wiped", "vmpck_disabled"},
		{"echo", "report_data_mismatch"},
		{"flip", "signature_invalid"},
		{"table", "certificate_malformed"},
	} {
		lab.Write(t, fault, c.fault)
		m.fails(t, 1, c.code, "sevagent", "evidence")
	}
	lab.Write(t, fault, "version6")
	if out := m.must("sevagent", "evidence"); !strings.Contains(out, "unsupported_report_version") {
		t.Errorf("a newer report is served without its verdict: %s", out)
	}
	lab.Write(t, fault, "")
	m.must("sevagent", "evidence")
}

// expect checks what a container would load, by openssl.
func (m *machine) expect(t *testing.T, name string) {
	t.Helper()
	const certificate, key = lab.Published + "/client.crt", lab.Published + "/client.key"
	openssl := func(args ...string) string {
		t.Helper()
		return lab.MustRun(t, exec.Command("openssl", args...))
	}
	if subject := openssl("x509", "-in", certificate, "-noout", "-subject"); !strings.Contains(subject, name) {
		t.Errorf("published is %q, want %s", subject, name)
	}
	openssl("verify", "-CAfile", lab.Published+"/ca.crt", certificate)
	if openssl("pkey", "-in", key, "-pubout") != openssl("x509", "-in", certificate, "-noout", "-pubkey") {
		t.Error("key and certificate do not belong together")
	}

	var doc evidence.Document
	must.Do(t, json.Unmarshal([]byte(lab.Read(t, lab.Published+"/evidence.json")), &doc), "decode evidence.json")
	sum := sha256.Sum256([]byte(openssl("pkey", "-in", key, "-pubout", "-outform", "DER")))
	if got := hex.EncodeToString(sum[:]); got != doc.Binding.SPKISHA256.String() {
		t.Errorf("evidence.json binds key %v, published is %s", doc.Binding.SPKISHA256, got)
	}
}

// verifyEvidence is the relying party, and prints what a container waits.
func (m *machine) verifyEvidence(t *testing.T) {
	const nonce = "000102030405060708090a0b0c0d0e0f"
	file := filepath.Join(t.TempDir(), "evidence.json")
	m.must("sevagent", "evidence", "--nonce", nonce, "--bind", "client", "-o", file)
	verify := []string{"evidence", "verify", file, "--policy", filepath.Join(m.dir, "policy.yaml"), "--region",
		"us-east-2", "--nonce"}
	m.must("sevctl", append(verify, nonce, "--allow-custom-roots")...)
	m.fails(t, 1, "", "sevctl", append(verify, strings.Repeat("ff", 16), "--allow-custom-roots")...)
	m.fails(t, 2, "", "sevctl", append(verify, nonce)...)

	var took []time.Duration
	for range 20 {
		began := time.Now()
		m.must("sevagent", "evidence")
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("sevagent evidence, 20 calls: median %v, slowest %v", took[10], took[19])
}

// TestDemoWithoutRoot runs the demonstration as a user that owns nothing.
func TestDemoWithoutRoot(t *testing.T) {
	const nobody = 65534
	// The repository may be closed to other users
	dir := must.Get(os.MkdirTemp("/dev/shm", "demo"))(t, "make a directory")
	defer os.RemoveAll(dir)
	must.Do(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod("/dev/shm", 0o1777)), "open the directory")
	lab.MustRun(t, exec.Command("cp", "-r", lab.Bin("."), dir))
	cmd := exec.Command(filepath.Join(dir, "bin/sevsim"), "demo")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	out := lab.MustRun(t, cmd)
	if !strings.Contains(out, "Every step passed.") || !strings.Contains(out, "caller       host uid 65534") {
		t.Errorf("the demonstration as nobody does not end well:\n%s", out)
	}
}
