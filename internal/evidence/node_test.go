package evidence_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// node is a simulated node.
type node struct {
	t   testing.TB
	psp *sim.PSP
}

func newNode(t testing.TB, o sim.Options) *node {
	t.Helper()
	return &node{t, must.Get(sim.New(o))(t, "make a simulator")}
}

// report returns a report with its certificate, DER.
func (n *node) report(root [evidence.Size]byte) (report, cert []byte) {
	n.t.Helper()
	report, raw, err := n.psp.Report(root, 0)
	must.Do(n.t, err, "get a report")
	table := must.Get(snp.ParseCertTable(raw))(n.t, "read the certificate table")
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
		must.Do(n.t, err, "build document %d", i)
		docs = append(docs, d)
	}
	return docs
}

// requests are five that wait together: the batch has padding subtrees, and a leaf at every kind of place.
func requests() (claims []evidence.Claims) {
	for i := range byte(5) {
		claims = append(claims, evidence.Claims{Purpose: evidence.PurposeClient,
			Nonce: bytes.Repeat([]byte{i + 1}, 16+12*int(i)), Caller: evidence.HostCaller(uint32(i))})
	}
	claims[1].Purpose = evidence.PurposeMTLS
	claims[1].Binding = evidence.Binding{Kind: evidence.BindClient, SPKISHA256: bytes.Repeat([]byte{0xab}, 32)}
	claims[3].Caller = evidence.ContainerCaller(4294967294, strings.Repeat("c0", 32), task)
	claims[3].Instance = evidence.Instance{ID: "i-0123456789abcdef0", Region: "us-east-2", AccountID: "111122223333"}
	claims[4].Caller = evidence.Caller{Kind: evidence.CallerUnknown}
	return claims
}
