package localapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"sevagent/internal/visible"
)

// pageSource has a place for each value, filled in once with escaped text. It is not an html/template: that package
// calls methods by name, which keeps the linker from dropping any method of the AWS SDK.
//
//go:embed page.html
var pageSource string

// page serves the node at a glance, for people: no script, no request to anywhere else.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	status := s.cfg.Status(now)
	text, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		panic(err) // a Status is made of strings, numbers and times
	}
	health := status.Health
	var rows strings.Builder
	for _, name := range slices.Sorted(maps.Keys(health.Checks)) {
		for _, c := range health.Checks[name] {
			status := html.EscapeString(string(c.Status))
			if c.Next != "" {
				c.Output += "; " + c.Next
			}
			fmt.Fprintf(&rows, "  <tr><td>%s %s<td class=\"%s\">%s<td>%s</tr>\n", html.EscapeString(name),
				html.EscapeString(c.ComponentID), status, status, html.EscapeString(c.Output))
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	content := strings.NewReplacer(
		"{{health}}", html.EscapeString(string(health.Status)),
		"{{version}}", html.EscapeString(s.cfg.Version),
		"{{now}}", now.UTC().Format(time.RFC3339),
		"{{rows}}", rows.String(),
		"{{status}}", html.EscapeString(string(text)),
	).Replace(pageSource)
	io.WriteString(w, visible.Lines(content))
}
