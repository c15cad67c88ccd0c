package fleet

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"sevagent/internal/config"
	"sevagent/internal/mtls"
)

// table is one of docs/scale.md.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t table) String() string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(t.head)
	b.WriteString("|" + strings.Repeat("---|", len(t.head)) + "\n")
	for _, r := range t.rows {
		line(r)
	}
	return b.String()
}

// number writes a number with at most one digit after the point, and commas.
func number(v float64) string {
	if v < 10 {
		return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	}
	s := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func whole(n int) string { return number(float64(n)) }

func percent(part float64) string {
	if part > 0 && part < 0.01 {
		return "< 1 %"
	}
	return fmt.Sprintf("%.0f %%", 100*part)
}

// words writes a duration for people.
func words(d time.Duration) string {
	d = d.Round(time.Second)
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	var parts []string
	if h > 0 {
		parts = append(parts, fmt.Sprintf("%d h", h))
	}
	if m > 0 {
		parts = append(parts, fmt.Sprintf("%d min", m))
	}
	if h == 0 && s > 0 || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("%d s", s))
	}
	return strings.Join(parts, " ")
}

// after returns when a part of a fleet is done, of times in order; false: never.
func after(times []time.Duration, of int, part float64) (time.Duration, bool) {
	n := int(math.Ceil(float64(of)*part - 1e-9))
	if n < 1 || n > len(times) {
		return 0, false
	}
	return times[n-1], true
}

// thirds writes when 50, 99 and 100 % are done.
func thirds(times []time.Duration, of int) (cells []string) {
	for _, part := range []float64{0.5, 0.99, 1} {
		cell := "-"
		if at, ok := after(times, of, part); ok {
			cell = words(at)
		}
		cells = append(cells, cell)
	}
	return cells
}

// rate writes the busiest ten seconds of a service, and what part of its quota they are.
func rate(s *Service) string {
	if s.Quota.Rate == 0 || s.Calls == 0 {
		return number(s.Rate())
	}
	return number(s.Rate()) + " (" + percent(s.Share()) + ")"
}

// tables returns the tables of docs/scale.md, by the names of their places there.
func (r results) tables() map[string]string {
	all := make(map[string]string)

	t := table{head: []string{"", "nodes", "DescribeSecret a second", "GetSecretValue a second", "throttled",
		"50 %", "99 %", "all"}}
	for _, s := range r.secrets {
		cells := []string{s.name, whole(s.nodes), rate(&s.result.Describe), rate(&s.result.Get),
			whole(s.result.Describe.Throttled + s.result.Get.Throttled)}
		t.add(append(cells, thirds(s.result.Have, s.nodes)...)...)
	}
	all["secrets"] = t.String()

	t = table{head: []string{"a command holds its place for", "50 %", "99 %", "all"}}
	for _, h := range r.holds {
		t.add(append([]string{words(h.hold)}, thirds(h.result.Have, h.nodes)...)...)
	}
	all["holds"] = t.String()

	t = table{head: []string{"", "nodes", "IssueCertificate a second", "GetCertificate a second", "throttled",
		"overdue", "50 %", "99 %", "all", "least that was left"}}
	for _, s := range r.issuing {
		n := len(s.result.Overdue)
		cells := []string{s.name, whole(s.nodes), rate(&s.result.Issue), rate(&s.result.Collect),
			whole(s.result.Issue.Throttled + s.result.Collect.Throttled), whole(n)}
		t.add(append(append(cells, thirds(s.result.Overdue, n)...), words(s.result.Left))...)
	}
	all["issuing"] = t.String()

	shown := []string{"GetCertificateAuthorityCertificate", "IssueCertificate", "DescribeClusters",
		"RegisterContainerInstance", "SignalResource"}
	t = table{head: slices.Concat([]string{"", "nodes"}, shown, []string{"throttled", "50 %", "99 %", "all"})}
	for _, s := range r.boots {
		cells, throttled := []string{s.name, whole(s.nodes)}, 0
		for _, name := range shown {
			cells = append(cells, "-")
			for _, v := range s.result.Services {
				if v.Name == name {
					cells[len(cells)-1] = rate(v)
				}
			}
		}
		for _, v := range s.result.Services {
			throttled += v.Throttled
		}
		t.add(append(append(cells, whole(throttled)), thirds(s.result.Joined, s.nodes)...)...)
	}
	all["boots"] = t.String()

	t = table{head: []string{"nodes behind one address", "requests", "refused", "50 %", "99 %", "all"}}
	for _, n := range []int{10, 100, 1000} {
		have, kds := fromKDS(n)
		t.add(append([]string{whole(n), whole(kds.Calls), whole(kds.Throttled)}, thirds(have, n)...)...)
	}
	all["kds"] = t.String()

	t = table{head: []string{"nodes", "calls a month to Secrets Manager", "USD a month", "as status estimates it",
		"certificates a month of Private CA, days of 1", "USD a month", "of 7 days", "USD a month"}}
	for _, c := range r.costs {
		estimate := mtls.Estimate(1, config.Default().MTLS.PollInterval).USDPerMonth * float64(c.nodes)
		t.add(whole(c.nodes), number(c.calls), number(c.calls*usdPerCall+usdPerSecret), number(estimate+usdPerSecret),
			number(c.certificates), number(usdPerCA+c.certificates*usdPerCertificate),
			number(c.certificates/7), number(usdPerCA+c.certificates/7*usdPerCertificate))
	}
	all["costs"] = t.String()
	return all
}

