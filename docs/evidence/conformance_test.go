package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/trust"

	"sevagent/internal/must"
)

var update = flag.Bool("update", false, "make vectors.json and vectors/ anew, with new keys")

// asVerifier has the test program be the verifier, so that the runner can start it.
const asVerifier = "CONFORMANCE_VERIFIER"

func TestMain(m *testing.M) {
	if os.Getenv(asVerifier) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	flag.Parse()
	os.Exit(m.Run())
}

// TestVectors: the kit has what README.md promises.
func TestVectors(t *testing.T) {
	if *update {
		generate(t)
	}
	k := loadKit(t)
	k.documents(t)
	readme := string(must.Get(os.ReadFile("README.md"))(t, "read README.md"))
	hostile, names, classes := 0, make(map[string]bool), make(map[string]bool)
	for _, v := range k.Vectors {
		if v.Refused != nil {
			hostile++
		}
		if names[v.Class+v.Name] {
			t.Errorf("two vectors have the class %s and the name %q", v.Class, v.Name)
		}
		names[v.Class+v.Name], classes[v.Class] = true, true
		for _, code := range v.Refused {
			if !strings.Contains(readme, "| `"+code+"` |") {
				t.Errorf("%s: README.md does not list the code %q", v.Name, code)
			}
		}
	}
	if len(k.Vectors) < 400 || hostile < 250 || len(k.Vectors)-hostile < 100 {
		t.Errorf("%d vectors, %d of them hostile, want 400 with 250 hostile and 100 genuine", len(k.Vectors), hostile)
	}
	for i := 1; i <= 35; i++ {
		if class := fmt.Sprintf("E%d", i); !classes[class] {
			t.Errorf("no vector of the class %s", class)
		}
	}
	others := "nitrotpm profile nonce claims batch structure json flip report signature certificate " +
		"chain expired tcb chip region"
	for _, class := range strings.Fields(others) {
		if !classes[class] {
			t.Errorf("no vector of the class %s", class)
		}
	}
	for _, file := range append(must.Get(filepath.Glob("vectors/*"))(t, "list the documents"),
		"vectors.json", "certificates.json", "nitrotpm.json") {
		if info := must.Get(os.Stat(file))(t, "look at %s", file); info.Size() > 512<<10 {
			t.Errorf("%s has %d bytes, more than 512 KiB", file, info.Size())
		}
	}
}

func TestGo(t *testing.T) {
	k := loadKit(t)
	file := filepath.Join(t.TempDir(), "evidence.json")
	for i, document := range k.documents(t) {
		must.Do(t, os.WriteFile(file, []byte(document), 0o644), "write a document")
		var stdout, stderr bytes.Buffer
		status := run(append(k.args(k.Vectors[i]), file), &stdout, &stderr)
		if wrong := k.Vectors[i].wrong(strings.TrimSuffix(stdout.String(), "\n"), status); wrong != "" {
			t.Errorf("%s; %s", wrong, stderr.String())
		}
	}
}

// The loops start a verifier once for many documents, which is much faster than a process for each. They read its
// arguments, a JSON array on a line, and print its exit status behind what it prints.
const (
	pythonLoop = `
import contextlib, io, json, runpy, sys
for line in sys.stdin:
    sys.argv, status, out = ["verify.py", *json.loads(line)], 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path("verify.py", run_name="__main__")
    except SystemExit as e: status = e.code
    print(out.getvalue().strip(), status, flush=True)
`
	nodeLoop = `
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const { log } = console;
console.error = () => {};
let n = 0;
for (const line of readFileSync(0, "utf8").trimEnd().split("\n")) {
  const out = [];
  console.log = (...words) => out.push(words.join(" "));
  process.argv = ["node", "verify.mjs", ...JSON.parse(line)];
  process.exitCode = 0;
  await import(pathToFileURL("verify.mjs").href + "?" + n++);
  log(out.join("\n"), process.exitCode);
}
process.exitCode = 0;
`
)

func TestPython(t *testing.T) {
	needs(t, "python3", "openssl")
	inOneProcess(t, "python3", "-c", pythonLoop)
}

func TestNode(t *testing.T) {
	needs(t, "node")
	loop := filepath.Join(t.TempDir(), "loop.mjs")
	must.Do(t, os.WriteFile(loop, []byte(nodeLoop), 0o644), "write a loop")
	inOneProcess(t, "node", loop)
}

func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", strings.Join(programs, " and "), err)
		}
	}
	if programs[0] != "node" {
		return
	}
	version := must.Get(exec.Command("node", "--version").Output())(t, "ask for the version of Node")
	var major int
	if fmt.Sscanf(string(version), "v%d", &major); major < 20 {
		t.Skipf("needs Node 20, and this is %s", version)
	}
}

// inOneProcess has a loop verify all vectors.
func inOneProcess(t *testing.T, name string, args ...string) {
	t.Helper()
	k := loadKit(t)
	dir := t.TempDir()
	var input bytes.Buffer
	for i, document := range k.documents(t) {
		file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		must.Do(t, os.WriteFile(file, []byte(document), 0o644), "write a document")
		must.Do(t, json.NewEncoder(&input).Encode(append(k.args(k.Vectors[i]), file)), "encode the arguments")
	}
	cmd := command(t, name, args...)
	cmd.Stdin = &input
	out := must.Get(cmd.CombinedOutput())(t, "run %s over the vectors", name)
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(k.Vectors) {
		t.Fatalf("%d answers for %d vectors; the last: %q", len(lines), len(k.Vectors), lines[len(lines)-1])
	}
	for i, line := range lines {
		var status int
		at := strings.LastIndexByte(line, ' ')
		fmt.Sscan(line[at+1:], &status)
		if wrong := k.Vectors[i].wrong(line[:max(at, 0)], status); wrong != "" {
			t.Error(wrong)
		}
	}
}

