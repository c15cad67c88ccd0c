package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"github.com/rogpeppe/go-internal/testscript"

	"sevagent/internal/cluster"
	"sevagent/internal/cluster/clustertest"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/nitro"
	"sevagent/internal/sim"
	"sevagent/internal/sim/simnitro"
	"sevagent/internal/sim/simscript"
	"sevagent/internal/snp"
	"sevagent/internal/visible/visibletest"
	"sevagent/verify"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestVerifyScripts runs the binary against a loopback AWS with the cluster prod, which a script changes with the
// command `aws`; see changes.
func TestVerifyScripts(t *testing.T) {
	type key struct{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/verify",
		Setup: func(env *testscript.Env) error {
			fake, roots, err := simulated(t.TempDir(), 3)
			if err != nil {
				return err
			}
			server := httptest.NewServer(fake)
			env.Defer(server.Close)
			env.Values[key{}] = fake
			at := func(name string) string { return filepath.Join(env.WorkDir, name) }
			env.Vars = append(env.Vars, "AWS_ENDPOINT_URL="+server.URL, "AWS_REGION=us-east-2",
				"AWS_ACCESS_KEY_ID=AKID", "AWS_SECRET_ACCESS_KEY=secret", "AWS_EC2_METADATA_DISABLED=true",
				"AWS_CONFIG_FILE="+at("config"), "AWS_SHARED_CREDENTIALS_FILE="+at("none"))
			return errors.Join(os.WriteFile(at("roots.pem"), roots, 0o644),
				os.WriteFile(at("policy.yaml"), []byte("profile: aws-shared\nroots: roots.pem\n"), 0o644))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": simscript.Exits,
			"aws": func(ts *testscript.TestScript, _ bool, args []string) {
				fake := ts.Value(key{}).(*clustertest.AWS)
				switch args[0] {
				case "deny":
					fake.Change(func(a *clustertest.AWS) { a.Deny[args[1]] = args[2] })
				case "break":
					fake.Change(changes[args[1]])
				case "stack":
					fake.Change(func(a *clustertest.AWS) { a.Stack, a.StackStatus = args[1], args[2] })
				case "tpm": // aws tpm NODE FIRST-REGISTER: its NitroTPM says so, with that text in PCR4
					fake.Change(func(a *clustertest.AWS) { a.TPM[args[1]] = args[2] })
				case "no-region":
					fake.Change(func(a *clustertest.AWS) { a.NoRegion = args[1] })
				default:
					ts.Fatalf("aws deny API CODE, aws break WHAT, aws stack NAME STATUS, aws tpm NODE BOOT, or aws no-region NAME")
				}
			},
		},
	})
}

// changes are what a script can do to the cluster.
var changes = map[string]func(*clustertest.AWS){
	"snp":       func(a *clustertest.AWS) { a.Nodes[1].SNP = "" },
	"insights":  func(a *clustertest.AWS) { a.Insights = "" },
	"unmanaged": func(a *clustertest.AWS) { a.Nodes[1].Unmanaged = true },
	"empty":     func(a *clustertest.AWS) { a.Nodes, a.Desired = nil, 0 },
	"attributes": func(a *clustertest.AWS) {
		for _, n := range a.Nodes {
			n.Attested = "true"
		}
	},
	// The second node hands its nonce to the first, and gives that one's evidence for its own.
	"relay": func(a *clustertest.AWS) {
		run := a.Run
		a.Run = func(id, seed string) (string, string, bool) {
			if id != a.Nodes[1].ID {
				return run(id, seed)
			}
			return run("relay:"+id, seed)
		}
	},
	// The second node has kept an answer to an earlier nonce.
	"replay": func(a *clustertest.AWS) {
		run := a.Run
		a.Run = func(id, seed string) (string, string, bool) {
			if id == a.Nodes[1].ID {
				seed = "old"
			}
			return run(id, seed)
		}
	},
}

