package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/config"
)

// screen is text for people under way: one screen, what is wrong first.
type screen struct {
	io.Writer
	width  int // of a line; 0: any
	colour bool
	now    time.Time
}

// newScreen returns a screen for a command's output.
func newScreen(out io.Writer, now time.Time) screen {
	return screen{out, cli.Width(out), cli.Colours(out), now}
}

// label is the width of the column in which lines say what they are about.
const label = len("certificates  ")

var colours = map[client.HealthStatus]string{
	client.Pass: "\033[32m", client.Warn: "\033[33m", client.Fail: "\033[1;31m",
}

// paint writes a word in the colour of a status.
func (s screen) paint(status client.HealthStatus, word string) {
	if !s.colour {
		cli.Fprintf(s, "%s", word)
		return
	}
	cli.Fprintf(s, "%s%s%s", cli.Sequence(colours[status]), word, cli.Sequence("\033[0m"))
}

// line writes a line about something. Without a name it continues the one before.
func (s screen) line(name, format string, args ...any) {
	cli.Fprintf(s, "%-*s%s\n", label, name, cli.Wrapped(oneLine(fmt.Sprintf(format, args...)), s.width, label, label))
}

// oneLine joins several reasons, which stand on lines of their own.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// status writes all that is known of a node.
func (s screen) status(n *client.Status) {
	head := "sevagent " + n.Version
	if n.Attestation.InstanceID != "" {
		head += " on " + n.Attestation.InstanceID
	}
	cli.Fprintf(s, "%s\n", cli.Wrapped(head+", started "+s.ago(n.StartedAt), s.width, 0, 2))
	s.summary(&n.Health)
	fmt.Fprintln(s)
	if problems := n.Health.Problems(); len(problems) > 0 {
		for _, c := range problems {
			s.problem(c)
		}
		fmt.Fprintln(s)
	}
	s.certificates(&n.MTLS)
	s.attestation(&n.Attestation)
	s.secrets(&n.MTLS)
	s.endpoints(n.Endpoints)
	s.readers(&n.Readers)
	if c := n.MTLS.Cost; c.CallsPerMonth > 0 {
		s.line("cost", "about %d calls of Secrets Manager, USD %.2f a month", c.CallsPerMonth, c.USDPerMonth)
	}
}

// summary says whether the node is ready, and what there is to read below.
func (s screen) summary(h *client.Health) {
	count := make(map[client.HealthStatus]int)
	for _, c := range h.Problems() {
		count[c.Status]++
	}
	word := "ready"
	if !h.Ready() {
		word = "NOT READY"
	}
	s.paint(h.Status, word)
	before := ": "
	for _, kind := range []struct {
		status    client.HealthStatus
		one, many string
	}{{client.Fail, "failure", "failures"}, {client.Warn, "warning", "warnings"}} {
		if n := count[kind.status]; n > 0 {
			name := kind.many
			if n == 1 {
				name = kind.one
			}
			cli.Fprintf(s, "%s%d %s", cli.Sequence(before), n, name)
			before = ", "
		}
	}
	fmt.Fprintln(s)
}

// problem writes an entry of the health document that does not pass: what, why, since when, until when, and what to do.
func (s screen) problem(c client.NamedCheck) {
	const indent = len("warn  ")
	write := func(mark, text string) {
		if text != "" {
			at := indent + len(mark)
			cli.Fprintf(s, "%*s%s%s\n", indent, "", mark, cli.Wrapped(oneLine(text), s.width, at, at))
		}
	}
	s.paint(c.Status, fmt.Sprintf("%-4s", c.Status))
	cli.Fprintf(s, "  %s\n", cli.Wrapped(strings.TrimSpace(c.Name+" "+c.ComponentID), s.width, indent, indent))
	write("", c.Output)
	var times []string
	if !c.Since.IsZero() {
		times = append(times, "since "+s.passed(c.Since, ""))
	}
	if left := c.Until.Sub(s.now); !c.Until.IsZero() && left > 0 {
		times = append(times, fmt.Sprintf("what works lasts until %s (%s)", date(c.Until), cli.Duration(left)))
	}
	write("", strings.Join(times, "; "))
	write("> ", c.Next)
}

