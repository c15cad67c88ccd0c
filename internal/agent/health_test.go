package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"sevagent/client"
)

// The end of a certificate is a warning that grows, and then a failure; the next step names the secret.
func TestExpiryHealth(t *testing.T) {
	now := time.Now()
	const store = "store a renewed certificate: 'aws secretsmanager put-secret-value --secret-id node/mtls"
	for _, c := range []struct {
		left   time.Duration
		secret string
		want   client.HealthStatus // empty: nothing is wrong
		text   string
		next   string
	}{
		{40 * 24 * time.Hour, "node/mtls", "", "", ""},
		{20 * 24 * time.Hour, "node/mtls", client.Warn, "expires in 20 days, at 2", store},
		{time.Hour, "node/mtls", client.Warn, "expires in 60 minutes, at 2", store},
		{-time.Hour, "node/mtls", client.Fail, "expired, at 2", store},
		{-time.Hour, "issue/acme", client.Fail, "expired, at 2", "it should have been renewed: see the entry"},
	} {
		h := new(client.Health)
		end := now.Add(c.left)
		expiryHealth(h, client.Expiry{
			File: "client.crt", Secret: c.secret, Subject: "CN=intermediate", NotBefore: end.AddDate(-1, 0, 0), NotAfter: end,
		}, now)
		if h.Status != c.want {
			t.Errorf("%v before the end: %+v, want %s", c.left, h, c.want)
		}
		for _, check := range h.Checks["mtls:expiry"] {
			if !strings.HasPrefix(check.Output, c.text) || check.ComponentID != "client.crt" ||
				!strings.HasSuffix(check.Output, ": CN=intermediate") || !check.Until.Equal(end) ||
				!strings.HasPrefix(check.Next, c.next) {
				t.Errorf("%v before the end: %+v, want %s", c.left, check, c.text)
			}
		}
	}
}

// Each change of readiness is one record in the log, with what fails.
func TestReadinessIsLogged(t *testing.T) {
	var log bytes.Buffer
	a := &agent{log: slog.New(slog.NewTextHandler(&log, nil))}
	good, bad := new(client.Health), new(client.Health)
	good.Add("mtls:publication", client.Check{Status: client.Pass})
	bad.Add("mtls:expiry", client.Check{ComponentID: "client.crt", Status: client.Fail, Output: "expired"})
	for i, c := range []struct {
		health *client.Health
		want   string // empty: nothing is logged
	}{
		{bad, ""}, // it is only starting
		{good, ""},
		{good, ""},
		{bad, `level=ERROR msg="the node is not ready any more" checks="[mtls:expiry client.crt: expired]"`},
		{bad, ""},
		{good, `level=INFO msg="the node is ready again"`},
	} {
		log.Reset()
		a.logReadiness(c.health)
		if got := log.String(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%d: logged %q, want %q", i, got, c.want)
		}
	}
}
