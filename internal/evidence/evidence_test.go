package evidence_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
)

const vectorsFile = "../../docs/evidence/leaves.json"

var update = flag.Bool("update", false, "rewrite docs/evidence/leaves.json from the code")

// vector is one entry of docs/evidence/leaves.json, the published test vectors: docs/evidence.md explains them.
type vector struct {
	Name       string         `json:"name"`
	Leaves     []vectorLeaf   `json:"leaves"`
	ReportData evidence.Hex   `json:"report_data"`
	Paths      []vectorMember `json:"paths"`
}

type vectorLeaf struct {
	Purpose  evidence.Purpose  `json:"purpose"`
	Nonce    evidence.Hex      `json:"nonce"`
	Binding  evidence.Binding  `json:"binding"`
	Caller   evidence.Caller   `json:"caller"`
	Instance evidence.Instance `json:"instance,omitzero"`
	Leaf     evidence.Hex      `json:"leaf"`
}

type vectorMember struct {
	Index int            `json:"index"`
	Path  []evidence.Hex `json:"path"`
}

func (l vectorLeaf) claims() evidence.Claims {
	return evidence.Claims{Purpose: l.Purpose, Nonce: []byte(l.Nonce),
		Binding: l.Binding, Caller: l.Caller, Instance: l.Instance}
}

func inputs() []vector {
	nonce := func(b byte, n int) evidence.Hex { return bytes.Repeat([]byte{b}, n) }
	instance := evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"}
	lone := vectorLeaf{
		Purpose: evidence.PurposeClient, Nonce: nonce(0x01, 32), Binding: evidence.Binding{Kind: evidence.BindNone},
		Caller: evidence.HostCaller(1000),
	}
	bound := vectorLeaf{
		Purpose: evidence.PurposeMTLS, Nonce: nonce(0x02, 16),
		Binding: evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{0xab}, 32)},
		Caller:  evidence.HostCaller(0), Instance: instance,
	}
	server := bound
	server.Binding.Kind = evidence.BindServer
	task := vectorLeaf{
		Purpose: evidence.PurposeClient, Nonce: nonce(0x03, 64), Binding: evidence.Binding{Kind: evidence.BindNone},
		Caller:   evidence.ContainerCaller(0, strings.Repeat("c0", 32), task),
		Instance: instance,
	}
	unknown := vectorLeaf{
		Purpose: evidence.PurposeClient, Nonce: nonce(0x01, 32), Binding: evidence.Binding{Kind: evidence.BindNone},
		Caller: evidence.Caller{Kind: evidence.CallerUnknown}, Instance: instance,
	}
	return []vector{
		{Name: "lone request, of a node that does not know its instance", Leaves: []vectorLeaf{lone}},
		{Name: "bound to a client's key", Leaves: []vectorLeaf{bound}},
		{Name: "bound to a server's key", Leaves: []vectorLeaf{server}},
		{Name: "unknown caller", Leaves: []vectorLeaf{unknown}},
		{Name: "two requests", Leaves: []vectorLeaf{lone, task}},
		{Name: "three requests, one padding leaf", Leaves: []vectorLeaf{lone, bound, task}},
		{Name: "five requests, padding subtrees", Leaves: []vectorLeaf{lone, bound, task, unknown, server}},
	}
}

