package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/visible/visibletest"
)

var at = time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC)

// trouble is the status of a node on which several things are wrong.
func trouble() *client.Status {
	ends := at.Add(10 * 24 * time.Hour)
	s := &client.Status{
		Version: "v1.2.3", StartedAt: at.Add(-72 * time.Hour),
		Attestation: client.Attestation{
			Mode: "enforce", Transport: "ioctl", InstanceID: "i-0123456789abcdef0", GatePassed: true, Verdict: "pass",
			Policy: "aws-shared", Roots: "amd", Signer: "VLEK", CSPID: "CN=cc-us-east-2.amazonaws.com",
			ReportVersion: 5, Measurement: strings.Repeat("51", 48), ReportedTCB: "4.0.24.219", Firmware: "1.55.40",
			NotAfter: at.AddDate(0, 6, 0), LastReport: at.Add(-2 * time.Hour), Waiting: 3, BusySeconds: 4.2,
		},
		MTLS: client.Publication{
			Ready: true, Path: "/etc/ecs/mtls", Generation: "..gen-1", PublishedAt: at.Add(-time.Hour),
			Expiry: []client.Expiry{
				{File: "client.crt", Subject: "CN=ca", NotBefore: at.AddDate(0, 0, -10), NotAfter: ends},
				{File: "ca.crt", Subject: "CN=ca", NotBefore: at.AddDate(-1, 0, 0), NotAfter: at},
			},
			Certificates: []client.Certificate{{File: "client.crt", Subject: "CN=node"}},
			Secrets: []client.SecretStatus{
				{Name: "good", State: client.SecretCurrent, LastChecked: at.Add(-time.Minute)},
				{Name: "node/mtls", State: client.SecretRejected, Error: "client_cert: no PEM"},
			},
			Guard: client.GuardStatus{State: client.GuardOK, Immutable: true},
			Cost:  client.Cost{CallsPerMonth: 8640, USDPerMonth: 0.04},
		},
		Endpoints: []client.Endpoint{
			{Endpoint: "b.example.com:443", Result: client.ProbeOK, TLSVersion: "TLS 1.3", HandshakeSeconds: .012},
			{Endpoint: "a.example.com:443", Result: client.ProbeRefused},
		},
		Readers: client.Readers{Checked: at},
	}
	s.Health.Add("attestation:gate", client.Check{Status: client.Pass, Since: at.Add(-72 * time.Hour)})
	s.Health.Add("mtls:secret", client.Check{
		ComponentID: "node/mtls", Status: client.Warn, Since: at.Add(-3 * time.Hour), Until: ends,
		Output: "rejected: client_cert: no PEM", Next: "store a corrected version: 'aws secretsmanager " +
			"put-secret-value --secret-id node/mtls --secret-string file://SECRET.json'; then 'sudo sevagent refresh'",
	})
	s.Health.Add("mtls:expiry", client.Check{
		ComponentID: "ca.crt", Status: client.Fail, Since: at, Until: at,
		Output: "expired, at 2026-12-01T09:30:00Z: CN=ca",
	})
	return s
}

const troubleAt80 = `sevagent v1.2.3 on i-0123456789abcdef0, started 2026-11-28T09:30:00Z (3 days
  ago)
NOT READY: 1 failure, 1 warning

fail  mtls:expiry ca.crt
      expired, at 2026-12-01T09:30:00Z: CN=ca
      since 2026-12-01T09:30:00Z (just now)
warn  mtls:secret node/mtls
      rejected: client_cert: no PEM
      since 2026-12-01T06:30:00Z (3 hours); what works lasts until
      2026-12-11T09:30:00Z (10 days)
      > store a corrected version: 'aws secretsmanager put-secret-value
        --secret-id node/mtls --secret-string file://SECRET.json'; then 'sudo
        sevagent refresh'

certificates  /etc/ecs/mtls, published 2026-12-01T08:30:00Z (60 minutes ago)
              client.crt  [##########..........]  10 days left  CN=node
              ca.crt      [....................]  expired 2026-12-01T09:30:00Z
              (just now)  CN=ca
guard         ok, immutable, 0 repairs
attestation   gate passed; verdict pass, policy aws-shared, roots: amd (mode
              enforce)
report        version 5 by VLEK CN=cc-us-east-2.amazonaws.com, TCB 4.0.24.219,
              firmware 1.55.40, 2026-12-01T07:30:00Z (2 hours ago)
measurement   515151515151515151515151515151515151515151515151515151515151515151
              515151515151515151515151515151
endorsement   [##########..........]  182 days left, until 2027-06-01T09:30:00Z
device        busy for 4 seconds over ioctl, 3 requests wait
secret        node/mtls: rejected
secret        good: current, seen 2026-12-01T09:29:00Z (60 seconds ago)
endpoint      a.example.com:443: refused
endpoint      b.example.com:443: ok, TLS 1.3 in 12 ms
readers       none holds files of an old generation
cost          about 8640 calls of Secrets Manager, USD 0.04 a month
`

// What is wrong comes first, worst first, and no line is longer than the terminal.
func TestStatusAt80Columns(t *testing.T) {
	var b strings.Builder
	screen{&b, 80, false, at}.status(trouble())
	if b.String() != troubleAt80 {
		t.Errorf("the status is\n%s\nwant\n%s", &b, troubleAt80)
	}
	for _, width := range []int{40, 80, 120} {
		s := trouble()
		s.Health.Add("mtls:endpoint", client.Check{
			ComponentID: strings.Repeat("long.", 40), Status: client.Warn,
			Output: strings.Repeat("word ", 40), Next: "x\ny",
		})
		visibletest.Fill(&s.Attestation, strings.Repeat("x", 100))
		b.Reset()
		screen{&b, width, false, at}.status(s)
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("on %d columns, a line of %d: %s", width, n, line)
			}
		}
	}
}

