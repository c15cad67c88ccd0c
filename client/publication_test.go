package client_test

import (
	"testing"
	"time"

	"sevagent/client"
)

func TestExpiryStages(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	for _, c := range []struct {
		life, left time.Duration
		stage      int
		words      string
	}{
		{365 * day, 31 * day, 0, "31 days"},
		{365 * day, 29 * day, 1, "29 days"},
		{365 * day, 13 * day, 2, "13 days"},
		{365 * day, 2*day + time.Hour, 3, "2 days"},
		{365 * day, 59 * time.Minute, 4, "59 minutes"},
		{365 * day, -time.Second, client.Expired, "a minute"},
		{90 * day, 29 * day, 1, "29 days"},
		{90 * day, 10 * day, 1, "10 days"},
		{90 * day, 8 * day, 2, "8 days"},
		{90 * day, 21 * time.Hour, 3, "21 hours"},
		{24 * time.Hour, 9 * time.Hour, 0, "9 hours"},
		{24 * time.Hour, 7 * time.Hour, 1, "7 hours"},
		{24 * time.Hour, 2*time.Hour + time.Minute, 2, "2 hours"},
		{time.Hour, 30 * time.Minute, 0, "30 minutes"},
		{time.Hour, 10 * time.Minute, 4, "10 minutes"},
		{time.Hour, 90 * time.Second, 4, "a minute"},
	} {
		e := client.Expiry{NotBefore: now.Add(c.left - c.life), NotAfter: now.Add(c.left)}
		if got := e.Stage(now); got != c.stage || e.Left(now) != c.words {
			t.Errorf("%v left of %v: stage %d, %s; want %d, %s", c.left, c.life, got, e.Left(now), c.stage, c.words)
		}
	}
}

// The CA of certificates that are made for the node is to be replaced while it can still issue whole ones.
func TestExpiryOfCA(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	for left, stage := range map[time.Duration]int{
		15 * day: 0, 14*day + time.Second: 0, 13 * day: 1, 7*day + time.Second: 1, 6 * day: 2, time.Minute: 2,
		-time.Second: client.Expired,
	} {
		end := now.Add(left)
		e := client.Expiry{
			File: "client.crt", Secret: "issue/a", NotBefore: end.AddDate(-10, 0, 0), NotAfter: end,
			ReplaceBy: end.Add(-2 * 7 * day),
		}
		if got := e.Stage(now); got != stage || e.What() != "the CA of client.crt" {
			t.Errorf("%s with %v left, for certificates of a week: stage %d, want %d", e.What(), left, got, stage)
		}
	}
}
