package bootstrap

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sevagent/client"
)

func TestAttributes(t *testing.T) {
	proved := func(attested string) map[string]string {
		return map[string]string{attrAttested: attested, attrMeasurement: "ab", attrTCB: "4.0"}
	}
	for _, c := range []struct {
		verdict, roots string
		want           map[string]string
	}{
		{"pass", "amd", proved("true")},
		{"warn", "amd", proved("true")},
		{"pass", "custom", proved("simulated")},
		{"fail", "amd", map[string]string{attrAttested: "false"}},
		{"unsupported_report_version", "amd", map[string]string{attrAttested: "false"}},
		{"", "", map[string]string{attrAttested: "false"}},
	} {
		last := client.Attestation{Verdict: c.verdict, Roots: c.roots, Measurement: "ab", ReportedTCB: "4.0"}
		if diff := cmp.Diff(c.want, attributesOf(last)); diff != "" {
			t.Errorf("verdict %q by roots %q (-want +got):\n%s", c.verdict, c.roots, diff)
		}
	}
}