func command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	// else go test answers from its cache for a changed one
	for _, script := range []string{"run.py", "verify.py", "verify.mjs"} {
		must.Get(os.Stat(script))(t, "look at %s", script)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, name, args...)
}

// TestRunner: run.py makes the documents that this test makes, and reports a verifier that does not keep the contract.
// It starts a process for each document, so it gets a few of them here.
func TestRunner(t *testing.T) {
	needs(t, "python3", "openssl")
	k := loadKit(t)
	dir := filepath.Join(t.TempDir(), "documents")
	if out, err := command(t, "python3", "run.py", "--write", dir).CombinedOutput(); err != nil {
		t.Fatalf("run.py --write: %v\n%s", err, out)
	}
	for i, want := range k.documents(t) {
		got := must.Get(os.ReadFile(filepath.Join(dir, fmt.Sprintf("%04d.json", i))))(t, "read a document")
		if string(got) != want {
			t.Errorf("%s: run.py and this test make different documents", k.Vectors[i].Name)
		}
	}

	runner := func(only string, verifier ...string) (output string, err error) {
		out, err := command(t, "python3",
			append([]string{"run.py", "--only", only, "--"}, verifier...)...).CombinedOutput()
		return string(out), err
	}
	t.Setenv(asVerifier, "1")
	self := must.Get(os.Executable())(t, "find this program")
	for _, verifier := range [][]string{{"python3", "verify.py"}, {"node", "verify.mjs"}, {self}} {
		t.Run(filepath.Base(verifier[0]), func(t *testing.T) {
			needs(t, verifier[0])
			for only, want := range map[string]string{
				"boot: as it is": "1 vectors, 0 hostile: 0 wrong answers\n",
				"profile, ":      "8 vectors, 8 hostile: 0 wrong answers\n",
			} {
				if out, err := runner(only, verifier...); err != nil || out != want {
					t.Errorf("%q, %v, want %q", out, err, want)
				}
			}
		})
	}
	for name, wrong := range map[string]string{
		"accepts all": "print('accepted')", "says nothing": "exit(10)", "knows no code": "print('refused'); exit(10)",
		"chats": "print('refused profile\\nreally'); exit(10)", "fails": "print('refused profile'); exit(1)",
	} {
		out, err := runner("profile, ", "python3", "-c", wrong)
		if err == nil || !strings.Contains(out, "8 hostile: 8 wrong answers") {
			t.Errorf("a verifier that %s: %v\n%s", name, err, out)
		}
	}
}

// TestRootsGivenAlone: without the ARK in the roots there is no chain, even if the system trusts it.
func TestRootsGivenAlone(t *testing.T) {
	needs(t, "python3", "openssl")
	k := loadKit(t)
	roots := must.Get(os.ReadFile(filepath.Join("vectors", k.Roots)))(t, "read the roots")
	dir := t.TempDir()
	intermediates := filepath.Join(dir, "intermediates.pem")
	var above, below []byte
	for i, block := range regexp.MustCompile(`(?s)-----BEGIN.*?-----END CERTIFICATE-----\n`).FindAll(roots, -1) {
		if i%3 == 0 { // ARK, ASK, ASVK for each product
			must.Do(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("ark-%d.pem", i)), block, 0o644), "write an ARK")
			above = append(above, block...)
		} else {
			below = append(below, block...)
		}
	}
	must.Do(t, os.WriteFile(intermediates, below, 0o644), "write the intermediates")
	all := filepath.Join(t.TempDir(), "all.pem")
	must.Do(t, os.WriteFile(all, above, 0o644), "write the ARKs")
	if out, err := exec.Command("openssl", "rehash", dir).CombinedOutput(); err != nil {
		t.Fatalf("openssl rehash: %v\n%s", err, out)
	}
	t.Setenv("SSL_CERT_DIR", dir)
	t.Setenv("SSL_CERT_FILE", all)
	t.Setenv("NODE_EXTRA_CA_CERTS", all)
	i := slices.IndexFunc(k.Vectors, func(v vector) bool { return v.Name == "client: as it is" })
	for _, verifier := range [][]string{{"python3", "verify.py"}, {"node", "verify.mjs"}} {
		t.Run(verifier[0], func(t *testing.T) {
			needs(t, verifier[0])
			args := append(verifier[1:], k.args(k.Vectors[i])...)
			args = append(args, "--roots", intermediates, filepath.Join("vectors", k.Vectors[i].Document+".json"))
			out, err := command(t, verifier[0], args...).Output()
			if err == nil || string(out) != "refused chain\n" {
				t.Errorf("%q, %v, want a refusal", out, err)
			}
		})
	}
}

// TestFingerprints: README.md has those of AMD's certificates that go-sev-guest embeds, and of no others.
func TestFingerprints(t *testing.T) {
	var want []string
	for _, bundle := range [][]byte{
		trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes, trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes,
		trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes,
	} {
		bundle = bytes.ReplaceAll(bundle, []byte("\r"), nil)
		for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
			cert := must.Get(x509.ParseCertificate(block.Bytes))(t, "parse one of AMD's certificates")
			row := fmt.Sprintf("| %s | `%x` |", cert.Subject.CommonName, sha256.Sum256(cert.Raw))
			if !slices.Contains(want, row) {
				want = append(want, row)
			}
		}
	}
	readme := string(must.Get(os.ReadFile("README.md"))(t, "read README.md"))
	got := regexp.MustCompile("(?m)^\\| .* \\| `[0-9a-f]{64}` \\|$").FindAllString(readme, -1)
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("README.md has the fingerprints\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
