package localapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"time"
)

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Parse(pageSource))

// page serves the node at a glance, for people: no script, no request to anywhere else.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	status, err := json.MarshalIndent(s.cfg.Status(now), "", "  ")
	if err != nil {
		problem(http.StatusInternalServerError, "internal", err.Error()).write(w)
		return
	}
	var body bytes.Buffer
	err = pageTemplate.Execute(&body, struct {
		Version, Now string
		Health       *Health
		Status       string
	}{s.cfg.Version, now.UTC().Format(time.RFC3339), s.cfg.Health(now), string(status)})
	if err != nil {
		problem(http.StatusInternalServerError, "internal", err.Error()).write(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Write(body.Bytes())
}
