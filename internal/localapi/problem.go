package localapi

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"sevagent/client"
)

func problem(status int, code, detail string) *client.Problem {
	return &client.Problem{
		Type:   "urn:sevagent:problem:" + code,
		Title:  http.StatusText(status),
		Status: status,
		Code:   code,
		Detail: detail,
	}
}

// refuse answers with p. 429 and 503 always carry Retry-After.
func refuse(w http.ResponseWriter, p *client.Problem) {
	if p.RetryAfter == 0 && (p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable) {
		p.RetryAfter = 30 * time.Second
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}
