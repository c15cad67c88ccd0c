package evidence_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

const script = "../../docs/evidence/verify.py"

// python runs docs/evidence/verify.py, which shares no code with this module: it says whether docs/evidence.md is enough
// to verify evidence by.
func python(t testing.TB, args ...string) (output string, accepted bool) {
	t.Helper()
	if _, err := os.Stat(script); err != nil { // here, so that go test does not answer from its cache for a changed script
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "python3", append([]string{script}, args...)...).CombinedOutput()
	output = strings.TrimSpace(string(out))
	if strings.Contains(output, "\n") {
		t.Errorf("more than one line of output:\n%s", output)
	}
	if err != nil && !strings.HasPrefix(output, "refused: ") {
		t.Fatalf("verify.py: %v\n%s", err, output)
	}
	return output, err == nil
}

func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", strings.Join(programs, " and "), err)
		}
	}
}

func TestVectorsInPython(t *testing.T) {
	needs(t, "python3")
	if out, ok := python(t, "--vectors", vectorsFile); !ok {
		t.Error(out)
	}
	text := must.Get(os.ReadFile(vectorsFile))(t, "read a file")
	file := filepath.Join(t.TempDir(), "vectors.json")
	changed := bytes.Replace(text, []byte(`"uid": 1000`), []byte(`"uid": 1001`), 1)
	must.Do(t, os.WriteFile(file, changed, 0o644), "write the changed vectors")
	if out, ok := python(t, "--vectors", file); ok {
		t.Error("vectors with another uid:", out)
	}
}

// node is a simulated node whose evidence the script judges.
type node struct {
	t     testing.TB
	dir   string // the simulator's root, with its keys
	roots string
	psp   *sim.PSP
}

func newNode(t testing.TB, o sim.Options) *node {
	t.Helper()
	psp := must.Get(sim.New(o))(t, "make a simulator")
	n := &node{t: t, dir: t.TempDir(), psp: psp}
	must.Do(t, psp.Save(n.dir), "save the simulator's roots")
	n.roots = filepath.Join(n.dir, "roots.pem")
	return n
}

// report returns a report with its certificate, DER.
func (n *node) report(root [evidence.Size]byte) (report, cert []byte) {
	n.t.Helper()
	report, raw, err := n.psp.Report(root, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	table, err := snp.ParseCertTable(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	return report, table[0].Data
}

// evidence makes one document for each of the claims, which share a report.
func (n *node) evidence(claims ...evidence.Claims) (docs []*evidence.Document) {
	n.t.Helper()
	var leaves [][evidence.Size]byte
	for _, c := range claims {
		leaves = append(leaves, c.Leaf())
	}
	tree := evidence.NewTree(leaves)
	report, cert := n.report(tree.Root())
	for i, c := range claims {
		d, err := evidence.Build(c, i, tree.Path(i), report, [][]byte{cert}, nil, time.Now())
		if err != nil {
			n.t.Fatal(err)
		}
		docs = append(docs, d)
	}
	return docs
}

// judge has the script verify a document.
func (n *node) judge(d any, nonce []byte, roots string) (output string, accepted bool) {
	n.t.Helper()
	return n.judgeText(must.Get(json.Marshal(d))(n.t, "encode the document"), nonce, roots)
}

// judgeText has the script verify the text of a document.
func (n *node) judgeText(text, nonce []byte, roots string) (output string, accepted bool) {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "evidence.json")
	must.Do(n.t, os.WriteFile(file, text, 0o644), "write the document")
	return python(n.t, file, roots, "--nonce", hex.EncodeToString(nonce))
}

// requests are five that wait together: the batch has padding subtrees, and a leaf at every kind of place.
func requests() (claims []evidence.Claims) {
	for i := range byte(5) {
		claims = append(claims, evidence.Claims{Purpose: evidence.PurposeClient, Nonce: bytes.Repeat([]byte{i + 1}, 16+12*int(i)), Caller: evidence.HostCaller(uint32(i))})
	}
	claims[1].Purpose = evidence.PurposeMTLS
	claims[1].Binding = evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{0xab}, 32)}
	claims[3].Caller = evidence.ContainerCaller(4294967294, strings.Repeat("c0", 32), task)
	claims[3].Instance = evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"}
	claims[4].Caller = evidence.Caller{Kind: evidence.CallerUnknown}
	return claims
}

func TestOpenSSLAccepts(t *testing.T) {
	needs(t, "python3", "openssl")
	for _, signer := range []snp.SigningKey{snp.SignedByVLEK, snp.SignedByVCEK} {
		t.Run(signer.String(), func(t *testing.T) {
			o := sim.DefaultOptions(time.Now())
			o.Signer = signer
			o.TCB = snp.TCB{Bootloader: 127, TEE: 128, SNP: 0, Microcode: 255} // integers of one and of two bytes in DER
			n := newNode(t, o)
			docs := append(n.evidence(requests()...), n.evidence(requests()[0])...)
			for i, d := range docs {
				if out, ok := n.judge(d, d.Nonce, n.roots); !ok {
					t.Errorf("document %d: %s", i, out)
				}
			}
		})
	}
}

