package evidence_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json from the code")

// vector is one entry of testdata/vectors.json, the published test vectors: docs/evidence.md explains them.
type vector struct {
	Name       string         `json:"name"`
	Leaves     []vectorLeaf   `json:"leaves"`
	ReportData evidence.Hex   `json:"report_data"`
	Paths      []vectorMember `json:"paths"`
}

type vectorLeaf struct {
	Purpose evidence.Purpose `json:"purpose"`
	Nonce   evidence.Hex     `json:"nonce"`
	Binding evidence.Binding `json:"binding"`
	Caller  evidence.Caller  `json:"caller"`
	Leaf    evidence.Hex     `json:"leaf"`
}

type vectorMember struct {
	Index int            `json:"index"`
	Path  []evidence.Hex `json:"path"`
}

func (l vectorLeaf) claims() evidence.Claims {
	return evidence.Claims{Purpose: l.Purpose, Nonce: []byte(l.Nonce), Binding: l.Binding, Caller: l.Caller}
}

func inputs() []vector {
	nonce := func(b byte, n int) evidence.Hex { return bytes.Repeat([]byte{b}, n) }
	lone := vectorLeaf{Purpose: evidence.PurposeClient, Nonce: nonce(0x01, 32), Binding: evidence.Binding{Kind: evidence.BindNone}, Caller: evidence.Caller{UID: 1000}}
	bound := vectorLeaf{Purpose: evidence.PurposeMTLS, Nonce: nonce(0x02, 16), Binding: evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{0xab}, 32)}, Caller: evidence.Caller{}}
	task := vectorLeaf{Purpose: evidence.PurposeClient, Nonce: nonce(0x03, 64), Binding: evidence.Binding{Kind: evidence.BindNone}, Caller: evidence.Caller{
		UID: 0, ContainerID: strings.Repeat("c0", 32), TaskARN: "arn:aws:ecs:us-east-2:111122223333:task/prod/0123456789abcdef0123456789abcdef"}}
	return []vector{
		{Name: "lone request", Leaves: []vectorLeaf{lone}},
		{Name: "bound to a key", Leaves: []vectorLeaf{bound}},
		{Name: "two requests", Leaves: []vectorLeaf{lone, task}},
		{Name: "three requests, one padding leaf", Leaves: []vectorLeaf{lone, bound, task}},
		{Name: "five requests, padding subtrees", Leaves: []vectorLeaf{lone, bound, task, lone, bound}},
	}
}

func compute(v vector) vector {
	leaves := make([][evidence.Size]byte, len(v.Leaves))
	for i := range v.Leaves {
		leaves[i] = v.Leaves[i].claims().Leaf()
		v.Leaves[i].Leaf = leaves[i][:]
	}
	tree := evidence.NewTree(leaves)
	root := tree.Root()
	v.ReportData = root[:]
	for i := range leaves {
		m := vectorMember{Index: i, Path: []evidence.Hex{}}
		for _, step := range tree.Path(i) {
			m.Path = append(m.Path, step[:])
		}
		v.Paths = append(v.Paths, m)
	}
	return v
}

// TestVectors holds the code to the published vectors, which other implementations are checked with.
func TestVectors(t *testing.T) {
	var got []vector
	for _, v := range inputs() {
		got = append(got, compute(v))
	}
	text := must.Get(json.MarshalIndent(got, "", "  "))(t, "encode the vectors")
	const file = "testdata/vectors.json"
	if *update {
		must.Do(t, os.MkdirAll("testdata", 0o755), "make a directory")
		must.Do(t, os.WriteFile(file, append(text, '\n'), 0o644), "write a file")
	}
	want := must.Get(os.ReadFile(file))(t, "read a file")
	if string(want) != string(text)+"\n" {
		t.Errorf("%s differs from what the code computes: a change of the format needs a new label and profile", file)
	}
}

func TestEveryLeafOfEveryTreeIsIncluded(t *testing.T) {
	for n := 1; n <= 70; n++ {
		leaves := make([][evidence.Size]byte, n)
		for i := range leaves {
			leaves[i][0], leaves[i][1] = byte(i), byte(n)
		}
		tree := evidence.NewTree(leaves)
		for i, leaf := range leaves {
			root, err := evidence.Root(leaf, i, tree.Path(i))
			if err != nil || root != tree.Root() {
				t.Fatalf("leaf %d of %d: root %x, err %v", i, n, root[:4], err)
			}
			if other, err := evidence.Root(leaf, i^1, tree.Path(i)); err == nil && other == tree.Root() && len(tree.Path(i)) > 0 {
				t.Fatalf("leaf %d of %d is included at another index too", i, n)
			}
		}
	}
}

func TestLoneLeafIsTheRoot(t *testing.T) {
	leaf := evidence.Claims{Purpose: evidence.PurposeBoot, Nonce: make([]byte, 16)}.Leaf()
	if evidence.NewTree([][evidence.Size]byte{leaf}).Root() != leaf {
		t.Error("the root of one leaf is not that leaf")
	}
}

