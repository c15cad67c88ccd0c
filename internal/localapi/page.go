package localapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"sevagent/client"
	"sevagent/internal/look"
	"sevagent/internal/visible"
)

// The page has a place for each value, filled in once with escaped text. It is not an html/template: that package calls
// methods by name, which keeps the linker from dropping any method of the AWS SDK.
var (
	//go:embed page.html
	pageSource string
	//go:embed page.js
	pageScript string
)

// pagePolicy permits the page its own style, its own script and what that asks the agent for, by their digests.
var pagePolicy = sync.OnceValue(func() string {
	return "default-src 'none'; style-src " + look.Source(look.Sheet) + "; script-src " + look.Source(pageScript) +
		"; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

// page serves the node at a glance, for people.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	status := s.cfg.Status(now)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy())
	strings.NewReplacer(
		"{{title}}", html.EscapeString(visible.Text(headline(status))),
		"{{style}}", look.Sheet,
		"{{script}}", pageScript,
		"{{version}}", html.EscapeString(visible.Text(s.cfg.Version)),
		"{{node}}", nodeHTML(status, now),
	).WriteString(w, pageSource)
}

// Events are sent to at most this many pages at a time, each looked at once a second and, for a proxy's sake, not left
// without a byte for longer than keepAlive.
const (
	maxPages   = 8
	pageTick   = time.Second
	keepAlive  = 20 * time.Second
	pageWrites = 10 * time.Second
)

// events serves the changes of the page as server-sent events: the content of <main>, each time that it differs.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.pages <- struct{}{}:
		defer func() { <-s.pages }()
	default:
		p := problem(http.StatusServiceUnavailable, "too_many_connections",
			fmt.Sprintf("at most %d pages are kept up to date", maxPages))
		p.Advice, p.RetryAfter = "close one, or ask for /v1/status", time.Minute
		refuse(w, p)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	tick := time.NewTicker(pageTick)
	defer tick.Stop()
	conn := http.NewResponseController(w)
	var sent string
	var sentAt time.Time
	for {
		now := time.Now()
		node := nodeHTML(s.cfg.Status(now), now)
		if node != sent || now.Sub(sentAt) >= keepAlive {
			message := ": still here\n\n"
			if node != sent {
				message = "event: node\ndata: " + strings.ReplaceAll(node, "\n", "\ndata: ") + "\n\n"
			}
			conn.SetReadDeadline(time.Time{}) // the request has been read
			conn.SetWriteDeadline(now.Add(pageWrites))
			if _, err := io.WriteString(w, message); err != nil || conn.Flush() != nil {
				return
			}
			sent, sentAt = node, now
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-s.stopping:
			return
		}
	}
}

// markup is HTML in the making.
type markup struct{ strings.Builder }

// add writes HTML, in which each argument is text: escaped, and visible.
func (m *markup) add(format string, args ...any) {
	for i, a := range args {
		args[i] = html.EscapeString(visible.Text(fmt.Sprint(a)))
	}
	fmt.Fprintf(m, format, args...)
}

// fact writes an entry of a list of facts, if there is something to say.
func (m *markup) fact(name, format string, args ...any) {
	if text := strings.TrimSpace(fmt.Sprintf(format, args...)); text != "" {
		m.add("<dt>%s</dt><dd>%s</dd>\n", name, text)
	}
}

func minute(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04 MST")
}

func headline(s *client.Status) string {
	state := map[client.HealthStatus]string{
		client.Pass: "ready", client.Warn: "ready, with warnings", client.Fail: "not ready",
	}[s.Health.Status]
	node := s.Attestation.InstanceID
	if node == "" {
		node = "node"
	}
	return node + ": " + state
}

