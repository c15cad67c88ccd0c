package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

// problem returns the one entry of a health document that does not pass.
func problem(t *testing.T, h *client.Health) client.NamedCheck {
	t.Helper()
	list := h.Problems()
	if len(list) != 1 {
		t.Fatalf("%d problems, want 1: %v", len(list), list)
	}
	return list[0]
}

// Every state that is not good has a next step, with the real names filled in, and no step is there for nothing.
func TestEveryProblemHasANextStep(t *testing.T) {
	now := time.Now()
	ends := now.Add(time.Hour).UTC()
	used := make(map[string]bool)
	check := func(c client.NamedCheck) {
		t.Helper()
		if c.Next == "" || strings.ContainsAny(c.Next, "{}") {
			t.Errorf("the next step of %s %q: %q is %q", c.Name, c.ComponentID, c.Output, c.Next)
		}
	}
	for _, name := range []string{"node/mtls", "file:///etc/x.pem", "issue/node"} {
		s := &client.Publication{Expiry: []client.Expiry{
			{File: "ca.crt", Secret: name, NotBefore: now.AddDate(-1, 0, 0), NotAfter: ends.AddDate(0, 1, 0)},
			{File: "client.crt", Secret: name, NotBefore: now.AddDate(-1, 0, 0), NotAfter: ends},
			{File: "server.crt", Secret: "other", NotBefore: now.AddDate(-1, 0, 0), NotAfter: now},
		}}
		for _, state := range client.SecretStates() {
			if state == client.SecretCurrent {
				continue
			}
			h := new(client.Health)
			secret := client.SecretStatus{Name: name, State: state, Error: "describe secret " + name + ": no"}
			secretHealth(h, s, secret, now)
			c := problem(t, h)
			check(c)
			if want := string(state) + ": describe secret: no"; c.Output != want || !c.Until.Equal(ends) {
				t.Errorf("%s %s: %q until %v, want %q until %v", name, state, c.Output, c.Until, want, ends)
			}
		}
		h := new(client.Health)
		expiryHealth(h, s.Expiry[1], now)
		check(problem(t, h))
	}
	for _, state := range client.GuardStates() {
		h := new(client.Health)
		guardHealth(h, "/etc/ecs/mtls", client.GuardStatus{State: state})
		for _, c := range h.Problems() {
			check(c)
		}
	}
	good := []string{"ok", "pending", "no_material"}
	results := found(t, "../../client/status.go", `\tProbe\w+ +(?:ProbeResult )?= "(\w+)"`)
	for _, constant := range results {
		if _, ok := steps["mtls:endpoint "+constant]; !ok && !slices.Contains(good, constant) {
			t.Errorf("an endpoint that is %s has no next step", constant)
		}
		used["mtls:endpoint "+constant] = true
	}
	source := must.Get(os.ReadFile("health.go"))(t, "read health.go")
	source = append(source, must.Get(os.ReadFile("problems.go"))(t, "read problems.go")...)
	for key := range maps.Keys(steps) {
		prefix, _, _ := strings.Cut(key, " ")
		if strings.Contains(string(source), `"`+prefix+` "+`) {
			continue // by a state
		}
		if n := strings.Count(string(source), `"`+key+`"`); n < 2 && !used[key] {
			t.Errorf("no entry leads to the step of %q", key)
		}
	}
}

// found returns the matches of a pattern's groups in a source.
func found(t *testing.T, path, pattern string) (list []string) {
	t.Helper()
	text := must.Get(os.ReadFile(filepath.FromSlash(path)))(t, "read %s", path)
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
		list = append(list, strings.Join(m[1:], ""))
	}
	if len(list) == 0 {
		t.Fatalf("%s has nothing like %s", path, pattern)
	}
	return list
}

// Names of secrets are in the commands of next steps.
func TestStepsHaveNames(t *testing.T) {
	for _, c := range []struct{ problem, thing, want string }{
		{"mtls:expiry secret", "node/mtls", "--secret-id node/mtls "},
		{"mtls:expiry file", "file:///etc/x.pem", "to /etc/x.pem"},
		{"mtls:expiry issue", "issue/node", "--renew node'"},
		{"mtls:guard quarantined", "/etc/ecs/mtls", "changes /etc/ecs/mtls,"},
		{"mtls:endpoint timeout", "enclave.example.com:3000", "on port 3000"},
		{"mtls:endpoint dns", "enclave.example.com:3000", "hosts enclave.example.com'"},
	} {
		if got := step(c.problem, c.thing); !strings.Contains(got, c.want) {
			t.Errorf("the step of %s %s is %q, want %q in it", c.problem, c.thing, got, c.want)
		}
	}
}

// Since is when a status began, whatever its cause is since then; an entry that was gone begins anew.
func TestSince(t *testing.T) {
	var b began
	start := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	for i, c := range []struct {
		status client.HealthStatus // empty: the entry is gone
		output string
		want   int // minutes after the start
	}{
		{client.Pass, "", 0},
		{client.Pass, "", 0},
		{client.Warn, "one", 2},
		{client.Warn, "another", 2},
		{client.Fail, "another", 4},
		{client.Warn, "another", 5},
		{"", "", 0},
		{client.Warn, "another", 7},
	} {
		h := new(client.Health)
		h.Add("n", client.Check{ComponentID: "other", Status: client.Fail})
		own := start.Add(-time.Hour)
		h.Add("m", client.Check{Status: client.Fail, Since: own})
		if c.status != "" {
			h.Add("n", client.Check{ComponentID: "x", Status: c.status, Output: c.output})
		}
		b.note(h, start.Add(time.Duration(i)*time.Minute))
		if got := h.Checks["n"][0].Since; !got.Equal(start) {
			t.Errorf("%d: the other entry is since %v, want %v", i, got, start)
		}
		if got := h.Checks["m"][0].Since; !got.Equal(own) {
			t.Errorf("%d: an entry that knows it is since %v, want %v", i, got, own)
		}
		if c.status == "" {
			continue
		}
		if got, want := h.Checks["n"][1].Since, start.Add(time.Duration(c.want)*time.Minute); !got.Equal(want) {
			t.Errorf("%d: %s since %v, want %v", i, c.status, got, want)
		}
	}
}

// Every verdict that is no pass has advice, which knows the last report from later errors of the device.
func TestVerdictsHaveAdvice(t *testing.T) {
	for _, code := range append(found(t, "../appraise/verdict.go", `\tCode\w+ += "([a-z_]+)"`),
		appraise.CodeUnsupportedVersion) {
		if attest.Advice(fmt.Errorf("ask: %w", &appraise.Rejection{Code: code})) == "" {
			t.Errorf("%s has no advice", code)
		}
	}
	advised := source.Advise(errors.New("no region"), "set it")
	if cause, next := explain(advised); cause != "no region" || next != "set it" {
		t.Errorf("%v is explained as %q and %q", advised, cause, next)
	}
	if cause, next := explain(attest.ErrThrottled); cause != attest.ErrThrottled.Error() || next == "" {
		t.Errorf("%v is explained as %q and %q", attest.ErrThrottled, cause, next)
	}
	if attest.Advice(errors.New("another")) != "" {
		t.Error("an error of another package has advice about the device")
	}
}