// simulated is a cluster whose nodes are simulated SEV-SNP guests, with the roots that vouch for them.
func simulated(dir string, n int) (*clustertest.AWS, []byte, error) {
	now := time.Now()
	fake := clustertest.New(n)
	first, err := sim.New(sim.DefaultOptions(now))
	if err != nil {
		return nil, nil, err
	}
	if err := first.Save(dir); err != nil { // one root for all guests, each of which has a REPORT_ID of its own
		return nil, nil, err
	}
	ca, err := simnitro.New()
	if err != nil {
		return nil, nil, err
	}
	fake.TPM = make(map[string]string)
	guests := map[string]*sim.PSP{fake.Nodes[0].ID: first}
	for _, node := range fake.Nodes[1:] {
		if guests[node.ID], err = sim.Load(dir, sim.DefaultOptions(now)); err != nil {
			return nil, nil, err
		}
	}
	for _, node := range fake.Nodes {
		report, _, err := guests[node.ID].Report([64]byte{}, 0)
		if err != nil {
			return nil, nil, err
		}
		parsed, err := snp.ParseReport(report)
		if err != nil {
			return nil, nil, err
		}
		node.Attested, node.TCB = "simulated", parsed.ReportedTCB.String()
		node.Measurement = hex.EncodeToString(parsed.Measurement[:])
	}
	fake.Run = func(id, seed string) (string, string, bool) {
		guest := guests[id]
		if relayed, ok := strings.CutPrefix(id, "relay:"); ok {
			id, guest = relayed, first
		}
		var second func(report []byte) ([]byte, error)
		if boot := fake.TPM[id]; boot != "" {
			second = func(report []byte) ([]byte, error) {
				userData, nonce := nitro.Binding(report)
				pcrs := simnitro.PCRs()
				switch boot {
				case "command-line":
					pcrs[12][0] = 1
				case "unmeasured":
					clear(pcrs[4])
				case "incomplete":
					delete(pcrs, 7)
				default:
					copy(pcrs[4], boot)
				}
				return ca.Sign(simnitro.Fields{
					Instance: id, Time: now, UserData: userData[:], Nonce: nonce[:], PCRs: pcrs,
				})
			}
		}
		text, err := document(guest, clustertest.Nonce(id, seed), now, second)
		if err != nil {
			return "", err.Error(), false
		}
		return text, "", true
	}
	return fake, append(first.Roots(), ca.PEM()...), nil
}

// document is evidence as a node sends it. second, unless nil, makes the document of its NitroTPM.
func document(guest *sim.PSP, nonce string, now time.Time, second func([]byte) ([]byte, error)) (string, error) {
	raw, err := hex.DecodeString(nonce)
	if err != nil {
		return "", err
	}
	claims := evidence.Claims{Purpose: evidence.PurposeClient, Nonce: raw, Caller: evidence.HostCaller(0)}
	text, report, cert, err := makeEvidence(guest, claims, now)
	if err == nil && second != nil {
		text, err = withSecond(claims, report, cert, second, now)
	}
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(text)
	err = w.Close()
	return base64.StdEncoding.EncodeToString(b.Bytes()), err
}

