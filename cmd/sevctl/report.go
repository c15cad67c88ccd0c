package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/look"
	"sevagent/internal/pattern"
	"sevagent/internal/visible"
)

// clusterReport is the JSON output of sevctl verify, and what the table and the page are made from.
type clusterReport struct {
	Cluster string `json:"cluster"`
	ARN     string `json:"arn,omitempty"`
	Region  string `json:"region"`
	// Stack is there if CloudFormation made the cluster.
	Stack *cluster.Stack `json:"stack,omitempty"`
	Time  time.Time      `json:"time"`
	// Version is sevctl's.
	Version string                 `json:"version"`
	Status  cluster.Status         `json:"status"`
	Counts  map[cluster.Status]int `json:"counts"`
	Checks  []cluster.Check        `json:"checks"`
	// Attestation is there with --attest.
	Attestation []cluster.Attestation `json:"attestation,omitempty"`
	Nodes       []nodeSummary         `json:"nodes"`
	Calls       cluster.Calls         `json:"calls"`
	Seconds     float64               `json:"seconds"`
}

// nodeSummary is a node at a glance.
type nodeSummary struct {
	ID          string `json:"id"`
	Type        string `json:"type,omitempty"`
	Zone        string `json:"zone,omitempty"`
	State       string `json:"state,omitempty"`
	Image       string `json:"image,omitempty"`
	SNP         string `json:"amd_sev_snp,omitempty"`
	BootMode    string `json:"boot_mode,omitempty"`
	InCluster   bool   `json:"in_cluster"`
	InGroup     string `json:"group,omitempty"`
	Agent       string `json:"ecs_agent,omitempty"`
	Attested    string `json:"attested,omitempty"`
	Measurement string `json:"measurement,omitempty"`
	TCB         string `json:"tcb,omitempty"`
}

func newReport(s *cluster.Snapshot) *clusterReport {
	r := &clusterReport{
		Cluster: s.Name, Region: s.Region, Time: s.Time.Truncate(time.Second), Version: cli.Version(),
		Checks: cluster.Evaluate(s), Nodes: []nodeSummary{},
	}
	if s.Cluster != nil {
		r.Cluster, r.ARN = s.Cluster.Name, s.Cluster.ARN
	}
	if s.Stack.Name != "" {
		r.Stack = &s.Stack
	}
	for _, n := range s.Nodes {
		v := nodeSummary{ID: n.ID, Type: n.Type(), InCluster: n.Container != nil}
		if i := n.Instance; i != nil {
			v.Zone, v.State, v.Image, v.SNP, v.BootMode = i.Zone, i.State, i.ImageID, i.SNP, i.BootMode
		}
		if n.Member != nil {
			v.InGroup = n.Member.Group
		}
		if c := n.Container; c != nil {
			v.Agent, v.Attested = c.AgentVersion, c.Attributes[cluster.AttrAttested]
			v.Measurement, v.TCB = c.Attributes[cluster.AttrMeasurement], c.Attributes[cluster.AttrTCB]
		}
		r.Nodes = append(r.Nodes, v)
	}
	return r
}

// finish adds the totals.
func (r *clusterReport) finish(calls cluster.Calls, took time.Duration) {
	r.Calls, r.Seconds = calls, took.Round(time.Millisecond).Seconds()
	r.Status = cluster.Worst(r.Checks)
	r.Counts = map[cluster.Status]int{cluster.Pass: 0, cluster.Warn: 0, cluster.Fail: 0, cluster.Unknown: 0}
	for _, c := range r.Checks {
		r.Counts[c.Status]++
	}
}