func TestOpenSSLRefuses(t *testing.T) {
	needs(t, "python3", "openssl")
	n := newNode(t, sim.DefaultOptions(time.Now()))
	foreign := newNode(t, sim.DefaultOptions(time.Now()))
	for _, c := range []struct {
		name   string
		change func(d *evidence.Document)
		nonce  []byte // nil: the document's
		roots  string // empty: the node's
		want   string
	}{
		{"a bit of MEASUREMENT", func(d *evidence.Document) { d.Report[0x90] ^= 1 }, nil, "", "signature: "},
		{"a bit of R", func(d *evidence.Document) { d.Report[0x2A0] ^= 1 }, nil, "", "signature: "},
		{"a bit of S", func(d *evidence.Document) { d.Report[0x2E8+40] ^= 0x80 }, nil, "", "signature: "},
		{"no signature", func(d *evidence.Document) { clear(d.Report[0x2A0:]) }, nil, "", "signature: "},
		{"a signature of ones", func(d *evidence.Document) { copy(d.Report[0x2A0:], bytes.Repeat([]byte{0xff}, 144)) }, nil, "", "signature: "},
		{"a bit of REPORT_DATA", func(d *evidence.Document) { d.Report[0x50] ^= 1 }, nil, "", "REPORT_DATA"},
		{"a short report", func(d *evidence.Document) { d.Report = d.Report[:0x2A0+96] }, nil, "", "1184 bytes"},
		{"other nonce asked", func(*evidence.Document) {}, make([]byte, 32), "", "eat_nonce"},
		{"other nonce in both", func(d *evidence.Document) { d.Nonce = make([]byte, 32) }, make([]byte, 32), "", "REPORT_DATA"},
		{"other purpose", func(d *evidence.Document) { d.Purpose = evidence.PurposeBoot }, nil, "", "REPORT_DATA"},
		{"other caller", func(d *evidence.Document) { *d.Caller.UID = 0 }, nil, "", "REPORT_DATA"},
		{"other container", func(d *evidence.Document) { d.Caller.ContainerID = strings.Repeat("c1", 32) }, nil, "", "REPORT_DATA"},
		{"task removed", func(d *evidence.Document) { d.Caller.TaskARN = "" }, nil, "", "REPORT_DATA"},
		{"container taken for the host", func(d *evidence.Document) { d.Caller = evidence.HostCaller(*d.Caller.UID) }, nil, "", "REPORT_DATA"},
		{"other instance", func(d *evidence.Document) { d.Instance.ID = "i-00000000000000000" }, nil, "", "REPORT_DATA"},
		{"no instance", func(d *evidence.Document) { d.Instance = evidence.Instance{} }, nil, "", "REPORT_DATA"},
		{"other key", func(d *evidence.Document) {
			d.Binding = evidence.Binding{Kind: evidence.BindServer, SPKISHA256: make([]byte, 32)}
		}, nil, "", "REPORT_DATA"},
		{"a key without a kind", func(d *evidence.Document) { d.Binding.SPKISHA256 = make([]byte, 32) }, nil, "", "kind of binding"},
		{"other path", func(d *evidence.Document) { d.Batch.Path[1][0] ^= 1 }, nil, "", "REPORT_DATA"},
		{"path the other way up", func(d *evidence.Document) { slices.Reverse(d.Batch.Path) }, nil, "", "REPORT_DATA"},
		{"no path", func(d *evidence.Document) { d.Batch = evidence.Batch{Path: []evidence.Hex{}} }, nil, "", "REPORT_DATA"},
		{"other index", func(d *evidence.Document) { d.Batch.Index ^= 1 }, nil, "", "REPORT_DATA"},
		{"index beyond the path", func(d *evidence.Document) { d.Batch.Index += 8 }, nil, "", "does not fit"},
		{"a short step", func(d *evidence.Document) { d.Batch.Path[0] = d.Batch.Path[0][:63] }, nil, "", "64 bytes"},
		{"other profile", func(d *evidence.Document) { d.EATProfile = "tag:example,2026:x" }, nil, "", "eat_profile"},
		{"no certificate", func(d *evidence.Document) { d.Certificates = "" }, nil, "", ""},
		{"foreign root", func(*evidence.Document) {}, nil, foreign.roots, "chain: "},
		{"the intermediates alone as roots", func(*evidence.Document) {}, nil, n.intermediates(), "chain: "},
		{"foreign certificate", func(d *evidence.Document) { d.Certificates = foreign.evidence(requests()[0])[0].Certificates }, nil, "", "chain: "},
		{"signed by another key of the same root", func(d *evidence.Document) {
			must.Do(t, n.psp.SetOptions(sim.DefaultOptions(time.Now())), "change the simulator's options")
			d.Certificates = n.evidence(requests()[0])[0].Certificates
		}, nil, "", "signature: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := n.evidence(requests()...)[3]
			c.change(d)
			if ders, err := d.Certs(); err == nil { // the rest of the document agrees, so that what is asked counts
				d.CMW = must.Get(evidence.Build(d.Claims(), 0, nil, d.Report, ders, nil, time.Now()))(t, "make the collection").CMW
			}
			nonce, roots := c.nonce, c.roots
			if nonce == nil {
				nonce = d.Nonce
			}
			if roots == "" {
				roots = n.roots
			}
			if out, ok := n.judge(d, nonce, roots); ok || !strings.Contains(out, c.want) {
				t.Errorf("%q, want a refusal that says %q", out, c.want)
			}
		})
	}
}