// Colours are escape sequences around words, and nothing else changes.
func TestStatusInColour(t *testing.T) {
	var plain, coloured strings.Builder
	screen{&plain, 80, false, at}.status(trouble())
	screen{&coloured, 80, true, at}.status(trouble())
	text := coloured.String()
	for _, want := range []string{"\033[1;31mNOT READY\033[0m: 1 failure", "\033[33mwarn\033[0m  mtls:secret"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	for _, sequence := range colours {
		text = strings.ReplaceAll(text, sequence, "")
	}
	if text = strings.ReplaceAll(text, "\033[0m", ""); text != plain.String() {
		t.Errorf("without colours it is %q, want %q", text, &plain)
	}
}

func TestLife(t *testing.T) {
	s := screen{now: at}
	day := 24 * time.Hour
	for _, c := range []struct {
		gone, left time.Duration
		want       string
	}{
		{0, 100 * day, "[####################]  100 days left"},
		{-day, 100 * day, "[####################]  100 days left"}, // it has not begun
		{50 * day, 50 * day, "[##########..........]  50 days left"},
		{100 * day, time.Minute, "[#...................]  60 seconds left"},
		{100 * day, -2 * day, "[....................]  expired 2026-11-29T09:30:00Z (2 days ago)"},
	} {
		if got := s.life(at.Add(-c.gone), at.Add(c.left)); got != c.want {
			t.Errorf("%v after %v: %q, want %q", c.left, c.gone, got, c.want)
		}
	}
}

// Of many entries those that need somebody are listed, and the rest is counted.
func TestManyEntries(t *testing.T) {
	s := &client.Status{MTLS: client.Publication{Path: "/p"}}
	for range 10 {
		s.MTLS.Secrets = append(s.MTLS.Secrets, client.SecretStatus{Name: "good", State: client.SecretCurrent})
		s.Endpoints = append(s.Endpoints, client.Endpoint{Endpoint: "good:1", Result: client.ProbeOK})
	}
	s.MTLS.Secrets = append(s.MTLS.Secrets, client.SecretStatus{Name: "bad", State: client.SecretDenied})
	s.Endpoints = append(s.Endpoints, client.Endpoint{Endpoint: "bad:1", Result: client.ProbeDNS})
	var b strings.Builder
	screen{&b, 80, false, at}.status(s)
	for _, want := range []string{"bad: denied\n", "bad:1: dns\n", "and 3 more secrets,", "and 3 more endpoints,"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
}

// A certificate that is issued for a key of the node says by whom, and when the next one comes.
func TestStatusOfIssued(t *testing.T) {
	for _, i := range []client.IssueStatus{
		{From: "acm-pca", Authority: "arn:ca", State: client.IssueIdle, RenewAt: at},
		{From: "acme", Authority: "https://ca", State: client.IssueFailing, RenewAt: at},
		{From: "spiffe", Authority: "/run/api.sock", State: client.IssueOrdered},
	} {
		var b strings.Builder
		secret := client.SecretStatus{Name: "issue/node", Issue: &i, NextCheck: at.Add(-time.Hour)}
		screen{&b, 0, false, at}.secret(secret)
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

// The outcome of a refresh is in words.
func TestRefreshInWords(t *testing.T) {
	for want, r := range map[string]client.Refresh{
		"published     b, in the place of a\n": {Changed: true, Generation: "b", Previous: "a"},
		"published     b\n":                    {Changed: true, Generation: "b"},
		"unchanged     b\n":                    {Generation: "b"},
		"unchanged     nothing is published\n": {},
		"secret        x: denied\n              no\n": {
			Secrets: []client.SecretStatus{{Name: "x", State: client.SecretDenied, Error: "no"}},
		},
	} {
		var b strings.Builder
		screen{&b, 0, false, at}.refresh(&r)
		if !strings.Contains(b.String(), want) {
			t.Errorf("%+v: %q, want %q", r, &b, want)
		}
	}
}

// The status is shown every two seconds, past failures, until ctx ends, which is a success.
func TestWatchStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*watchInterval+time.Millisecond)
		defer cancel()
		var b strings.Builder
		asked := 0
		err := watchStatus(ctx, &b, func(context.Context) (*client.Status, error) {
			if asked++; asked == 2 {
				return nil, errors.New("is sevagent running?")
			}
			return trouble(), nil
		})
		must.Do(t, err, "watch")
		if n := strings.Count(b.String(), "NOT READY"); n != 3 || asked != 4 {
			t.Errorf("asked %d times, shown %d times, want 4 and 3", asked, n)
		}
		if !strings.Contains(b.String(), "is sevagent running?\n") || strings.Contains(b.String(), "\033") {
			t.Errorf("it shows %q, want the failure and no escape sequences", &b)
		}
	})
}

// What cannot be written ends it.
func TestWatchOnAFullDisk(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	err := watchStatus(t.Context(), w, func(context.Context) (*client.Status, error) { return trouble(), nil })
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("watch = %v, want %v", err, io.ErrClosedPipe)
	}
}
