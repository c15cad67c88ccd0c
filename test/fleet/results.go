package fleet

import (
	"strings"
	"time"
)

// results are all that docs/scale.md shows.
type results struct {
	secrets []secretsCase
	kept    SecretsResult // a push whose command waits in its place, as it once did
	holds   []holdCase
	issuing []issuingCase
	boots   []bootsCase
	costs   []costCase
}

type secretsCase struct {
	name   string
	nodes  int
	result SecretsResult
}

// short is the name in a picture.
func (c secretsCase) short() string { return strings.TrimPrefix(c.name, "rotation, ") }

type holdCase struct {
	hold   time.Duration
	nodes  int
	result SecretsResult
}

type issuingCase struct {
	name   string
	nodes  int
	outage time.Duration
	result IssuingResult
}

type bootsCase struct {
	name          string
	nodes         int
	issues, young bool
	result        BootsResult
}

type costCase struct {
	nodes               int
	calls, certificates float64 // a month
}

// The names of cases that tests ask for.
const (
	ordinarily    = "nothing happens"
	lastTenth     = "the certificate in its last tenth"
	byPolls       = "rotation, by polls alone"
	bySchedule    = "rotation, scheduled in Secrets Manager"
	byPush        = "rotation, with push"
	withoutRegion = "half an hour without the region, and a rotation in it"
	aDay          = "an ordinary day"
	anew          = "an entry changed on all nodes at once"
)

// simulate runs everything.
func simulate(push Push) results {
	var r results
	const month = 30 * 24
	for _, s := range []struct {
		name  string
		fleet func(int) Secrets
	}{
		{ordinarily, ordinary}, {lastTenth, aging}, {byPolls, polled}, {bySchedule, scheduled},
		{byPush, func(n int) Secrets { return pushed(n, push) }}, {withoutRegion, outage},
	} {
		for _, n := range fleets {
			r.secrets = append(r.secrets, secretsCase{s.name, n, s.fleet(n).Run()})
		}
	}
	kept := push
	kept.Keeps = true
	r.kept = pushed(fleets[2], kept).Run()
	for _, hold := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
		p := push
		p.Hold = [2]time.Duration{hold / 2, hold * 3 / 2}
		r.holds = append(r.holds, holdCase{hold, fleets[2], pushed(fleets[2], p).Run()})
	}
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		r.issuing = append(r.issuing, issuingCase{aDay, n, 0, issuingFleet(n).Run()})
	}
	for _, length := range []time.Duration{time.Hour, 3 * time.Hour, 6 * time.Hour} {
		for _, n := range []int{10, 1000, 10_000, 100_000} {
			r.issuing = append(r.issuing,
				issuingCase{words(length) + " without the CA", n, length, withoutCA(n, length).Run()})
		}
	}
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		r.issuing = append(r.issuing, issuingCase{anew, n, 0, reconfigured(n).Run()})
	}
	for _, b := range []struct {
		name          string
		issues, young bool
	}{
		{"Secrets Manager, a stack that stands", false, false}, {"Secrets Manager, a new stack", false, true},
		{"Private CA, a stack that stands", true, false}, {"Private CA, a new stack", true, true},
	} {
		for _, n := range fleets {
			if b.young && n > nodesOfCluster {
				continue // no stack is that large
			}
			r.boots = append(r.boots, bootsCase{b.name, n, b.issues, b.young, boots(n, b.issues, b.young).Run()})
		}
	}
	for _, n := range fleets {
		c := costCase{nodes: n}
		for _, s := range r.secrets {
			switch {
			case s.nodes == n && s.name == ordinarily:
				c.calls += float64(s.result.Describe.Calls) / ordinary(n).End.Hours() * month
			case s.nodes == n && s.name == bySchedule:
				c.calls += float64(s.result.Get.Calls) // one rotation a month
			}
		}
		for _, s := range r.issuing {
			if s.nodes == n && s.name == aDay {
				c.certificates = float64(s.result.Issued) / issuingFleet(n).End.Hours() * month
			}
		}
		r.costs = append(r.costs, c)
	}
	return r
}