// encode writes v as indented JSON.
func encode(w io.Writer, v any) error {
	enc := cli.JSON(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

var colours = map[cluster.Status]string{
	cluster.Pass: "\033[32m", cluster.Warn: "\033[33m", cluster.Fail: "\033[1;31m", cluster.Unknown: "\033[35m",
}

// shown is how many resources of a check the table names; all are in the JSON and on the page.
const shown = 5

// finding is what the table and the page show at a time: a check, or all checks that one failed call left unknown.
type finding struct {
	cluster.Check
	// Unmade are the IDs of these checks.
	Unmade []string
}

// order is how outcomes are shown: what needs somebody first.
var order = []cluster.Status{cluster.Fail, cluster.Unknown, cluster.Warn, cluster.Pass}

// Findings returns the checks in that order, and those that lack the same call as one.
func (r *clusterReport) Findings() []finding {
	var all []finding
	for _, status := range order {
		calls := make(map[string]int) // -> index in all
		for _, c := range r.Checks {
			i, known := calls[c.Call]
			switch {
			case c.Status != status:
			case c.Call == "" || status != cluster.Unknown:
				all = append(all, finding{Check: c})
			case known:
				all[i].Unmade = append(all[i].Unmade, c.ID)
			default:
				calls[c.Call] = len(all)
				all = append(all, finding{Check: c, Unmade: []string{c.ID}})
			}
		}
	}
	return all
}

// Text is what was found, in a sentence. If it is brief, it does not anticipate the list of resources that follows.
func (f finding) Text(brief bool) string {
	if len(f.Unmade) > 1 {
		_, why, found := strings.Cut(f.Detail, "not seen: ") // of a check that was made in part
		if !found {
			why = f.Detail
		}
		return why + "; unknown without it: " + strings.Join(f.Unmade, ", ")
	}
	detail := f.Detail
	if brief && len(f.Resources) > 1 {
		detail, _, _ = strings.Cut(detail, ", such as ")
	}
	return f.Title + ": " + detail
}

// table writes the report for a terminal of width columns, or of any width if that is 0.
func (r *clusterReport) table(w io.Writer, width int, colour bool) error {
	var b bytes.Buffer
	t := table{&b, width, colour, 0}
	for _, c := range r.Checks {
		t.ids = max(t.ids, len(c.ID))
	}
	head := fmt.Sprintf("cluster %s, %s, %s", r.Cluster, r.Region, r.Time.Format(time.RFC3339))
	if r.Stack != nil && r.Stack.Status != "" {
		head += fmt.Sprintf(", stack %s %s", r.Stack.Name, r.Stack.Status)
	}
	t.line(0, 0, head)
	b.WriteString("\n")
	for _, f := range r.Findings() {
		t.finding(f)
	}
	b.WriteString("\n")
	t.paint(r.Status, string(r.Status))
	t.line(len(r.Status), 0, fmt.Sprintf(": %s. %d nodes, %d API calls, %.1f s",
		r.summary(), len(r.Nodes), r.Calls.Total, r.Seconds))
	_, err := b.WriteTo(w)
	return err
}

// table is a table under way.
type table struct {
	*bytes.Buffer
	width  int
	colour bool
	ids    int // width of the column of IDs
}

func (t *table) finding(f finding) {
	const status = len("unknown  ")
	text := status + t.ids + len("  ")
	narrow := t.width > 0 && t.width < 70 // too narrow for a column of IDs
	t.paint(f.Status, fmt.Sprintf("%-7s", f.Status))
	if len(f.Unmade) > 1 {
		cli.Fprintf(t, "  ")
		t.line(status, status, f.Text(true))
	} else if narrow {
		cli.Fprintf(t, "  %s  ", f.ID)
		t.line(status+len(f.ID)+2, status, f.Text(true))
	} else {
		cli.Fprintf(t, "  %-*s  ", t.ids, f.ID)
		t.line(text, text, f.Text(t.width > 0)) // a pipe gets a whole line for each check, as for grep
	}
	indent := text
	if t.width > 0 {
		indent = status // a narrow terminal has no room to waste
	}
	item := func(mark, text string) {
		cli.Fprintf(t, "%*s%s", indent, "", mark)
		t.line(indent+len(mark), indent+len(mark), text)
	}
	if len(f.Resources) > 1 {
		for _, resource := range f.Resources[:min(len(f.Resources), shown)] {
			item("- ", resource.ID+": "+resource.Detail)
		}
		if more := len(f.Resources) - shown; more > 0 {
			item("- ", fmt.Sprintf("and %d more, see --format json", more))
		}
	}
	if f.Advice != "" {
		cli.Fprintf(t, "%*s> ", indent, "")
		t.advice(indent+len("> "), f.Advice)
	}
}

// paint writes a word in the colour of a status.
func (t *table) paint(status cluster.Status, word string) {
	if t.colour {
		cli.Fprintf(t, "%s%s%s", cli.Sequence(colours[status]), word, cli.Sequence("\033[0m"))
	} else {
		cli.Fprintf(t, "%s", word)
	}
}

// line writes text, of which the first line begins at column first and the others at column rest.
func (t *table) line(first, rest int, text string) {
	cli.Fprintf(t, "%s\n", cli.Wrapped(text, t.width, first, rest))
}

// command is a command in an advice.
var command = pattern.New(`'(aws [^']+)'[.;,]?`)

// advice writes an advice from column indent. On a terminal each command has lines of its own, to be copied as it is.
func (t *table) advice(indent int, text string) {
	text = cli.Visible(text)
	if t.width == 0 {
		t.line(indent, indent, text)
		return
	}
	first := true
	prose := func(words string) {
		if words = strings.TrimSpace(words); words == "" {
			return
		}
		if !first {
			cli.Fprintf(t, "%*s", indent, "")
		}
		first = false
		t.line(indent, indent, words)
	}
	for {
		at := command.FindStringSubmatchIndex(text)
		if at == nil {
			prose(text)
			return
		}
		prose(text[:at[0]])
		if first {
			t.WriteString("\n")
			first = false
		}
		// Room for the backslash that continues a command.
		words := cli.Wrapped(text[at[2]:at[3]], t.width-len(` \`), indent+2, indent+4)
		words = cli.Sequence(strings.ReplaceAll(string(words), "\n", " \\\n"))
		cli.Fprintf(t, "%*s%s\n", indent+2, "", words)
		text = text[at[1]:]
	}
}

func (r *clusterReport) summary() string {
	var parts []string
	for _, s := range []cluster.Status{cluster.Pass, cluster.Warn, cluster.Fail, cluster.Unknown} {
		if n := r.Counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(parts, ", ")
}

//go:embed verify.html
var pageSource string

//go:embed verify.js
var pageScript string

// pagePolicy permits the page its own style and script, by their digests.
const pagePolicy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src %s; script-src %s"

// matrix is which nodes did not pass which checks.
type matrix struct {
	Checks []string // those that a node did not pass
	Rows   []matrixRow
}

type matrixRow struct {
	ID     string
	States []cluster.Resource // by check
}

// Matrix returns the nodes by the checks that not all of them pass, or nil if they do.
func (r *clusterReport) Matrix() *matrix {
	var m matrix
	byNode := make(map[string]map[string]cluster.Resource) // node -> check
	for _, n := range r.Nodes {
		byNode[n.ID] = make(map[string]cluster.Resource)
	}
	for _, f := range r.Findings() {
		found := false
		for _, resource := range f.Resources {
			if states, isNode := byNode[resource.ID]; isNode {
				states[f.ID], found = resource, true
			}
		}
		if found {
			m.Checks = append(m.Checks, f.ID)
		}
	}
	if m.Checks == nil {
		return nil
	}
	for _, n := range r.Nodes {
		row := matrixRow{ID: n.ID}
		for _, id := range m.Checks {
			state, ok := byNode[n.ID][id]
			if !ok {
				state.Status = cluster.Pass
			}
			row.States = append(row.States, state)
		}
		m.Rows = append(m.Rows, row)
	}
	return &m
}

func (r *clusterReport) html(w io.Writer) error {
	attested := make(map[string]cluster.Attestation)
	for _, a := range r.Attestation {
		attested[a.ID] = a
	}
	page, err := template.New("verify").Funcs(template.FuncMap{
		"short": func(s string) string {
			if len(s) > 20 {
				return s[:16] + "…"
			}
			return cmp.Or(s, "–")
		},
		"rank":    func(s cluster.Status) int { return slices.Index(order, s) },
		"or_dash": func(s string) string { return cmp.Or(s, "–") },
		"proof":   func(id string) cluster.Attestation { return attested[id] },
	}).Parse(pageSource)
	if err != nil {
		return err
	}
	var b strings.Builder
	err = page.Execute(&b, struct {
		*clusterReport
		Summary, Policy string
		Sheet           template.CSS
		Script          template.JS
	}{
		r, r.summary(), fmt.Sprintf(pagePolicy, look.Source(look.Sheet), look.Source(pageScript)),
		template.CSS(look.Sheet), template.JS(pageScript),
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, visible.Lines(b.String()))
	return err
}
