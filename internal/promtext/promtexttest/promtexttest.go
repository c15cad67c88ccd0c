// Package promtexttest reads metrics as Prometheus does, for tests.
package promtexttest

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"sevagent/internal/must"
	"sevagent/internal/promtext"
)

// Families returns a registry's metrics by name.
func Families(t testing.TB, r *promtext.Registry) []*dto.MetricFamily {
	t.Helper()
	var text bytes.Buffer
	must.Do(t, r.Write(&text), "write the metrics")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families := must.Get(parser.TextToMetricFamilies(&text))(t, "parse the metrics")
	return slices.SortedFunc(maps.Values(families), func(a, b *dto.MetricFamily) int {
		return strings.Compare(a.GetName(), b.GetName())
	})
}

// Lint holds a registry's metrics to Prometheus's conventions.
func Lint(t testing.TB, r *promtext.Registry) {
	t.Helper()
	if problems, err := promlint.NewWithMetricFamilies(Families(t, r)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("lint the metrics: %v, %v", problems, err)
	}
}
