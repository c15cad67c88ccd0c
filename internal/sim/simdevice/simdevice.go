// Package simdevice makes the simulated secure processor a device of package attest, within the process.
package simdevice

import (
	"sevagent/internal/attest"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// Transport is a device whose failures are those of a throttled host.
type Transport struct{ *sim.PSP }

var _ attest.Transport = Transport{}

// Report implements attest.Transport.
func (t Transport) Report(reportData [snp.ReportDataSize]byte) (attest.Quote, error) {
	report, certs, err := t.PSP.Report(reportData, 0)
	if err != nil {
		return attest.Quote{}, attest.ErrThrottled
	}
	return attest.Quote{Report: report, CertTable: certs}, nil
}

// Name implements attest.Transport.
func (Transport) Name() string { return "simulated" }

// Close implements attest.Transport.
func (Transport) Close() error { return nil }
