package cluster

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/cluster/clustertest"
	"sevagent/internal/must"
)

func packed(doc string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(doc))
	w.Close()
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// script is that of the evidence document in the template, for a seed.
func script(t *testing.T, seed string) string {
	t.Helper()
	template := string(must.Get(os.ReadFile("../../cloudformation/cluster.yaml"))(t, "read the template"))
	if !strings.Contains(template, `Name: !Sub "`+document("${ClusterName}")+`"`) {
		t.Errorf("the template has no document %s", document("NAME"))
	}
	if got := document("arn:aws:ecs:us-east-2:123456789012:cluster/prod"); got != document("prod") {
		t.Errorf("the document of a cluster's ARN is %s", got)
	}
	_, rest, _ := strings.Cut(template, "- name: evidence\n")
	_, rest, _ = strings.Cut(rest, "runCommand:\n")
	var lines []string
	for line := range strings.Lines(rest) {
		text, ok := strings.CutPrefix(strings.TrimLeft(line, " "), "- ")
		if !ok {
			break
		}
		lines = append(lines, text)
	}
	return strings.ReplaceAll(strings.Join(lines, ""), "{{ seed }}", seed)
}

// TestScript runs what a node would run in the shell that it would run it in.
func TestScript(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the script is for Linux nodes")
	}
	dir := t.TempDir()
	agent := filepath.Join(dir, "sevagent")
	run := func(program string) (string, error) {
		must.Do(t, os.WriteFile(agent, []byte("#!/bin/sh\n"+program), 0o755), "write a file")
		text := strings.ReplaceAll(script(t, "SEED"), "/usr/bin/sevagent", agent)
		cmd := exec.Command("/bin/sh", "-c", text)
		cmd.Env = append(os.Environ(), "AWS_SSM_INSTANCE_ID=i-1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = errors.New(stderr.String())
		}
		return string(out), err
	}
	out := must.Get(run(`echo "$@"`))(t, "run the script")
	doc, err := unpack(out, 1000)
	if want := fmt.Sprintf("evidence --nonce %x\n", nonce("SEED", "i-1")); string(doc) != want || err != nil {
		t.Errorf("the node sends %q (%v), want %q", doc, err, want)
	}
	out, err = run(`echo "sevagent: no device" >&2; exit 3`)
	if err == nil || out != "" || !strings.Contains(err.Error(), "no device") {
		t.Errorf("of an agent that fails, the node sends %q (%v)", out, err)
	}
}

// TestCollect asks 120 nodes, two of which SSM does not manage, and one of which fails.
func TestCollect(t *testing.T) {
	a := clustertest.New(120)
	a.Nodes[7].Unmanaged, a.Nodes[99].Unmanaged = true, true
	a.Run = func(id, seed string) (string, string, bool) {
		if id == a.Nodes[3].ID {
			return "", "sevagent: \x1b[2Jdevice_missing\nmore", false
		}
		return packed(id + " " + clustertest.Nonce(id, seed)), "", true
	}
	in := start(t, a)
	var ids []string
	for _, n := range a.Nodes {
		ids = append(ids, n.ID)
	}
	nonces := make(map[string]bool)
	for i, answer := range in.Collect(t.Context(), ids, 1000) {
		nonces[answer.Hex()] = true
		switch {
		case answer.ID != ids[i]:
			t.Errorf("answer %d is %s's, want %s's", i, answer.ID, ids[i])
		case i == 7 || i == 99:
			if answer.Err == nil || !strings.Contains(answer.Err.Error(), "SSM does not manage it") {
				t.Errorf("unmanaged node %d: %v", i, answer.Err)
			}
		case i == 3:
			if answer.Err == nil || !strings.HasSuffix(answer.Err.Error(), `exit status 1: sevagent: \x1b[2Jdevice_missing`) {
				t.Errorf("failing node: %v", answer.Err)
			}
		case answer.Err != nil || string(answer.Document) != answer.ID+" "+answer.Hex():
			t.Errorf("node %d: %q, %v", i, answer.Document, answer.Err)
		}
	}
	if len(nonces) != len(ids) {
		t.Errorf("%d nodes were given %d nonces", len(ids), len(nonces))
	}
	t.Logf("calls: %v", in.Calls())
}

