package main

import (
	"strings"
	"testing"
	"time"

	"sevagent/client"
)

// What has ended is not called valid.
func TestStatusOfExpiry(t *testing.T) {
	now := time.Now()
	for left, words := range map[time.Duration]string{3 * time.Hour: "valid until", -3 * time.Hour: ", expired "} {
		end := now.Add(left)
		m := &client.Publication{Generation: "..gen-1", NotAfter: end, Expiry: []client.Expiry{
			{File: "client.crt", Secret: "a", NotBefore: end.AddDate(-1, 0, 0), NotAfter: end},
		}}
		var b strings.Builder
		printCertificates(&b, m, now)
		if !strings.Contains(b.String(), words) {
			t.Errorf("%v left: %q is not in\n%s", left, words, &b)
		}
	}
}

// A certificate that is issued for a key of the node says by whom, and when the next one comes.
func TestStatusOfIssued(t *testing.T) {
	at := time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC)
	for _, i := range []client.IssueStatus{
		{From: "acm-pca", Authority: "arn:ca", State: client.IssueIdle, RenewAt: at},
		{From: "acme", Authority: "https://ca", State: client.IssueFailing, RenewAt: at},
		{From: "spiffe", Authority: "/run/api.sock", State: client.IssueOrdered},
	} {
		var b strings.Builder
		printCertificates(&b, &client.Publication{Secrets: []client.SecretStatus{
			{Name: "issue/node", Issue: &i, NextCheck: at.Add(-time.Hour)},
		}}, at)
		want := map[string]string{
			"acm-pca": "idle by acm-pca, arn:ca, next one at 2026-12-01T09:30:00Z\n",
			"acme":    "failing by acme, https://ca, tried again at 2026-12-01T08:30:00Z\n",
			"spiffe":  "ordered by spiffe, /run/api.sock\n",
		}[i.From]
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
}
