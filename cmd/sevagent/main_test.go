package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/internal/attest"
	"sevagent/internal/cli/clitest"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simca"
	"sevagent/internal/sim/simdevice"
	"sevagent/internal/sim/simscript"
	"sevagent/test/lab/search"
)

// simDirVariable names the directory of the simulated device's root to a sevagent under test.
const simDirVariable = "SEVAGENT_TEST_SIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(simDirVariable); dir != "" {
		testOnlyOpenDevice = func() (attest.Transport, error) {
			psp, err := sim.Load(dir, sim.DefaultOptions(time.Now()))
			if err != nil {
				return nil, err
			}
			psp.FaultFile = filepath.Join(dir, "fault")
			return simdevice.Transport{PSP: psp}, nil
		}
	}
	testscript.Main(m, map[string]func(){"sevagent": main})
}

func TestHelpFits(t *testing.T) { clitest.HelpFits(t, run) }

// TestScripts runs the binary as a binary. Each script has a simulated node of its own: $WORK/sim with the device's
// root and policy, AWS on loopback, and a configuration in $WORK/etc that scripts extend.
func TestScripts(t *testing.T) {
	var notified *net.UnixConn // of the one script that listens
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			simDir := filepath.Join(env.WorkDir, "sim")
			psp, err := sim.New(sim.DefaultOptions(time.Now()))
			if err != nil {
				return err
			}
			for _, dir := range []string{"mtls", "sim", "etc/conf.d"} {
				if err := os.MkdirAll(filepath.Join(env.WorkDir, dir), 0o755); err != nil {
					return err
				}
			}
			if err := psp.Save(simDir); err != nil {
				return err
			}
			instance := simaws.DefaultInstance()
			secrets := &simaws.Secrets{Region: instance.Region, AccountID: instance.AccountID}
			serve := func(h http.Handler) string {
				s := httptest.NewServer(h)
				env.Defer(s.Close)
				return s.URL
			}
			port, err := simaws.NewPort("127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Defer(port.Close)
			metadata := &simaws.IMDS{Instance: instance}
			env.Values["port"], env.Values["metadata"] = port, metadata
			if err := port.Open(metadata); err != nil {
				return err
			}
			env.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", port.URL())
			env.Setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", serve(secrets))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv(simDirVariable, simDir)
			ca, err := simca.New("Script CA", time.Now())
			if err != nil {
				return err
			}
			env.Values["secrets"], env.Values["ca"] = secrets, ca
			// Sockets have short paths, and Go's work directories long ones.
			short, err := os.MkdirTemp("", "sa")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(short) })
			env.Defer(func() { sim.ClearImmutable(env.WorkDir) }) // of agents that were killed
			env.Setenv("SOCKET", filepath.Join(short, "s"))
			config := strings.NewReplacer("WORK", env.WorkDir, "SOCKET", filepath.Join(short, "s")).Replace(`
attestation: {policy: WORK/sim/policy.yaml, rate: 50}
mtls: {path: WORK/mtls, allow_disk: true, owner: "UID"}
listen: {socket: SOCKET, tcp: ""}
`)
			config = strings.ReplaceAll(config, "UID", ownerText())
			return os.WriteFile(filepath.Join(env.WorkDir, "etc/config.yaml"), []byte(config), 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": simscript.Exits,
			// put-secret NAME CERTIFICATE-NAME makes a valid current version.
			"put-secret": func(ts *testscript.TestScript, neg bool, args []string) {
				text, err := ts.Value("ca").(*simca.CA).ClientSecret(args[1], time.Now())
				ts.Check(err)
				ts.Value("secrets").(*simaws.Secrets).Put(args[0], text)
				ts.Check(os.WriteFile(ts.MkAbs("secret.json"), []byte(text), 0o600))
			},
			// no-keys DIRECTORY FROM … fails if a private key in a file or directory FROM is in DIRECTORY, in any form.
			"no-keys": noKeys,
			// put-raw NAME FILE makes FILE's content the current version.
			"put-raw": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("secrets").(*simaws.Secrets).Put(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
			},
			// secrets-fault CODE makes Secrets Manager fail; without a code it works again.
			"secrets-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("secrets").(*simaws.Secrets).SetFault(strings.Join(args, ""))
			},
			// metadata open has the metadata service listen, metadata shut refuse connections.
			"metadata": func(ts *testscript.TestScript, neg bool, args []string) {
				port := ts.Value("port").(*simaws.Port)
				if args[0] == "shut" {
					port.Shut()
					return
				}
				ts.Check(port.Open(ts.Value("metadata").(*simaws.IMDS)))
			},
			// metadata-fault STATUS [PATH] makes the metadata service fail, or what is below a path of it.
			"metadata-fault": func(ts *testscript.TestScript, neg bool, args []string) {
				status, err := strconv.Atoi(args[0])
				ts.Check(err)
				ts.Value("metadata").(*simaws.IMDS).FailFor(time.Hour, status, strings.Join(args[1:], ""))
			},
			// hup sends SIGHUP, which testscript's own kill lacks, to every program in the background.
			"hup": func(ts *testscript.TestScript, neg bool, args []string) {
				for _, cmd := range ts.BackgroundCmds() {
					ts.Check(cmd.Process.Signal(syscall.SIGHUP))
				}
			},
			// until-exits STATUS PROGRAM … runs a program until it succeeds (STATUS 0) or fails (any other).
			"until-exits": func(ts *testscript.TestScript, neg bool, args []string) {
				until(ts, args[1]+" ends with exit status "+args[0], func() bool {
					failed := ts.Exec(args[1], args[2:]...) != nil
					return failed == (args[0] != "0")
				})
			},
			// until-stdout PATTERN PROGRAM … runs a program until it prints what matches.
			"until-stdout": func(ts *testscript.TestScript, neg bool, args []string) {
				want := regexp.MustCompile(args[0])
				until(ts, fmt.Sprintf("%s prints %q", args[1], args[0]), func() bool {
					return ts.Exec(args[1], args[2:]...) == nil && want.MatchString(ts.ReadFile("stdout"))
				})
			},
			// notify-socket listens in systemd's place, and sets the watchdog's variables as systemd does.
			"notify-socket": func(ts *testscript.TestScript, neg bool, args []string) {
				name := filepath.Join(filepath.Dir(ts.Getenv("SOCKET")), "notify")
				conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
				ts.Check(err)
				ts.Defer(func() { conn.Close() })
				ts.Setenv("NOTIFY_SOCKET", name)
				ts.Setenv("WATCHDOG_USEC", "300000")
				notified = conn
			},
			// notified TEXT waits until systemd has received TEXT.
			"notified": func(ts *testscript.TestScript, neg bool, args []string) {
				notified.SetReadDeadline(time.Now().Add(2 * time.Minute))
				for b := make([]byte, 4096); ; {
					n, err := notified.Read(b)
					if err != nil {
						ts.Fatalf("wait until systemd receives %q: %v", args[0], err)
					}
					if strings.Contains(string(b[:n]), args[0]) {
						return
					}
				}
			},
			// wait-ready waits until the agent reports that it is ready; with !, that it is not.
			"wait-ready": func(ts *testscript.TestScript, neg bool, args []string) {
				want := http.StatusOK
				if neg {
					want = http.StatusServiceUnavailable
				}
				dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", ts.Getenv("SOCKET"))
				}
				client := &http.Client{Transport: &http.Transport{DialContext: dial}}
				until(ts, fmt.Sprintf("readyz has status %d", want), func() bool {
					resp, err := client.Get("http://sevagent/readyz")
					if err != nil {
						return false
					}
					resp.Body.Close()
					return resp.StatusCode == want
				})
			},
		},
	})
}