// checks writes all entries of a health document, what does not pass first.
func (s screen) checks(h *client.Health) {
	for _, c := range h.Problems() {
		s.problem(c)
	}
	for _, name := range slices.Sorted(maps.Keys(h.Checks)) {
		for _, c := range h.Checks[name] {
			if c.Status == client.Pass {
				s.paint(c.Status, "pass")
				cli.Fprintf(s, "  %s\n", strings.TrimSpace(name+" "+c.ComponentID))
			}
		}
	}
}

// certificates writes what is published, and how long it lasts.
func (s screen) certificates(m *client.Publication) {
	if m.Generation == "" {
		s.line("certificates", "none published in %s", m.Path)
		return
	}
	s.line("certificates", "%s, published %s", m.Path, s.ago(m.PublishedAt))
	for _, e := range m.Expiry {
		subject := e.Subject
		if i := slices.IndexFunc(m.Certificates, func(c client.Certificate) bool { return c.File == e.File }); i >= 0 {
			subject = m.Certificates[i].Subject // the leaf's
		}
		s.line("", "%-10s  %s  %s", e.File, s.life(e.NotBefore, e.NotAfter), subject)
	}
	for _, o := range m.CAOverlap {
		s.line("", "ca.crt keeps %s until %s", o.Subject, date(o.Until))
	}
	for _, text := range m.Warnings {
		s.line("", "note: %s", text)
	}
	for _, c := range m.Consumers {
		s.line("consumer", "%s: %s, guard %s", c.Name, strings.Join(c.Files, " "), c.Guard.State)
	}
	immutable := "immutable"
	if !m.Guard.Immutable {
		immutable = "not immutable"
	}
	s.line("guard", "%s, %s, %d repairs", m.Guard.State, immutable, m.Guard.Repairs)
}