// Prices of AWS's list for commercial regions, which docs/keys.md has, too: Secrets Manager, and a CA in short-lived
// mode.
const (
	usdPerSecret      = 0.40
	usdPerCall        = 0.05 / 10_000
	usdPerCA          = 50
	usdPerCertificate = 0.058
)

// pictures returns the pictures of docs/scale.md, by the names of their files.
func (r results) pictures() map[string]string {
	all := make(map[string]string)
	share := chart{
		title: "A rotation of 100,000 nodes: how many have the new certificate", wide: 6, high: 100,
		x: "minutes since the new version is current", y: "% of the nodes",
		marks: []mark{{"99 %", 99}},
	}
	kept := secretsCase{name: "push, if the command waited itself", nodes: fleets[2], result: r.kept}
	for _, s := range append(slices.Clone(r.secrets), kept) {
		if s.nodes != fleets[2] || len(s.result.Have) == 0 || s.result.Describe.Failed > 0 {
			continue
		}
		l := line{name: s.short()}
		for sec, have := 0, 0; sec <= 360; sec += 3 {
			for have < len(s.result.Have) && s.result.Have[have] <= time.Duration(sec)*time.Second {
				have++
			}
			l.points = append(l.points, [2]float64{float64(sec) / 60, 100 * float64(have) / float64(s.nodes)})
		}
		share.lines = append(share.lines, l)
	}
	all["rotation.svg"] = share.svg()

	outage := chart{
		title: "Half an hour without the region's APIs, 100,000 nodes", wide: 45, high: 4000,
		x: "minutes", y: "calls a second (quota: 40,000)",
	}
	for _, s := range r.secrets {
		if s.nodes == fleets[2] && s.result.Describe.Failed > 0 {
			outage.lines = append(outage.lines,
				line{"DescribeSecret", s.result.Describe.series(0, 44*time.Minute, time.Minute)},
				line{"GetSecretValue", s.result.Get.series(0, 44*time.Minute, time.Minute)})
		}
	}
	all["outage.svg"] = outage.svg()

	ca := chart{
		title: "After an outage of the CA, 100,000 nodes: calls of IssueCertificate", wide: 180, high: 30,
		x: "minutes since the CA answers again", y: "calls a second",
		marks: []mark{{"quota: 25", 25}, {"half of it", 12.5}},
	}
	for _, s := range r.issuing {
		if s.nodes == fleets[2] && s.outage > 0 {
			begin := 6*time.Hour + s.outage
			ca.lines = append(ca.lines, line{"after " + words(s.outage),
				s.result.Issue.series(begin, begin+3*time.Hour, time.Minute)})
		}
	}
	all["ca.svg"] = ca.svg()

	clusters := chart{
		title: "1,000 nodes launched at once: calls of DescribeClusters", wide: 200, high: 200,
		x: "seconds since the launch", y: "calls a second", marks: []mark{{"quota: 20", 20}},
	}
	for _, s := range r.boots {
		if s.nodes != fleets[1] || s.issues {
			continue
		}
		for _, v := range s.result.Services {
			if v.Name == "DescribeClusters" {
				clusters.lines = append(clusters.lines,
					line{strings.TrimPrefix(s.name, "Secrets Manager, "), v.series(0, 200*time.Second, time.Second)})
			}
		}
	}
	all["boots.svg"] = clusters.svg()
	return all
}

// series returns the calls a second between two moments, over time in a unit from the first on.
func (s *Service) series(from, to moment, unit time.Duration) (points [][2]float64) {
	for i := int(from / s.bin); i < len(s.counts) && moment(i)*s.bin < to; i++ {
		at := float64(moment(i)*s.bin-from) / float64(unit)
		points = append(points, [2]float64{at, float64(s.counts[i]) / s.bin.Seconds()})
	}
	return points
}