// task is the ARN of an ECS task.
const task = "arn:aws:ecs:us-east-2:111122223333:task/prod/0123456789abcdef0123456789abcdef"

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
	if *update {
		must.Do(t, os.WriteFile(vectorsFile, append(text, '\n'), 0o644), "write a file")
	}
	want := must.Get(os.ReadFile(vectorsFile))(t, "read a file")
	if string(want) != string(text)+"\n" {
		t.Errorf("%s differs from what the code computes: a change of the format needs a new label and profile",
			vectorsFile)
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
			other, err := evidence.Root(leaf, i^1, tree.Path(i))
			if err == nil && other == tree.Root() && len(tree.Path(i)) > 0 {
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
	a := evidence.Claims{Purpose: "client", Nonce: []byte("0123456789abcdefX"),
		Caller: evidence.Caller{ContainerID: "ab", TaskARN: "c"}, Instance: evidence.Instance{ID: "d", Region: "ef"}}
	b := a
	b.Caller = evidence.Caller{ContainerID: "a", TaskARN: "bc"}
	if a.Leaf() == b.Leaf() {
		t.Error("container ID and task ARN run together")
	}
	b = a
	b.Caller.TaskARN, b.Instance.ID = "", "cd"
	if a.Leaf() == b.Leaf() {
		t.Error("task ARN and instance ID run together")
	}
	b = a
	b.Instance.Region, b.Instance.AccountID = "e", "f"
	if a.Leaf() == b.Leaf() {
		t.Error("region and account ID run together")
	}
	b = a
	b.Purpose, b.Nonce = "client0", []byte("123456789abcdefX")
	if a.Leaf() == b.Leaf() {
		t.Error("purpose and nonce run together")
	}
}

func TestClaimsCheck(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	uid, container := uint32(0), strings.Repeat("c0", 32)
	in := func(c evidence.Caller) evidence.Claims {
		return evidence.Claims{Purpose: evidence.PurposeClient, Nonce: make([]byte, 16), Caller: c}
	}
	at := func(id, region, account string) evidence.Claims {
		c := in(evidence.HostCaller(0))
		c.Instance = evidence.Instance{ID: id, Region: region, AccountID: account}
		return c
	}
	with := func(purpose evidence.Purpose, nonce int, b evidence.Binding) evidence.Claims {
		c := in(evidence.HostCaller(0))
		c.Purpose, c.Nonce, c.Binding = purpose, make([]byte, nonce), b
		return c
	}
	const boot, mtls, client = evidence.PurposeBoot, evidence.PurposeMTLS, evidence.PurposeClient
	const good, region, account = "i-0123456789abcdef0", "us-east-2", "111122223333"
	for _, c := range []struct {
		name   string
		claims evidence.Claims
		want   string
	}{
		{"no purpose", with("", 16, evidence.Binding{}), `unknown purpose ""`},
		{"purpose of the caller's own", with("client\x1b[2J", 16, evidence.Binding{}),
			`unknown purpose "client\x1b[2J"`},
		{"short nonce", with(client, 15, evidence.Binding{}), "nonce of 15 bytes"},
		{"long nonce", with(client, 65, evidence.Binding{}), "nonce of 65 bytes"},
		{"unknown binding", with(client, 16, evidence.Binding{Kind: "peer"}), "unknown binding"},
		{"binding without key", with(client, 16, evidence.Binding{Kind: "client"}), "key hash of 0 bytes"},
		{"key without binding", with(client, 16, evidence.Binding{Kind: "none", SPKISHA256: key}), "with a key"},
		{"longest nonce, bound", with(mtls, 64, evidence.Binding{Kind: "server", SPKISHA256: key}), ""},
		{"boot, unbound", with(boot, 16, evidence.Binding{}), ""},

		{"no caller", in(evidence.Caller{}), `unknown kind of caller ""`},
		{"kind of caller of its own", in(evidence.Caller{Kind: "root", UID: &uid}), `unknown kind of caller "root"`},
		{"host without uid", in(evidence.Caller{Kind: evidence.CallerHost}), "without a uid"},
		{"host with container", in(evidence.Caller{Kind: evidence.CallerHost, UID: &uid, ContainerID: container}),
			"with a container"},
		{"host with task", in(evidence.Caller{Kind: evidence.CallerHost, UID: &uid, TaskARN: task}),
			"with a container or a task"},
		{"unknown", in(evidence.Caller{Kind: evidence.CallerUnknown}), ""},
		{"unknown with uid", in(evidence.Caller{Kind: evidence.CallerUnknown, UID: &uid}), "unknown caller with a uid"},
		{"unknown with container", in(evidence.Caller{Kind: evidence.CallerUnknown, ContainerID: container}),
			"unknown caller with"},
		{"unknown with task", in(evidence.Caller{Kind: evidence.CallerUnknown, TaskARN: task}), "unknown caller with"},
		{"container", in(evidence.ContainerCaller(0, container, "")), ""},
		{"container and task", in(evidence.ContainerCaller(1<<32-1, container, task)), ""},
		{"container and task of old form", in(evidence.ContainerCaller(0, container,
			"arn:aws-us-gov:ecs:us-gov-west-1:111122223333:task/01234567-89ab-cdef-0123-456789abcdef")), ""},
		{"container without uid", in(evidence.Caller{Kind: evidence.CallerContainer, ContainerID: container}),
			"without a uid"},
		{"container without ID", in(evidence.ContainerCaller(0, "", task)), "64 hexadecimal digits"},
		{"short container ID", in(evidence.ContainerCaller(0, container[1:], "")), "64 hexadecimal digits"},
		{"long container ID", in(evidence.ContainerCaller(0, container+"0", "")), "64 hexadecimal digits"},
		{"container ID in capitals", in(evidence.ContainerCaller(0, strings.ToUpper(container), "")),
			"64 hexadecimal digits"},
		{"container ID with line feed", in(evidence.ContainerCaller(0, container[1:]+"\n", "")),
			"64 hexadecimal digits"},
		{"task that a terminal obeys", in(evidence.ContainerCaller(0, container, "\x1b]0;title\a\x1b[8m")),
			"ARN of an ECS task"},
		{"task with line feed", in(evidence.ContainerCaller(0, container, task+"\n")), "ARN of an ECS task"},
		{"task of another letter", in(evidence.ContainerCaller(0,
			container, strings.Replace(task, "prod", "Zürich", 1))), "ARN of an ECS task"},
		{"service", in(evidence.ContainerCaller(0, container, strings.Replace(task, ":task/", ":service/", 1))),
			"ARN of an ECS task"},
		{"endless task", in(evidence.ContainerCaller(0, container, task+strings.Repeat("0", 400))),
			"ARN of an ECS task"},

		{"instance", at(good, region, account), ""},
		{"instance of old form", at("i-01234567", "us-gov-west-1", account), ""},
		{"instance without ID", at("", region, account), "instance ID"},
		{"short instance ID", at("i-0123456", region, account), "instance ID"},
		{"long instance ID", at(good+"0", region, account), "instance ID"},
		{"instance ID in capitals", at("i-0123456789ABCDEF0", region, account), "instance ID"},
		{"managed instance of another kind", at("mi-0123456789abcdef0", region, account), "instance ID"},
		{"no region", at(good, "", account), "name of a region"},
		{"zone", at(good, "us-east-2a", account), "name of a region"},
		{"region with line feed", at(good, "us-east-2\n", account), "name of a region"},
		{"endless region", at(good, "us-east-"+strings.Repeat("2", 32), account), "name of a region"},
		{"longest region", at(good, "us-east-"+strings.Repeat("2", 24), account), ""},
		{"region too long by a digit", at(good, "us-east-"+strings.Repeat("2", 25), account), "name of a region"},
		{"longest task", in(evidence.ContainerCaller(0, container, task+strings.Repeat("0", 400-len(task)))), ""},
		{"task too long by a digit", in(evidence.ContainerCaller(0, container, task+strings.Repeat("0", 401-len(task)))),
			"ARN of an ECS task"},
		{"account with a letter", at(good, region, "11112222333a"), "account ID"},
		{"no account", at(good, region, ""), "account ID"},
		{"short account", at(good, region, account[1:]), "account ID"},
		{"account of other digits", at(good, region, "11112222333\u0663"), "account ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.claims.Check()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}

// TestCallerInWords: callers are compared by their words, which have to tell them apart.
func TestCallerInWords(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for want, c := range map[string]evidence.Caller{
		"unknown":                           {Kind: evidence.CallerUnknown},
		"host uid 0":                        evidence.HostCaller(0),
		"host uid 1000":                     evidence.HostCaller(1000),
		"container uid 0 container " + a:    evidence.ContainerCaller(0, a, ""),
		"container uid 1000 container " + a: evidence.ContainerCaller(1000, a, ""),
		"container uid 0 container " + b:    evidence.ContainerCaller(0, b, ""),
		"container uid 0 container " + a + " task " + task: evidence.ContainerCaller(0, a, task),
	} {
		if got := c.String(); got != want {
			t.Errorf("%+v is %q, want %q", c, got, want)
		}
	}
}

// TestLargestBatch has the deepest tree, and none is larger or empty.
func TestLargestBatch(t *testing.T) {
	leaves := make([][evidence.Size]byte, 1<<evidence.MaxDepth)
	for i := range leaves {
		leaves[i][0], leaves[i][1] = byte(i), byte(i>>8)
	}
	tree := evidence.NewTree(leaves)
	for _, i := range []int{0, 1, len(leaves) / 2, len(leaves) - 1} {
		root, err := evidence.Root(leaves[i], i, tree.Path(i))
		if err != nil || root != tree.Root() || len(tree.Path(i)) != evidence.MaxDepth {
			t.Errorf("leaf %d is not included by %d steps: %v", i, len(tree.Path(i)), err)
		}
	}
	for _, leaves := range [][][evidence.Size]byte{nil, append(leaves, [evidence.Size]byte{})} {
		func() {
			defer func() { recover() }()
			evidence.NewTree(leaves)
			t.Errorf("a tree of %d leaves, want none", len(leaves))
		}()
	}
}

// TestEncode: a document in two parts is the one that encoding/json writes, and a batch has the larger part once.
func TestEncode(t *testing.T) {
	v := inputs()[5]
	tree := evidence.NewTree([][evidence.Size]byte{v.Leaves[0].claims().Leaf(), v.Leaves[1].claims().Leaf()})
	report, certs := make([]byte, 1184), [][]byte{[]byte("one"), []byte("two")}
	for name, verdict := range map[string]any{"no verdict": nil, "a verdict": map[string]string{"reason": "<\u2028>"}} {
		var nitroTPM []byte
		if verdict != nil {
			nitroTPM = []byte("of a NitroTPM")
		}
		shared := must.Get(evidence.Share(report, nitroTPM, certs, verdict, time.Unix(1_800_000_000, 0)))(t,
			"start the batch")
		var last []byte
		for i := range 2 {
			d := must.Get(shared.Document(v.Leaves[i].claims(), i, tree.Path(i)))(t, "make document %d", i)
			var want bytes.Buffer
			must.Do(t, json.NewEncoder(&want).Encode(d), "encode document %d at once", i)
			own, end, err := d.Encode()
			if err != nil || string(own)+string(end) != want.String() {
				t.Errorf("%s, document %d: Encode = %s + %s, %v, want %s", name, i, own, end, err, want.String())
			}
			if last != nil && &last[0] != &end[0] {
				t.Errorf("%s: each document has a copy of what it shares", name)
			}
			last = end

			read := new(evidence.Document)
			must.Do(t, json.Unmarshal(want.Bytes(), read), "decode document %d", i)
			own, end, err = read.Encode()
			if err != nil || string(own)+string(end) != want.String() {
				t.Errorf("%s, document %d, read again: Encode = %s + %s, %v, want %s",
					name, i, own, end, err, want.String())
			}
		}
	}
}

func TestDocumentRoundTrip(t *testing.T) {
	n := newNode(t, sim.DefaultOptions(time.Now()))
	d := n.evidence(requests()...)[3]
	text := must.Get(json.Marshal(d))(t, "encode the document")
	got := must.Get(evidence.Parse(text))(t, "parse a document")
	if again := must.Get(json.Marshal(got))(t, "encode it again"); !bytes.Equal(again, text) {
		t.Errorf("written and read again, the document is %s, want %s", again, text)
	}
	var fields map[string]any
	must.Do(t, json.Unmarshal(text, &fields), "decode the document")
	want := []string{"batch", "binding", "caller", "certificates",
		"cmw", "eat_nonce", "eat_profile", "iat", "instance", "purpose",
		"report", "report_data"}
	if names := slices.Sorted(maps.Keys(fields)); !slices.Equal(names, want) {
		t.Errorf("the document has members %q, want %q", names, want)
	}
	if got, want := fields["eat_nonce"], "BAQE"; !strings.HasPrefix(got.(string), want) ||
		strings.Contains(got.(string), "=") {
		t.Errorf("eat_nonce = %v, want base64url without padding that begins with %s", got, want)
	}
}