// life returns what is left of something's life, as a bar and in words.
func (s screen) life(begin, end time.Time) string {
	const cells = 20
	left, life := end.Sub(s.now), end.Sub(begin)
	if left <= 0 {
		return "[" + strings.Repeat(".", cells) + "]  expired " + s.ago(end)
	}
	full := cells
	if life > 0 && left < life {
		full = int((cells*left + life - 1) / life) // rounded up: something is left
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + "]  " + cli.Duration(left) + " left"
}

func (s screen) attestation(a *client.Attestation) {
	gate := "gate passed"
	if !a.GatePassed {
		gate = "gate not passed"
	}
	if a.Verdict != "" {
		gate += fmt.Sprintf("; verdict %s, policy %s, roots: %s", a.Verdict, a.Policy, a.Roots)
	}
	s.line("attestation", "%s (mode %s)", gate, a.Mode)
	if a.ReportVersion != 0 {
		s.line("report", "version %d by %s, TCB %s, firmware %s, %s", a.ReportVersion,
			strings.TrimSpace(a.Signer+" "+a.CSPID), a.ReportedTCB, a.Firmware, s.ago(a.LastReport))
		s.line("measurement", "%s", a.Measurement)
	}
	if !a.NotAfter.IsZero() {
		s.line("endorsement", "%s, until %s", s.lifeOfEndorsement(a.NotAfter), date(a.NotAfter))
	}
	for _, d := range a.DriftSinceStart {
		s.line("changed", "%s since the start: %s -> %s", d.What, d.From, d.To)
	}
	if a.Transport != "" {
		device := "idle"
		if a.BusySeconds > 0 {
			device = "busy for " + cli.Duration(time.Duration(a.BusySeconds*float64(time.Second)))
		}
		s.line("device", "%s over %s, %d requests wait", device, a.Transport, a.Waiting)
	}
	if t := a.NitroTPM; t != nil && t.InstanceID != "" {
		s.line("nitrotpm", "%s, image %s, %s", t.InstanceID, cmp.Or(t.Image, "unknown"), s.ago(t.LastDocument))
	}
}

// lifeOfEndorsement is that of the endorsement key's certificate. AWS issues them for a year.
func (s screen) lifeOfEndorsement(end time.Time) string { return s.life(end.AddDate(-1, 0, 0), end) }

// most is how many entries of a kind are listed, those that need somebody first.
const most = 8

func (s screen) secrets(m *client.Publication) {
	list := slices.Clone(m.Secrets)
	good := func(k client.SecretStatus) int {
		if k.State == client.SecretCurrent {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b client.SecretStatus) int { return cmp.Compare(good(a), good(b)) })
	for _, secret := range list[:min(len(list), most)] {
		s.secret(secret)
	}
	s.omitted("secrets", len(list))
}

// secret writes the state of a secret. The cause of any but current is among the problems.
func (s screen) secret(secret client.SecretStatus) {
	text := fmt.Sprintf("%s: %s", secret.Name, secret.State)
	if !secret.LastChecked.IsZero() {
		text += ", seen " + s.ago(secret.LastChecked)
	}
	s.line("secret", "%s", text)
	if p := secret.Preflight; p != nil {
		s.line("", "pending version %s: %s", p.Version, p.Result)
	}
	if i := secret.Issue; i != nil {
		s.line("", "%s by %s, %s%s", i.State, i.From, i.Authority, renewal(secret))
	}
}

// refresh writes the outcome of a refresh.
func (s screen) refresh(r *client.Refresh) {
	switch {
	case r.Changed && r.Previous != "":
		s.line("published", "%s, in the place of %s", r.Generation, r.Previous)
	case r.Changed:
		s.line("published", "%s", r.Generation)
	case r.Generation != "":
		s.line("unchanged", "%s", r.Generation)
	default:
		s.line("unchanged", "nothing is published")
	}
	for _, secret := range r.Secrets {
		s.secret(secret)
		if secret.Error != "" {
			s.line("", "%s", secret.Error)
		}
	}
}

// renewal says when an issued certificate is renewed or, in trouble, when that is tried again, as far as that is known.
// A SPIRE agent decides by itself.
func renewal(secret client.SecretStatus) string {
	i := secret.Issue
	troubled := i.State == client.IssueFailing || i.State == client.IssueRefused
	switch {
	case troubled && i.From != config.FromSPIFFE:
		return ", tried again at " + date(secret.NextCheck)
	case i.RenewAt.IsZero():
		return ""
	}
	return ", next one at " + date(i.RenewAt)
}

func (s screen) endpoints(list []client.Endpoint) {
	list = slices.Clone(list)
	good := func(e client.Endpoint) int {
		if e.OK() {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b client.Endpoint) int { return cmp.Compare(good(a), good(b)) })
	for _, e := range list[:min(len(list), most)] {
		text := fmt.Sprintf("%s: %s", e.Endpoint, e.Result)
		if e.OK() {
			text += fmt.Sprintf(", %s in %.0f ms", e.TLSVersion, 1000*(e.ConnectSeconds+e.HandshakeSeconds))
		}
		if e.Server != nil {
			text += ", its certificate until " + date(e.Server.NotAfter)
		}
		s.line("endpoint", "%s", text)
	}
	s.omitted("endpoints", len(list))
}

func (s screen) readers(r *client.Readers) {
	switch {
	case r.StaleCount > 0:
		s.line("readers", "%d hold files of an old generation", r.StaleCount)
	case !r.Checked.IsZero():
		s.line("readers", "none holds files of an old generation")
	}
	if r.Error != "" {
		s.line("", "not all were seen: %s", r.Error)
	}
}

// omitted says how many entries of a list are left out.
func (s screen) omitted(name string, n int) {
	if n > most {
		s.line("", "and %d more %s, see --json", n-most, name)
	}
}

// ago returns when something was, as a date and in words.
func (s screen) ago(t time.Time) string { return s.passed(t, " ago") }

func (s screen) passed(t time.Time, ago string) string {
	if d := s.now.Sub(t); d >= time.Second {
		return fmt.Sprintf("%s (%s%s)", date(t), cli.Duration(d), ago)
	}
	return date(t) + " (just now)"
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }
