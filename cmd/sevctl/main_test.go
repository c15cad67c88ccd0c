package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simscript"
	"sevagent/internal/snp"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sevctl": main})
}

// realReports are reports that are not ours to distribute; scripts that need them are under the condition [real].
const realReports = "../../../shared/testdata/aws-snp"

// TestScripts runs the binary as a binary, on a simulated node's evidence: evidence.json (nonce 07 times 32, bound to
// no key), report.bin and vlek.pem, with roots.pem and policy.yaml.
func TestScripts(t *testing.T) {
	real := must.Get(filepath.Abs(realReports))(t, "find the real reports")
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("REAL", real)
			env.Setenv("CASES", filepath.Join(real, "../../cases/attestation"))
			return writeEvidence(env.WorkDir)
		},
		Condition: func(name string) (bool, error) {
			_, err := os.Stat(real)
			return name == "real" && err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": simscript.Exits},
	})
}

func writeEvidence(dir string) error {
	now := time.Now()
	psp, err := sim.New(sim.DefaultOptions(now))
	if err != nil {
		return err
	}
	claims := evidence.Claims{
		Purpose: evidence.PurposeClient, Nonce: bytes.Repeat([]byte{7}, 32), Caller: evidence.HostCaller(1000),
	}
	text, report, cert, err := makeEvidence(psp, claims, now)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"evidence.json": text,
		"stolen.json":   bytes.Replace(text, []byte(`"uid":1000`), []byte(`"uid":0`), 1),
		"report.bin":    report,
		"vlek.pem":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"vlek.der":      cert,
		"roots.pem":     psp.Roots(),
		"policy.yaml":   []byte("profile: aws-shared\nroots: roots.pem\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeEvidence returns a document of a guest, with the report in it and the certificate for that.
func makeEvidence(guest *sim.PSP, claims evidence.Claims, now time.Time) (document, report, cert []byte, err error) {
	report, raw, err := guest.Report(claims.Leaf(), 0)
	if err != nil {
		return nil, nil, nil, err
	}
	table, err := snp.ParseCertTable(raw)
	if err != nil {
		return nil, nil, nil, err
	}
	cert = table[0].Data
	doc, err := evidence.Build(claims, 0, nil, report, [][]byte{cert}, nil, now)
	if err != nil {
		return nil, nil, nil, err
	}
	document, err = json.Marshal(doc)
	return document, report, cert, err
}