// withSecond is evidence with the document of a NitroTPM beside the report.
func withSecond(
	claims evidence.Claims, report, cert []byte, second func([]byte) ([]byte, error), now time.Time,
) ([]byte, error) {
	document, err := second(report)
	if err != nil {
		return nil, err
	}
	shared, err := evidence.Share(report, document, [][]byte{cert}, nil, now)
	if err != nil {
		return nil, err
	}
	doc, err := shared.Document(claims, 0, nil)
	if err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// reportOf is the report of a cluster with a finding of every kind, and one node that is hostile to the reader.
func reportOf(t *testing.T) *clusterReport {
	t.Helper()
	at, measurement := time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC), strings.Repeat("ab", 48)
	s := &cluster.Snapshot{
		Name: "prod", Region: "us-east-2", Time: at,
		Cluster: &cluster.Cluster{
			Name: "prod", ARN: "arn:aws:ecs:us-east-2:123456789012:cluster/prod", Status: "ACTIVE",
			Providers: []string{"prod-snp"},
		},
		Providers: []cluster.Provider{{
			Name: "prod-snp", Status: "ACTIVE", GroupARN: "arn", Group: "prod-snp",
			ManagedScaling: true, ManagedProtection: true,
		}},
		Groups: []cluster.Group{{
			Name: "prod-snp", Min: 1, Desired: 8, Max: 9, ProtectsNew: true, GracePeriod: 5 * time.Minute,
			Templates: []cluster.Template{{
				ID: "lt-00000000000000001", Spec: "3", Version: 3, ImageID: "ami-1", InstanceType: "m6a.large",
				SNP: "enabled", HTTPTokens: "required",
			}},
		}},
		Images:    map[string]cluster.Image{"ami-1": {BootMode: "uefi-preferred"}},
		Supported: []string{"m6a.large"},
		Failures: map[string]error{
			"ec2:DescribeVolumes": errors.New("no answer within 1m30s"),
			"ec2:DescribeLaunchTemplateVersions": &smithy.GenericAPIError{
				Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation.",
			},
		},
		Stack:  cluster.Stack{Name: "confidential", Status: "UPDATE_ROLLBACK_FAILED"},
		Caller: "arn:aws:sts::123456789012:assumed-role/viewer/session",
	}
	var results []cluster.Attestation
	for i := range 8 {
		id := "i-0000000000000000" + string(rune('1'+i))
		n := cluster.Node{ID: id,
			Container: &cluster.Container{
				Status: "ACTIVE", Provider: "prod-snp", Connected: true, AgentVersion: "1.106.1",
				Attributes: map[string]string{
					cluster.AttrAttested: "true", cluster.AttrMeasurement: measurement, cluster.AttrTCB: "4.0.29.222",
				},
			},
			Member: &cluster.Member{
				Group: "prod-snp", Lifecycle: "InService", Health: "Healthy", Protected: true,
				TemplateID: "lt-00000000000000001", TemplateVersion: "3",
			},
			Instance: &cluster.Instance{Type: "m6a.large", Zone: "us-east-2a", State: "running", ImageID: "ami-1",
				SNP: "enabled", BootMode: "uefi", HTTPTokens: "required",
				RootVolume: "vol-1", RootKnown: true, RootEncrypted: true, Launched: at.Add(-time.Hour)},
		}
		if i < 6 {
			n.Instance.SNP = ""
		}
		if i == 7 {
			n.Container.Attributes[cluster.AttrAttested] = "<script>alert(1)</script>\x1b[2J"
		}
		s.Nodes = append(s.Nodes, n)
		results = append(results, cluster.Attestation{
			ID: id, Status: cluster.Pass, ReportID: id, Measurement: measurement, TCB: "4.0.29.222", Nonce: "00", Roots: "amd",
		})
	}
	results[2].Status, results[2].Reason = cluster.Fail, "no answer within 2m0s: the command is Pending there"
	r := newReport(s)
	r.Version, r.Attestation = "v1.2.3", results
	r.Checks = append(r.Checks, cluster.CheckAttestation(s, results))
	calls := map[string]int{"ecs:DescribeClusters": 1, "ssm:GetCommandInvocation": 23}
	r.finish(cluster.Calls{Total: 24, ByAPI: calls}, 3*time.Second)
	return r
}

func TestGolden(t *testing.T) {
	r := reportOf(t)
	for file, write := range map[string]func(io.Writer) error{
		"table.golden":     func(w io.Writer) error { return r.table(w, 0, false) },
		"table-80.golden":  func(w io.Writer) error { return r.table(w, 80, false) },
		"table-120.golden": func(w io.Writer) error { return r.table(w, 120, false) },
		"colour.golden":    func(w io.Writer) error { return r.table(w, 80, true) },
		"json.golden":      func(w io.Writer) error { return encode(w, r) },
		"html.golden":      r.html,
	} {
		var b bytes.Buffer
		must.Do(t, write(&b), "write the report")
		path := filepath.Join("testdata", "verify", file)
		if *update {
			must.Do(t, os.WriteFile(path, b.Bytes(), 0o644), "write a file")
		}
		want := must.Get(os.ReadFile(path))(t, "read a file")
		if !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s differs; run go test -update and look at the difference:\n%s", path, b.Bytes())
		}
	}
}