// TestOpenSSLTrustsTheGivenRootsAlone: it makes no difference that the system trusts the simulator's ARK.
func TestOpenSSLTrustsTheGivenRootsAlone(t *testing.T) {
	needs(t, "python3", "openssl")
	n := newNode(t, sim.DefaultOptions(time.Now()))
	if out, err := exec.Command("openssl", "rehash", n.dir).CombinedOutput(); err != nil {
		t.Fatalf("openssl rehash: %v\n%s", err, out)
	}
	t.Setenv("SSL_CERT_DIR", n.dir)
	t.Setenv("SSL_CERT_FILE", n.roots)
	d := n.evidence(requests()[0])[0]
	if out, ok := n.judge(d, d.Nonce, n.intermediates()); ok || !strings.Contains(out, "chain: ") {
		t.Error(out)
	}
}

// TestOpenSSLJudgesTheCertificate: one of the right root that is not valid now, or for another TCB than REPORTED_TCB.
func TestOpenSSLJudgesTheCertificate(t *testing.T) {
	needs(t, "python3", "openssl")
	now := time.Now()
	n := newNode(t, sim.DefaultOptions(now))
	for name, from := range map[string]time.Time{"expired": now.Add(-2 * time.Hour), "not yet valid": now.Add(time.Hour)} {
		o := sim.DefaultOptions(now)
		o.NotBefore, o.NotAfter = from, from.Add(time.Hour)
		must.Do(t, n.psp.SetOptions(o), "change the simulator's options")
		d := n.evidence(requests()[0])[0]
		if out, ok := n.judge(d, d.Nonce, n.roots); ok || !strings.Contains(out, "chain: ") {
			t.Errorf("%s: %s", name, out)
		}
	}
	must.Do(t, n.psp.SetOptions(sim.DefaultOptions(now)), "change the simulator's options")
	same := func(e []pkix.Extension) []pkix.Extension { return e }
	if out, ok := n.judgeEndorsed(same); !ok {
		t.Errorf("endorsed by the test itself: %s", out)
	}
	for arc := 1; arc <= 8; arc++ {
		at := func(e []pkix.Extension) int {
			return slices.IndexFunc(e, func(e pkix.Extension) bool {
				return strings.HasSuffix(e.Id.String(), fmt.Sprintf(".3704.1.3.%d", arc))
			})
		}
		change := func(e []pkix.Extension) []pkix.Extension { v := e[at(e)].Value; v[len(v)-1]++; return e }
		if arc == 2 {
			change = func(e []pkix.Extension) []pkix.Extension { return slices.Delete(e, at(e), at(e)+1) }
		}
		if out, ok := n.judgeEndorsed(change); ok || !strings.Contains(out, "REPORTED_TCB") {
			t.Errorf("extension 3.%d changed: %s", arc, out)
		}
	}
}

// judgeEndorsed has the script verify a report signed with a key of the test's own, whose certificate is by the node's
// ASVK and has AMD's extensions as change returns them.
func (n *node) judgeEndorsed(change func([]pkix.Extension) []pkix.Extension) (output string, accepted bool) {
	n.t.Helper()
	claims := requests()[0]
	report, der := n.report(claims.Leaf())
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		n.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	sum := sha512.Sum384(report[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		n.t.Fatal(err)
	}
	for i, v := range []*big.Int{r, s} {
		field := report[snp.SignedSize+72*i:][:72]
		v.FillBytes(field)
		slices.Reverse(field)
	}
	extensions := slices.DeleteFunc(cert.Extensions, func(e pkix.Extension) bool { return !strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.3704.") })
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: cert.Subject, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: change(extensions),
	}
	asvk, signer := n.asvk()
	if der, err = x509.CreateCertificate(rand.Reader, template, asvk, &key.PublicKey, signer); err != nil {
		n.t.Fatal(err)
	}
	d, err := evidence.Build(claims, 0, nil, report, [][]byte{der}, nil, time.Now())
	if err != nil {
		n.t.Fatal(err)
	}
	return n.judge(d, claims.Nonce, n.roots)
}

func (n *node) asvk() (*x509.Certificate, *rsa.PrivateKey) {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "asvk.pem"))
	if err != nil {
		n.t.Fatal(err)
	}
	keyBlock, rest := pem.Decode(text)
	certBlock, _ := pem.Decode(rest)
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		n.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		n.t.Fatal(err)
	}
	return cert, key.(*rsa.PrivateKey)
}

// intermediates writes the roots without ARK: nothing in that file is an anchor.
func (n *node) intermediates() string {
	n.t.Helper()
	_, rest := pem.Decode(n.psp.Roots())
	file := filepath.Join(n.dir, "intermediates.pem")
	if err := os.WriteFile(file, rest, 0o644); err != nil {
		n.t.Fatal(err)
	}
	return file
}
