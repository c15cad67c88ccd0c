package fleet

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/must"
)

var update = flag.Bool("update", false, "rewrite the tables and pictures of docs/scale.md")

const root = "../.."

var simulated = sync.OnceValues(func() (results, error) {
	command, err := RefreshCommand(root)
	if err != nil {
		return results{}, err
	}
	push, err := PushOf(command)
	if err != nil {
		return results{}, err
	}
	return simulate(push), nil
})

// TestSecrets: a hundred thousand nodes stay below half of Secrets Manager's quotas, whatever happens, and have a new
// version within five minutes where a push or a schedule brings it, and within the longest poll otherwise.
func TestSecrets(t *testing.T) {
	r := must.Get(simulated())(t, "simulate")
	longest := config.Default().MTLS.PollInterval * 6 / 5
	within := map[string][2]time.Duration{ // 99 %, all
		byPolls:       {longest, longest + time.Second},
		bySchedule:    {40 * time.Second, 40 * time.Second},
		byPush:        {5 * time.Minute, 5 * time.Minute},
		withoutRegion: {5 * time.Minute, 5*time.Minute + time.Second},
	}
	for _, c := range r.secrets {
		for _, s := range []*Service{&c.result.Describe, &c.result.Get} {
			if s.Share() > 0.5 || s.Throttled > 0 {
				t.Errorf("%s of %d nodes: %.0f calls of %s a second, %.0f %% of the quota, and %d throttled; "+
					"want half of it at most", c.name, c.nodes, s.Rate(), s.Name, 100*s.Share(), s.Throttled)
			}
		}
		bounds, rotates := within[c.name]
		if !rotates {
			continue
		}
		for i, part := range []float64{0.99, 1} {
			if at, ok := after(c.result.Have, c.nodes, part); !ok || at > bounds[i] {
				t.Errorf("%s of %d nodes: %.0f %% have it after %v, want %v at most",
					c.name, c.nodes, 100*part, at, bounds[i])
			}
		}
	}
}

// TestPushKeepsNoPlace: a command that waits itself keeps one of Run Command's places, and a cluster of full size is
// then served by its polls alone.
func TestPushKeepsNoPlace(t *testing.T) {
	r := must.Get(simulated())(t, "simulate")
	if at, _ := after(r.kept.Have, fleets[2], 0.99); at < 5*time.Minute {
		t.Errorf("99 %% have it after %v, although the command waits in its place", at)
	}
	old := must.Get(PushOf("sleep $(shuf -i 0-60 -n 1)"))(t, "read a command")
	if !old.Keeps || old.Splay != time.Minute {
		t.Errorf("a command that sleeps for a minute is read as %+v", old)
	}
}

// TestIssuing: a hundred thousand nodes with certificates of a day stay below half of Private CA's quotas in ordinary
// times and after three hours without it, and cause no throttling after six; no certificate expires.
func TestIssuing(t *testing.T) {
	r := must.Get(simulated())(t, "simulate")
	for _, c := range r.issuing {
		limit := 0.5
		switch {
		case c.name == anew && c.nodes > 2*nodesOfCluster:
			continue // docs/scale.md says so
		case c.nodes > 10_000 && c.outage > 3*time.Hour:
			limit = 1
		}
		for _, s := range []*Service{&c.result.Issue, &c.result.Collect} {
			if s.Share() > limit || s.Throttled > 0 {
				t.Errorf("%s, %d nodes: %.1f calls of %s a second, %.0f %% of the quota, and %d throttled; "+
					"want %.0f %% at most", c.name, c.nodes, s.Rate(), s.Name, 100*s.Share(), s.Throttled, 100*limit)
			}
		}
		if c.result.Left < time.Hour {
			t.Errorf("%s, %d nodes: a certificate had %v left", c.name, c.nodes, c.result.Left)
		}
		if n := len(c.result.Overdue); n > 0 && c.result.Overdue[n-1] > 2*time.Hour {
			t.Errorf("%s, %d nodes: the last overdue certificate came after %v",
				c.name, c.nodes, c.result.Overdue[n-1])
		}
	}
}