// TestPage: the page asks nobody for anything, and what a node says is text there and no more.
func TestPage(t *testing.T) {
	var b bytes.Buffer
	must.Do(t, reportOf(t).html(&b), "write the page")
	for _, not := range []string{"<script>alert", "http://", "https://", "src=", "url(", "@import", "ZgotmplZ"} {
		if strings.Contains(b.String(), not) {
			t.Errorf("the page has %q in it", not)
		}
	}
	if !strings.Contains(b.String(), "&lt;script&gt;") {
		t.Error("the page lacks what the node said")
	}
	if n := strings.Count(b.String(), "<script"); n != 1 {
		t.Errorf("%d scripts, want the page's own", n)
	}
}

// TestHostile: neither AWS nor a node paints the terminal or the page.
func TestHostile(t *testing.T) {
	r := new(clusterReport)
	visibletest.Fill(r, visibletest.Hostile)
	sequences := []string{"\x1b[0m"}
	for _, sequence := range colours {
		sequences = append(sequences, sequence)
	}
	for form, write := range map[string]func(io.Writer) error{
		"table":          func(w io.Writer) error { return r.table(w, 0, false) },
		"narrow table":   func(w io.Writer) error { return r.table(w, 80, false) },
		"coloured table": func(w io.Writer) error { return r.table(w, 80, true) },
		"JSON":           func(w io.Writer) error { return encode(w, r) },
		"HTML":           r.html,
	} {
		t.Run(form, func(t *testing.T) {
			var b strings.Builder
			must.Do(t, write(&b), "write the report")
			allowed := sequences
			if form == "HTML" {
				allowed = []string{"verdict pass"} // on a line of its own, which is none on a page
			}
			visibletest.Check(t, b.String(), allowed...)
		})
	}

	policy := filepath.Join(t.TempDir(), visibletest.Hostile)
	must.Do(t, os.WriteFile(policy, []byte("profile: aws-shared\n"), 0o600), "write a policy")
	var stdout strings.Builder
	must.Do(t, run(t.Context(), []string{"policy", "explain", policy}, nil, &stdout, io.Discard), "explain the policy")
	visibletest.Check(t, stdout.String())
}

// Evidence is a node's own only if its root asked for it, for the nonce alone. A caller that is unknown may be anyone.
func TestAskedByRoot(t *testing.T) {
	container := strings.Repeat("c0", 32)
	none, client := evidence.Binding{Kind: evidence.BindNone}, evidence.Binding{Kind: evidence.BindClient}
	for _, c := range []struct {
		name    string
		purpose evidence.Purpose
		binding evidence.Binding
		caller  evidence.Caller
		want    bool
	}{
		{"root", evidence.PurposeClient, none, evidence.HostCaller(0), true},
		{"another user", evidence.PurposeClient, none, evidence.HostCaller(1000), false},
		{"root in a container", evidence.PurposeClient, none, evidence.ContainerCaller(0, container, ""), false},
		{"unknown", evidence.PurposeClient, none, evidence.Caller{Kind: evidence.CallerUnknown}, false},
		{"the agent itself", evidence.PurposeBoot, none, evidence.HostCaller(0), false},
		{"root, for a certificate", evidence.PurposeClient, client, evidence.HostCaller(0), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &verify.Result{Purpose: c.purpose, Binding: &c.binding, Caller: &c.caller}
			if got := askedByRoot(r); got != c.want {
				t.Errorf("askedByRoot = %v, want %v", got, c.want)
			}
		})
	}
}
