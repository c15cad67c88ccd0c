package mtls

import (
	"math"
	"time"

	"sevagent/client"
)

// Prices and quantities of an estimate. USD 0.05 for 10,000 calls is Secrets Manager's price in every commercial region
// (aws.amazon.com/secrets-manager/pricing); storage of the secrets themselves and KMS are not the node's.
const (
	month       = 30 * 24 * time.Hour
	usdPerCall  = 0.05 / 10_000
	describeGet = 2 // a rotation: the pending version and then the current one are fetched
)

// cost estimates what polling the secrets at an interval costs, and how many certificates are issued.
func (list secrets) cost(interval time.Duration) client.Cost {
	remote, issued := 0, 0.0
	for _, s := range list {
		i := s.issuing()
		switch {
		case i != nil:
			st := i.Status()
			if life := st.RenewAt.Sub(st.Issued); life > 0 {
				issued += float64(month) / float64(life)
			}
		case !s.local():
			remote++
		}
	}
	c := Estimate(remote, interval)
	c.CertificatesPerMonth = int(math.Ceil(issued))
	return c
}

// Estimate counts the polls at the configured interval, and those every rotationPoll in the hour of a rotation.
func Estimate(secrets int, interval time.Duration) client.Cost {
	if secrets == 0 || interval <= 0 {
		return client.Cost{}
	}
	window := rotationLead + rotationWindow
	calls := float64(month-window)/float64(interval) +
		float64(window)/float64(min(interval, rotationPoll)) + describeGet
	n := int(calls+0.5) * secrets
	return client.Cost{CallsPerMonth: n, USDPerMonth: float64(n) * usdPerCall}
}
