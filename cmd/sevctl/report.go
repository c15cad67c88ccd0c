package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"sevagent/internal/cli"
	"sevagent/internal/cluster"
	"sevagent/internal/visible"
)

// clusterReport is the JSON output of sevctl verify, and what the table and the page are made from.
type clusterReport struct {
	Cluster string    `json:"cluster"`
	ARN     string    `json:"arn,omitempty"`
	Region  string    `json:"region"`
	Time    time.Time `json:"time"`
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

func (r *clusterReport) table(w io.Writer, colour bool) error {
	paint := func(status cluster.Status, text string) cli.Sequence {
		text = cli.Visible(text)
		if colour {
			text = colours[status] + text + "\033[0m"
		}
		return cli.Sequence(text)
	}
	var b bytes.Buffer
	wide := 0
	for _, c := range r.Checks {
		wide = max(wide, len(c.ID))
	}
	cli.Fprintf(&b, "cluster %s, %s, %s\n\n", r.Cluster, r.Region, r.Time.Format(time.RFC3339))
	for _, c := range r.Checks {
		status := paint(c.Status, fmt.Sprintf("%-7s", c.Status))
		cli.Fprintf(&b, "%s  %-*s  %s: %s\n", status, wide, c.ID, c.Title, c.Detail)
		indent := strings.Repeat(" ", 9+wide+2)
		if len(c.Resources) > 1 {
			for _, resource := range c.Resources[:min(len(c.Resources), shown)] {
				cli.Fprintf(&b, "%s- %s: %s\n", indent, resource.ID, resource.Detail)
			}
			if more := len(c.Resources) - shown; more > 0 {
				cli.Fprintf(&b, "%s- and %d more, see --format json\n", indent, more)
			}
		}
		if c.Advice != "" {
			cli.Fprintf(&b, "%s> %s\n", indent, c.Advice)
		}
	}
	cli.Fprintf(&b, "\n%s: %s. %d nodes, %d API calls, %.1f s\n",
		paint(r.Status, string(r.Status)), r.summary(), len(r.Nodes), r.Calls.Total, r.Seconds)
	_, err := b.WriteTo(w)
	return err
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
		"or_dash": func(s string) string { return cmp.Or(s, "–") },
		"proof":   func(id string) cluster.Attestation { return attested[id] },
	}).Parse(pageSource)
	if err != nil {
		return err
	}
	var b strings.Builder
	err = page.Execute(&b, struct {
		*clusterReport
		Summary string
	}{r, r.summary()})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, visible.Lines(b.String()))
	return err
}
