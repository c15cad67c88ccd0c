package localapi

import (
	"net/http"
	"slices"
	"time"
)

// Status of a check and of the whole: draft-inadarei-api-health-check, section 3.1.
const (
	StatusPass = "pass"
	StatusWarn = "warn"
	StatusFail = "fail"
)

// Health is the answer of /readyz, application/health+json.
type Health struct {
	Status  string             `json:"status"`
	Version string             `json:"version,omitempty"`
	Checks  map[string][]Check `json:"checks"`
}

// Check is one entry; Output is the reason and empty on pass.
type Check struct {
	ComponentID string    `json:"componentId,omitempty"`
	Status      string    `json:"status"`
	Time        time.Time `json:"time,omitzero"`
	Output      string    `json:"output,omitempty"`
}

// Add records a check under its name; the whole is as good as its worst check.
func (h *Health) Add(name string, c Check) {
	if h.Checks == nil {
		h.Checks = make(map[string][]Check)
	}
	h.Checks[name] = append(h.Checks[name], c)
	order := []string{"", StatusPass, StatusWarn, StatusFail}
	if slices.Index(order, c.Status) > slices.Index(order, h.Status) {
		h.Status = c.Status
	}
}

func (h *Health) httpStatus() int {
	if h.Status == StatusFail {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}