// TestClaimsDoNotRunTogether moves a byte from one field to the next: the hash must change.
func TestClaimsDoNotRunTogether(t *testing.T) {
	a := evidence.Claims{Purpose: "client", Nonce: []byte("0123456789abcdefX"), Caller: evidence.Caller{ContainerID: "ab", TaskARN: "c"}}
	b := a
	b.Caller = evidence.Caller{ContainerID: "a", TaskARN: "bc"}
	if a.Leaf() == b.Leaf() {
		t.Error("container ID and task ARN run together")
	}
	b = a
	b.Purpose, b.Nonce = "client0", []byte("123456789abcdefX")
	if a.Leaf() == b.Leaf() {
		t.Error("purpose and nonce run together")
	}
}

func TestClaimsCheck(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	for _, c := range []struct {
		name   string
		claims evidence.Claims
		want   string
	}{
		{"short nonce", evidence.Claims{Nonce: make([]byte, 15)}, "nonce of 15 bytes"},
		{"long nonce", evidence.Claims{Nonce: make([]byte, 65)}, "nonce of 65 bytes"},
		{"unknown binding", evidence.Claims{Nonce: make([]byte, 16), Binding: evidence.Binding{Kind: "peer"}}, "unknown binding"},
		{"binding without key", evidence.Claims{Nonce: make([]byte, 16), Binding: evidence.Binding{Kind: "client"}}, "key hash of 0 bytes"},
		{"key without binding", evidence.Claims{Nonce: make([]byte, 16), Binding: evidence.Binding{Kind: "none", SPKISHA256: key}}, "with a key"},
		{"good", evidence.Claims{Nonce: make([]byte, 64), Binding: evidence.Binding{Kind: "server", SPKISHA256: key}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.claims.Check()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}

func document(t testing.TB) *evidence.Document {
	claims := evidence.Claims{Purpose: evidence.PurposeClient, Nonce: bytes.Repeat([]byte{7}, 32), Caller: evidence.Caller{UID: 12}}
	d := must.Get(evidence.Build(claims, 0, nil, []byte("report"), [][]byte{[]byte("certificate")},
		map[string]string{"status": "pass"}, time.Unix(1780000000, 0)))(t, "build a document")
	return d
}

func TestDocumentRoundTrip(t *testing.T) {
	d := document(t)
	text := must.Get(json.Marshal(d))(t, "encode the document")
	got := must.Get(evidence.Parse(text))(t, "parse a document")
	root, err := got.Root()
	if err != nil || hex.EncodeToString(root[:]) != d.ReportData.String() {
		t.Errorf("root %x, err %v, want %v", root[:8], err, d.ReportData)
	}
	var fields map[string]any
	must.Do(t, json.Unmarshal(text, &fields), "decode the document")
	for _, name := range []string{"eat_profile", "eat_nonce", "iat", "purpose", "binding", "caller", "batch", "report_data", "report", "certificates", "cmw", "verdict"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("the document has no %q", name)
		}
	}
	if got := fields["eat_nonce"]; got != "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc" {
		t.Errorf("eat_nonce = %v, want base64url without padding", got)
	}
}

func TestParseRefuses(t *testing.T) {
	good := must.Get(json.Marshal(document(t)))(t, "encode the document")
	change := func(old, new string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("the document has no %q", old)
		}
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "EOF"},
		{"other profile", change(evidence.Profile, "tag:example,2026:x"), "eat_profile"},
		{"two values", append(bytes.Clone(good), good...), "more than one JSON value"},
		{"too large", bytes.Repeat([]byte(" "), evidence.MaxDocument+1), "at most"},
		{"short nonce", change("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc", "BwcH"), "nonce of 3 bytes"},
		{"index without path", change(`"index":0`, `"index":1`), "does not fit"},
		{"negative index", change(`"index":0`, `"index":-1`), "does not fit"},
		{"short step", change(`"path":[]`, `"path":["00"]`), "step 0 of the path has 1 bytes"},
		{"long path", change(`"path":[]`, fmt.Sprintf(`"path":[%s]`, strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("00", 64)+`",`, 17), ","))), "17 steps"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := evidence.Parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want one that says %q", err, c.want)
			}
		})
	}
}

// FuzzParse: a document that parses says the same after it was written and read again.
func FuzzParse(f *testing.F) {
	good := must.Get(json.Marshal(document(f)))(f, "encode the document")
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := evidence.Parse(data)
		if err != nil {
			return
		}
		d.Certs()
		text, err := json.Marshal(d)
		if err != nil {
			t.Skip("raw JSON that the encoder refuses")
		}
		again, err := evidence.Parse(text)
		if err != nil {
			t.Fatalf("written and read again: %v", err)
		}
		if again.Claims().Leaf() != d.Claims().Leaf() {
			t.Error("written and read again, the claims hash differently")
		}
	})
}