func noKeys(ts *testscript.TestScript, neg bool, args []string) {
	keys, known := search.New(), 0
	armored := regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?KEY-----`)
	read := func(root string, each func(path string, content []byte)) {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			each(path, content)
			return err
		}))
	}
	for _, from := range args[1:] {
		read(from, func(path string, content []byte) {
			text := strings.ReplaceAll(string(content), `\n`, "\n") // JSON has PEM with escapes
			for _, m := range armored.FindAllString(text, -1) {
				block, _ := pem.Decode([]byte(m))
				if block == nil {
					ts.Fatalf("%s has a damaged key", path)
				}
				secret := block.Bytes
				if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
					switch key := key.(type) {
					case *ecdsa.PrivateKey:
						secret, err = key.Bytes()
						ts.Check(err)
					case *rsa.PrivateKey:
						secret = key.Primes[0].Bytes()
					}
				}
				known++
				keys.Add(fmt.Sprintf("key %d of %s", known, path), secret)
				if len(keys.Search(content)) == 0 {
					ts.Fatalf("the search does not find the key in %s itself", path)
				}
			}
		})
	}
	if known < 3 {
		ts.Fatalf("found only %d keys in %q", known, args[1:])
	}
	read(args[0], func(path string, content []byte) {
		for name := range keys.Search(content) {
			ts.Fatalf("%s has %s", path, name)
		}
	})
}

// until waits until done returns true. It ends a test that would hang.
func until(ts *testscript.TestScript, text string, done func() bool) {
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("wait until %s: it has not within two minutes", text)
		}
	}
}

// ownerText returns the user who runs the tests, in the form of mtls.owner.
func ownerText() string { return fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()) }