// nodeHTML is the content of the page: what is wrong first. Its times are exact to a minute, so that it differs from
// the one before only where something has changed.
func nodeHTML(s *client.Status, now time.Time) string {
	m := new(markup)
	m.add("<h1><span class=\"badge %s\">%s</span> %s</h1>\n", s.Health.Status, s.Health.Status, headline(s))
	m.add("<p class=\"quiet\">As of %s", minute(now))
	if s.Cluster != "" {
		m.add(", in cluster %s", s.Cluster)
	}
	if s.Attestation.Region != "" {
		m.add(", region %s", s.Attestation.Region)
	}
	m.add("; sevagent %s runs since %s</p>\n", s.Version, minute(s.StartedAt))

	m.problems(&s.Health)
	m.certificates(&s.MTLS, now)
	m.secrets(s.MTLS.Secrets)
	m.attestation(&s.Attestation, now)
	m.readers(s)
	m.checks(&s.Health)
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err) // a Status is made of strings, numbers and times
	}
	m.add("<details id=\"json\"><summary>Everything, as JSON</summary><pre tabindex=\"0\">")
	m.WriteString(html.EscapeString(visible.Lines(string(text))))
	m.add("</pre></details>\n")
	return m.String()
}

func (m *markup) problems(h *client.Health) {
	problems := h.Problems()
	if len(problems) == 0 {
		m.add("<p>Every check passes.</p>\n")
		return
	}
	m.add("<h2>What is wrong</h2>\n")
	for _, p := range problems {
		m.add("<section class=\"problem %s\"><h3><span class=\"state %s\">%s</span> %s</h3>\n<p>%s</p>\n",
			p.Status, p.Status, p.Status, strings.TrimSpace(p.Name+" "+p.ComponentID), p.Output)
		if p.Next != "" {
			m.add("<p><strong>Next:</strong> %s</p>\n", p.Next)
		}
		var times []string
		if !p.Since.IsZero() {
			times = append(times, "since "+minute(p.Since))
		}
		if !p.Until.IsZero() {
			times = append(times, "what is published lasts until "+minute(p.Until))
		}
		if len(times) > 0 {
			m.add("<p class=\"quiet\">%s</p>\n", strings.Join(times, "; "))
		}
		m.add("</section>\n")
	}
}