func TestCollectNoAnswer(t *testing.T) {
	a := clustertest.New(1)
	answers := start(t, a).Collect(t.Context(), []string{a.Nodes[0].ID}, 1000)
	if err := answers[0].Err; err == nil || !strings.Contains(err.Error(), "no answer within 10ms") {
		t.Errorf("a node that is silent: %v", err)
	}
	a.Deny[apiSend] = "AccessDeniedException"
	answers = start(t, a).Collect(t.Context(), []string{a.Nodes[0].ID}, 1000)
	if err := answers[0].Err; err == nil || !strings.Contains(err.Error(), "ssm:SendCommand: AccessDeniedException") {
		t.Errorf("SendCommand denied: %v", err)
	}
	a.Deny[apiSend] = "InvalidDocument"
	answers = start(t, a).Collect(t.Context(), []string{a.Nodes[0].ID}, 1000)
	if err := answers[0].Err; err == nil || !strings.Contains(err.Error(), "no SSM document sevagent-evidence-") {
		t.Errorf("a stack without the document: %v", err)
	}
}

func TestUnpack(t *testing.T) {
	for name, text := range map[string]string{
		"empty":       "",
		"not base64":  "{}",
		"not gzip":    base64.StdEncoding.EncodeToString([]byte("{}")),
		"cut in gzip": packed(strings.Repeat("x", 100))[:16],
		"a bomb":      packed(strings.Repeat("x", 100_000)),
		"cut by SSM":  strings.Repeat("A", outputLimit),
	} {
		if doc, err := unpack(text, 1000); err == nil {
			t.Errorf("%s unpacks to %d bytes", name, len(doc))
		}
	}
}

func TestCheckAttestation(t *testing.T) {
	healthy := func() []Attestation {
		return []Attestation{
			{ID: "i-1", Status: Pass, ReportID: "01", Measurement: good},
			{ID: "i-2", Status: Pass, ReportID: "02", Measurement: good},
		}
	}
	for _, test := range []struct {
		name   string
		change func(s *Snapshot, r []Attestation) []Attestation
		want   Status
		detail string
	}{
		{"good", func(_ *Snapshot, r []Attestation) []Attestation { return r }, Pass,
			"2 verified here, each for a nonce of its own; none has a NitroTPM"},
		{"one signed", func(_ *Snapshot, r []Attestation) []Attestation { r[1].Signed = true; return r },
			Pass, "for 1 of them AWS has signed which instance has answered"},
		{"all signed", func(_ *Snapshot, r []Attestation) []Attestation {
			r[0].Signed, r[1].Signed = true, true
			return r
		}, Pass, "of its own; AWS has signed which instance has answered"},
		{"failed", func(_ *Snapshot, r []Attestation) []Attestation { r[1].Status, r[1].Reason = Fail, "why"; return r },
			Fail, "i-2: why"},
		{"warned", func(_ *Snapshot, r []Attestation) []Attestation { r[1].Status, r[1].Reason = Warn, "why"; return r },
			Warn, "i-2: why"},
		{"relayed", func(_ *Snapshot, r []Attestation) []Attestation { r[1].ReportID = "01"; return r },
			Fail, "one has answered for another"},
		{"not as it said", func(_ *Snapshot, r []Attestation) []Attestation { r[1].Measurement = "cd"; return r },
			Fail, "its measurement is cd"},
		{"nobody", func(*Snapshot, []Attestation) []Attestation { return nil }, Fail, "no node to ask"},
		{"not all known", func(s *Snapshot, r []Attestation) []Attestation {
			s.Failures[apiContainers] = errors.New("denied")
			return r
		}, Unknown, "not asked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := healthySnapshot()
			c := CheckAttestation(s, test.change(s, healthy()))
			if c.Status != test.want || !strings.Contains(c.Detail, test.detail) {
				t.Errorf("%s: %s, want %s with %q", c.Status, c.Detail, test.want, test.detail)
			}
		})
	}
}

// TestRunning: what is stopped is not asked; what EC2 was not asked about is.
func TestRunning(t *testing.T) {
	s := healthySnapshot()
	s.Nodes[0].Instance.State = "stopped"
	if got := s.Running(); !slices.Equal(got, []string{"i-2"}) {
		t.Errorf("to be asked: %q", got)
	}
	s.Failures[apiInstances] = errors.New("denied")
	s.Nodes[0].Instance = nil
	if got := s.Running(); len(got) != 2 {
		t.Errorf("to be asked: %q", got)
	}
}
