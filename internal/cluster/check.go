package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Status is the outcome of a check. Unknown is not a pass: AWS did not answer what the check needs.
type Status string

const (
	Pass    Status = "pass"
	Warn    Status = "warn"
	Unknown Status = "unknown"
	Fail    Status = "fail"
)

// rank orders outcomes: the worst finding of a check is its outcome.
var rank = map[Status]int{Pass: 0, Warn: 1, Unknown: 2, Fail: 3}

// Check is the result of checking one property of a cluster.
type Check struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Advice says what to do. It is empty for a check that passed.
	Advice string `json:"advice,omitempty"`
	// Call is the call whose failure makes the check unknown.
	Call string `json:"call,omitempty"`
	// Resources are those that did not pass, worst first.
	Resources []Resource `json:"resources,omitempty"`

	// good is the detail if every resource passes, and of their number.
	good string
	of   int
}

// Resource is one thing that did not pass a check.
type Resource struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
}

// Evaluate runs all checks. A cluster that does not exist, or was deleted, gets only the check that says so.
func Evaluate(s *Snapshot) []Check {
	run := checks
	if s.Failures[apiClusters] == nil && (s.Cluster == nil || s.Cluster.Status == "INACTIVE") {
		run = checks[:1]
	}
	var results []Check
	for _, c := range run {
		results = append(results, c.evaluate(s))
	}
	return results
}

// All lists the checks by ID and title. CheckAttestation is not among them.
func All() []Check {
	var all []Check
	for _, c := range checks {
		all = append(all, Check{ID: c.id, Title: c.title})
	}
	return all
}

// Worst is the worst of several outcomes.
func Worst(checks []Check) Status {
	worst := Pass
	for _, c := range checks {
		if rank[c.Status] > rank[worst] {
			worst = c.Status
		}
	}
	return worst
}

// property is a row of the table of checks.
type property struct {
	id, title string
	// about is what the check looks at, which decides whose answers it needs; calls are those that it needs besides.
	about subject
	calls []string
	// things is what it counts: "3 of 8 things".
	things string
	// advice is for findings, unless find advises by what it finds. See fill.
	advice string
	// find looks for mistakes. It sets good and of and adds resources, or it concludes.
	find func(*Snapshot, *Check)
}

// subject is what a check looks at.
type subject int

const (
	// The zero subject is the cluster, or the region: the check names all the calls that it needs.
	_ subject = iota
	// The groups that exist, and their templates.
	ofGroups
	// The nodes as container instances.
	ofContainers
	// The nodes as EC2 instances.
	ofInstances
)

// needs lists the calls without whose answers a check of this subject is unknown.
func (b subject) needs(s *Snapshot) []string {
	switch b {
	case ofGroups:
		return []string{apiClusters, apiProviders, apiGroups}
	case ofContainers:
		return []string{apiContainers, apiContainer}
	case ofInstances:
		return append(s.listing(), apiInstances)
	}
	return nil
}

// listing is what it takes to know the nodes. The cluster or the groups suffice, so that one denied call does not hide
// what the other side shows; that the two agree is the check membership.
func (s *Snapshot) listing() []string {
	grouped := func(n Node) bool { return n.Member != nil }
	if _, err := s.unlisted(); err == nil || slices.ContainsFunc(s.Nodes, grouped) {
		return nil
	}
	return []string{apiContainers, apiContainer}
}

// unlisted returns the call that failed to list the cluster's nodes, and why, or no error.
func (s *Snapshot) unlisted() (api string, err error) {
	for _, api := range []string{apiContainers, apiContainer} {
		if err := s.Failures[api]; err != nil {
			return api, err
		}
	}
	return "", nil
}

func (p *property) evaluate(s *Snapshot) Check {
	c := Check{ID: p.id, Title: p.title, Status: Pass}
	for _, api := range slices.Concat(p.about.needs(s), p.calls) {
		if err := s.Failures[api]; err != nil {
			c.conclude(Unknown, s.reason(api, err), s.remedy(api, err))
			c.Call = api
			return c
		}
	}
	exists := func(g Group) bool { return !g.Missing }
	if p.about == ofGroups && !slices.ContainsFunc(s.Groups, exists) {
		c.conclude(Unknown, noGroups, "See the checks capacity-providers and auto-scaling-group.")
		return c
	}
	if p.find(s, &c); c.Detail == "" {
		p.summarize(s, &c)
	}
	c.Advice = s.fill(c.Advice, &c)
	return c
}

const noGroups = "no capacity provider of the cluster leads to an Auto Scaling group"

// add records a finding about one resource.
func (c *Check) add(status Status, id, format string, args ...any) {
	c.Resources = append(c.Resources, Resource{ID: id, Status: status, Detail: fmt.Sprintf(format, args...)})
}

// advise adds to the advice what to do about a finding: words, once for each kind of finding, and the rest, which names
// the first.
func (c *Check) advise(words string, rest ...string) {
	if strings.Contains(c.Advice, words) {
		return
	}
	if c.Advice != "" {
		c.Advice += " "
	}
	c.Advice += words + strings.Join(rest, "")
}

// conclude sets the outcome as a whole, for what is not about one resource.
func (c *Check) conclude(status Status, detail, advice string) {
	c.Status, c.Detail, c.Advice = status, detail, advice
}

// summarize derives the outcome of a check from its findings.
func (p *property) summarize(s *Snapshot, c *Check) {
	slices.SortStableFunc(c.Resources, func(a, b Resource) int {
		return cmp.Or(cmp.Compare(rank[b.Status], rank[a.Status]), strings.Compare(a.ID, b.ID))
	})
	if len(c.Resources) > 0 {
		first := c.Resources[0]
		detail := first.ID + ": " + first.Detail
		if n := len(c.Resources); n > 1 {
			detail = fmt.Sprintf("%d of %d %s, such as %s", n, max(n, c.of), p.things, detail)
		}
		c.conclude(first.Status, detail, cmp.Or(c.Advice, p.advice))
		return
	}
	if c.Detail = c.good; c.of == 0 {
		c.Detail, c.Advice = "there are no "+p.things, ""
	}
	// Nothing is wrong with the nodes that the groups show, but there may be others.
	if api, err := s.unlisted(); p.about == ofInstances && err != nil {
		c.conclude(Unknown, c.Detail+"; there may be nodes that were not seen: "+s.reason(api, err), s.remedy(api, err))
		c.Call = api
	}
}