// TestBoots: as many nodes as EC2 launches at once exceed the quotas of ECS and Private CA, which are not made for
// that, and have joined within two minutes all the same.
func TestBoots(t *testing.T) {
	r := must.Get(simulated())(t, "simulate")
	for _, c := range r.boots {
		limit := 2 * time.Minute
		if c.young {
			limit += boots(c.nodes, c.issues, true).Listed
		}
		if at, ok := after(c.result.Joined, c.nodes, 1); !ok || at > limit {
			t.Errorf("%s, %d nodes: the last has joined %v after its launch, want %v at most",
				c.name, c.nodes, at, limit)
		}
	}
}

// TestCosts: sevagent status estimates what the simulation counts.
func TestCosts(t *testing.T) {
	r := must.Get(simulated())(t, "simulate")
	for _, c := range r.costs {
		estimated := float64(c.nodes * mtls.Estimate(1, config.Default().MTLS.PollInterval).CallsPerMonth)
		if ratio := estimated / c.calls; ratio < 0.98 || ratio > 1.05 {
			t.Errorf("%d nodes make %.0f calls a month, and status estimates %.0f", c.nodes, c.calls, estimated)
		}
	}
}

// TestSeed: the same seed gives the same results, another one others.
func TestSeed(t *testing.T) {
	push := must.Get(PushOf("systemd-run sleep $(shuf -i 0-60 -n 1)"))(t, "read a command")
	f := pushed(1000, push)
	first := f.Run()
	if again := f.Run(); !reflect.DeepEqual(first.Have, again.Have) || first.Describe.Calls != again.Describe.Calls {
		t.Error("the same seed gives other results")
	}
	f.Seed++
	if other := f.Run(); reflect.DeepEqual(first.Have, other.Have) {
		t.Error("another seed gives the same results")
	}
}

// TestQueue: events come in the order of their time.
func TestQueue(t *testing.T) {
	var q queue
	for i := range 5000 {
		q.push(event{at: moment(i * 7919 % 1009), node: int32(i)})
	}
	last := event{at: -1}
	for range 5000 {
		e := q.pop()
		if before(e, last) {
			t.Fatalf("%+v after %+v", e, last)
		}
		last = e
	}
}

// TestQuota: a token bucket grants its burst, then its rate.
func TestQuota(t *testing.T) {
	s := Service{Quota: Quota{Rate: 10, Burst: 20}}
	for i := range 1000 { // a hundred a second for ten seconds
		_ = s.call(moment(i) * 10 * time.Millisecond)
	}
	if granted := s.Calls - s.Throttled; granted < 119 || granted > 120 {
		t.Errorf("%d of 1,000 calls granted in ten seconds, want 20 and 10 a second", granted)
	}
	if s.Second != 100 || s.Rate() != 100 {
		t.Errorf("%d calls in the busiest second, %v a second in the busiest ten", s.Second, s.Rate())
	}
}

// TestPage: docs/scale.md has what the simulation gives.
func TestPage(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other processors round a multiplication with an addition once and not twice, so that random numbers move")
	}
	r := must.Get(simulated())(t, "simulate")
	file := filepath.Join(root, "docs", "scale.md")
	page := string(must.Get(os.ReadFile(file))(t, "read the page"))
	for name, want := range r.tables() {
		begin, end := "<!-- "+name+" -->\n", "<!-- end -->"
		head, rest, ok := strings.Cut(page, begin)
		got, tail, ended := strings.Cut(rest, end)
		if !ok || !ended {
			t.Errorf("%s has no place for the table %q", file, name)
			continue
		}
		if *update {
			page = head + begin + want + end + tail
		} else if got != want {
			t.Errorf("%s: the table %q is not what the simulation gives; make scale rewrites it "+
				"(-page, +simulation):\n%s", file, name, cmp.Diff(got, want))
		}
	}
	for name, want := range r.pictures() {
		picture := filepath.Join(root, "docs", "scale", name)
		if *update {
			must.Do(t, os.MkdirAll(filepath.Dir(picture), 0o755), "make the folder")
			must.Do(t, os.WriteFile(picture, []byte(want), 0o644), "write a picture")
		} else if got := must.Get(os.ReadFile(picture))(t, "read a picture"); string(got) != want {
			t.Errorf("%s is not what the simulation gives; make scale rewrites it", picture)
		}
		if !strings.Contains(page, "(scale/"+name+")") {
			t.Errorf("%s does not show %s", file, picture)
		}
	}
	if *update {
		must.Do(t, os.WriteFile(file, []byte(page), 0o644), "write the page")
	}
}