func (m *markup) certificates(p *client.Publication, now time.Time) {
	m.add("<h2>Certificates</h2>\n")
	if p.Generation == "" {
		m.add("<p>Nothing is published in <code>%s</code>.</p>\n", p.Path)
		return
	}
	m.add("<p>In <code>%s</code> since %s</p>\n", p.Path, minute(p.PublishedAt))
	m.add("<table><thead><tr><th scope=\"col\">File</th><th scope=\"col\">Subject</th><th scope=\"col\">Life left</th>" +
		"<th scope=\"col\">Secret</th></tr></thead><tbody>\n")
	shown := make(map[string]bool)
	for _, c := range p.Certificates {
		if shown[c.File] {
			continue // of a chain or of anchors, the first stands for all
		}
		shown[c.File] = true
		end := client.Expiry{File: c.File, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
		for _, e := range p.Expiry {
			if e.File == c.File {
				end = e
			}
		}
		m.add("<tr><td data-label=\"File\"><code class=\"name\">%s</code></td><td data-label=\"Subject\">%s", c.File, c.Subject)
		if len(c.SANs) > 0 {
			m.add("<br><span class=\"quiet\">%s</span>", strings.Join(c.SANs, ", "))
		}
		m.add("</td><td data-label=\"Life left\">")
		m.life(end, now)
		m.add("</td><td data-label=\"Secret\">%s<br><span class=\"quiet\">version %s</span></td></tr>\n",
			c.Secret, c.Version)
	}
	m.add("</tbody></table>\n")
	guard := string(p.Guard.State)
	if p.Guard.Repairs > 0 {
		guard += fmt.Sprintf(", %d repairs", p.Guard.Repairs)
	}
	if !p.Guard.Immutable {
		guard += "; root in a container could change the files"
	}
	m.add("<dl class=\"facts\">\n")
	m.fact("Guard", "%s", guard)
	for _, o := range p.CAOverlap {
		m.fact("Kept anchor", "%s until %s", o.Subject, minute(o.Until))
	}
	for _, c := range p.Consumers {
		m.fact("Consumer "+c.Name, "%s", strings.Join(c.Files, " "))
	}
	if p.Cost.CallsPerMonth > 0 {
		m.fact("Polling", "about %d calls, USD %.2f a month", p.Cost.CallsPerMonth, p.Cost.USDPerMonth)
	}
	m.add("</dl>\n")
}

// life writes how much of a certificate's life is left.
func (m *markup) life(e client.Expiry, now time.Time) {
	class, words := client.Pass, e.Left(now)
	switch stage := e.Stage(now); {
	case stage == client.Expired:
		class, words = client.Fail, "expired"
	case stage > 0:
		class = client.Warn
	}
	left := 100 * max(0, min(1, float64(e.NotAfter.Sub(now))/float64(max(1, e.NotAfter.Sub(e.NotBefore)))))
	m.add("<span class=\"state %s\">%s</span>\n<progress class=\"%s\" max=\"100\" value=\"%s\" aria-label=\"%s\">"+
		"</progress><br><span class=\"quiet\">until %s</span>", class, words, class, fmt.Sprintf("%.0f", left),
		"life left of "+e.File, minute(e.NotAfter))
}

func (m *markup) secrets(secrets []client.SecretStatus) {
	if len(secrets) == 0 {
		return
	}
	m.add("<h2>Secrets</h2>\n<table><thead><tr><th scope=\"col\">Secret</th><th scope=\"col\">State</th>" +
		"<th scope=\"col\">Version</th><th scope=\"col\">Looked at</th></tr></thead><tbody>\n")
	for _, s := range secrets {
		state, class := string(s.State), client.Warn
		if s.State == client.SecretCurrent {
			class = client.Pass
		}
		if i := s.Issue; i != nil {
			state += fmt.Sprintf(", issued by %s (%s)", i.From, i.State)
			if !i.RenewAt.IsZero() {
				state += ", next one at " + minute(i.RenewAt)
			}
		}
		m.add("<tr><td data-label=\"Secret\">%s</td><td data-label=\"State\"><span class=\"state %s\">%s</span></td>"+
			"<td data-label=\"Version\"><code>%s</code></td><td data-label=\"Looked at\">%s</td></tr>\n",
			s.Name, class, state, s.Published, minute(s.LastChecked))
	}
	m.add("</tbody></table>\n")
}

func (m *markup) attestation(a *client.Attestation, now time.Time) {
	m.add("<h2>Attestation</h2>\n<dl class=\"facts\">\n")
	gate := "not passed"
	if a.GatePassed {
		gate = "passed"
	}
	m.fact("Boot gate", "%s, mode %s", gate, a.Mode)
	if a.Verdict != "" {
		m.fact("Verdict", "%s by policy %s, roots: %s", a.Verdict, a.Policy, a.Roots)
	}
	if a.ReportVersion != 0 {
		m.fact("Report", "version %d by %s %s, over %s", a.ReportVersion, a.Signer, a.CSPID, a.Transport)
		m.fact("TCB, firmware", "%s, %s", a.ReportedTCB, a.Firmware)
		m.fact("Measurement", "%s", a.Measurement)
		m.fact("Last report", "%s", minute(a.LastReport))
	}
	if !a.NotAfter.IsZero() {
		m.fact("Endorsement", "until %s", minute(a.NotAfter))
	}
	if n := a.NitroTPM; n != nil && n.Error == "" {
		m.fact("NitroTPM", "instance %s, booted from %s", n.InstanceID, n.Image)
	}
	m.add("</dl>\n")
}

func (m *markup) readers(s *client.Status) {
	if len(s.Endpoints) == 0 && s.Readers.StaleCount == 0 {
		return
	}
	m.add("<h2>Endpoints and readers</h2>\n<dl class=\"facts\">\n")
	for _, e := range s.Endpoints {
		m.fact(e.Endpoint, "%s since %s", e.Result, minute(e.Since))
	}
	if s.Readers.StaleCount > 0 {
		m.fact("Containers with old files", "%d", s.Readers.StaleCount)
	}
	m.add("</dl>\n")
}

// checks writes all of them, those that pass too.
func (m *markup) checks(h *client.Health) {
	m.add("<details id=\"checks\"><summary>All checks</summary>\n<table><thead><tr><th scope=\"col\">State</th>" +
		"<th scope=\"col\">Check</th><th scope=\"col\">At</th></tr></thead><tbody>\n")
	for name, check := range h.All() {
		m.add("<tr><td><span class=\"state %s\">%s</span></td><td>%s</td><td>%s</td></tr>\n", check.Status, check.Status,
			strings.TrimSpace(name+" "+check.ComponentID), minute(check.Time))
	}
	m.add("</tbody></table></details>\n")
}
