package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/internal/cli/clitest"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simca"
	"sevagent/internal/sim/simscript"
	"sevagent/internal/snp"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sevctl": main})
}

func TestHelpFits(t *testing.T) { clitest.HelpFits(t, run) }

// realReports are reports that are not ours to distribute; scripts that need them are under the condition [real].
const realReports = "../../../shared/testdata/aws-snp"

// nonce is that of evidence.json.
var nonce = bytes.Repeat([]byte{7}, 32)

// TestScripts runs the binary as a binary, on a simulated node's evidence: evidence.json (nonce 07 times 32, bound to
// the key of peer.pem), unbound.json, report.bin and vlek.pem, with roots.pem and policy.yaml. carrier.pem carries
// evidence of its key, and stranger.pem carries the same with another key.
func TestScripts(t *testing.T) {
	real := must.Get(filepath.Abs(realReports))(t, "find the real reports")
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("REAL", real)
			env.Setenv("NITRO", filepath.Join(real, "../nitrotpm"))
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

// claimsOf is what the node's root asks for with a nonce.
func claimsOf(nonce []byte) evidence.Claims {
	return evidence.Claims{Purpose: evidence.PurposeClient, Nonce: nonce, Caller: evidence.HostCaller(0)}
}

func writeEvidence(dir string) error {
	now := time.Now()
	psp, err := sim.New(sim.DefaultOptions(now))
	if err != nil {
		return err
	}
	ca, err := simca.New("Test CA", now)
	if err != nil {
		return err
	}
	peer, err := ca.Issue("peer", now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(peer.Cert))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	claims := evidence.Claims{
		Purpose: evidence.PurposeClient, Nonce: nonce, Caller: evidence.HostCaller(1000),
		Binding:  evidence.Binding{Kind: evidence.BindClient, SPKISHA256: key[:]},
		Instance: evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "123456789012"},
	}
	text, _, cert, err := makeEvidence(psp, claims, now)
	if err != nil {
		return err
	}
	claims = evidence.Claims{Purpose: evidence.PurposeMTLS, Nonce: nonce, Caller: evidence.HostCaller(0)}
	unbound, report, _, err := makeEvidence(psp, claims, now.Add(-48*time.Hour))
	if err != nil {
		return err
	}
	carrier, stranger, err := carriers(psp, ca, now)
	if err != nil {
		return err
	}
	endorsement, err := x509.ParseCertificate(cert)
	if err != nil {
		return err
	}
	inForce := x509.RevocationList{ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	list, err := psp.RevocationList(inForce)
	if err != nil {
		return err
	}
	inForce.RevokedCertificateEntries = []x509.RevocationListEntry{
		{SerialNumber: endorsement.SerialNumber, RevocationTime: now},
	}
	revoking, err := psp.RevocationList(inForce)
	if err != nil {
		return err
	}
	vlek := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	stolen := bytes.Replace(text, []byte(`"uid":1000`), []byte(`"uid":0`), 1)
	foreign := `{"platform": "az-snp", "evidence": {"hcl_report": "` + base64.StdEncoding.EncodeToString(report) + `"}}`
	for name, content := range map[string][]byte{
		"evidence.json":            text,
		"unbound.json":             unbound,
		"stolen.json":              stolen,
		"foreign.json":             []byte(foreign),
		"good/a.json":              text,
		"good/b.json":              unbound,
		"good/readme.txt":          []byte("not evidence"),
		"bad/a.json":               text,
		"bad/b\x1b[2J.json":        stolen,
		"bad/c.json":               []byte(foreign),
		"bad/d.json/inner":         nil,
		"none/readme.txt":          nil,
		"report.bin":               report,
		"report.hex":               []byte(hex.EncodeToString(report)),
		"vlek.pem":                 vlek,
		"vlek.der":                 cert,
		"certs/vlek.pem":           vlek,
		"certs/ark.pem":            psp.Roots(),
		"peer.pem":                 []byte(peer.Key + peer.Cert),
		"peer.der":                 leaf.Raw,
		"carrier.pem":              []byte(carrier.Key + carrier.Cert),
		"stranger.pem":             []byte(stranger.Cert),
		"evidence-and-certificate": append(bytes.Clone(text), "\n"+carrier.Cert...),
		"ca.pem":                   []byte(ca.PEM()),
		"roots.pem":                psp.Roots(),
		"list.crl":                 list,
		"revoking.crl":             revoking,
		"policy.yaml":              []byte("profile: aws-shared\nroots: roots.pem\n"),
		"dedicated.yaml":           []byte("profile: aws-dedicated\nroots: roots.pem\n"),
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// carriers returns the certificate of a key that carries the key's evidence, and one of another key that carries the
// same.
func carriers(guest *sim.PSP, ca *simca.CA, now time.Time) (own, stranger simca.Leaf, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return own, stranger, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return own, stranger, err
	}
	sum := sha256.Sum256(spki)
	text, _, _, err := makeEvidence(guest, evidence.Claims{
		Purpose: evidence.PurposeMTLS, Nonce: nonce, Caller: evidence.HostCaller(0),
		Binding: evidence.Binding{Kind: evidence.BindClient, SPKISHA256: sum[:]},
	}, now)
	if err != nil {
		return own, stranger, err
	}
	doc, err := evidence.Parse(text)
	if err != nil {
		return own, stranger, err
	}
	extension, err := doc.Extension()
	if err != nil {
		return own, stranger, err
	}
	template := simca.Template{Name: "carrier", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		Key: key, Extensions: []pkix.Extension{extension}}
	if own, err = ca.IssueFrom(template); err != nil {
		return own, stranger, err
	}
	template.Key = nil
	stranger, err = ca.IssueFrom(template)
	return own, stranger, err
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
