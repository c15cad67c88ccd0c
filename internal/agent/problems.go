package agent

import (
	"cmp"
	"net"
	"strings"
	"sync"
	"time"

	"sevagent/client"
	"sevagent/internal/attest"
	"sevagent/internal/config"
	"sevagent/internal/mtls/source"
)

// steps says what an operator does next about each problem, by its entry in the health document and, after a blank, by
// what is wrong there. What concerns reports is in attest.Advice and tpm.Advice. {thing} is the entry's subject: a
// secret, a file, a directory, a server.
var steps = map[string]string{
	"attestation:gate pending": "wait: it takes seconds; 'journalctl -u sevagent' shows what it waits for",
	"attestation:device slow": "lower attestation.rate if it comes back; if it lasts for minutes, " +
		"stop and start the instance",
	"attestation:nitrotpm drift": "nothing but a boot may change it: drain the node, find out why, and replace it",
	"attestation:roots":          "set attestation.policy to one without roots, unless this is a laboratory",
	"attestation:drift": "nothing, after an update of the host's firmware: the warning ends after a day; " +
		"check that your policy still accepts the node",
	"attestation:drift grave": "a running guest keeps it for life: drain the node, find out why, and replace it",
	"attestation:certificate": "stop and start the instance, so that it moves to another host",

	"configuration": "correct it, check with 'sudo sevagent check --config-only', " +
		"then 'sudo systemctl reload sevagent'",

	"mtls:publication nothing": "see the entries of the secrets; 'sudo sevagent refresh' tries again at once",
	"mtls:publication failed":  "remove the cause; 'sudo sevagent refresh' tries again at once",
	"mtls:publication missing": "add a secret that gives it, or correct mtls.consumers",

	"mtls:guard warning": "move the foreign files out of {thing}",
	"mtls:guard alarm": "find who changes {thing}, 'journalctl -u sevagent' has each change; " +
		"then restart the containers that mount it, and 'sudo systemctl restart sevagent'",
	"mtls:guard quarantined": "find who changes {thing}, 'journalctl -u sevagent' has each change; " +
		"then 'sudo systemctl restart sevagent'",

	"mtls:expiry secret": "store a renewed certificate: " + putSecret,
	"mtls:expiry file":   "write a renewed certificate to {thing}",
	"mtls:expiry issue": "it should have been renewed: see the entry of {thing}; " +
		"'sudo sevagent refresh --renew {name}' orders one now",

	"mtls:secret waiting": "wait: the set is published once every secret has given its part",
	"mtls:secret held": "wait until it is valid; " +
		"'chronyc tracking' shows whether the node's clock is behind",
	"mtls:secret rejected": "store a corrected version: " + putSecret + "; then 'sudo sevagent refresh'",
	"mtls:secret unreachable": "the agent tries again by itself; if it lasts, let the node reach secretsmanager " +
		"by HTTPS",
	"mtls:secret denied":       "correct the cause; then 'sudo sevagent refresh'",
	"mtls:secret missing":      "create the secret, or correct its name in mtls.secrets",
	"mtls:secret file":         "correct the file {thing}; then 'sudo sevagent refresh'",
	"mtls:secret file missing": "write the file {thing}, or take it out of mtls.secrets",
	"mtls:secret issue": "the agent tries again by itself; " +
		"'sudo sevagent refresh --renew {name}' does so at once",

	"mtls:pending": "correct it before it becomes current",
	"mtls:clock":   "see 'chronyc tracking'; chronyd has to reach 169.254.169.123",
	"mtls:stale_reader": "mount the published directory instead of its files, " +
		"and restart the container",

	"mtls:endpoint dns":     "check the name in mtls.endpoints; on the node, 'getent hosts {host}'",
	"mtls:endpoint refused": "start the server on {thing}: nothing listens there",
	"mtls:endpoint unreachable": "check routes and security groups: the server's has to let the node in " +
		"on port {port}",
	"mtls:endpoint timeout": "check security groups: the server's has to let the node in on port {port}; " +
		"if it does, see the server's log",
	"mtls:endpoint protocol":                   "make sure that {thing} serves TLS 1.2 or later, without a proxy",
	"mtls:endpoint server_certificate_expired": "renew the certificate of {thing}",
	"mtls:endpoint server_certificate_untrusted": "have the server's certificate issued by a CA in ca.crt, " +
		"or add its CA to the secret",
	"mtls:endpoint server_name_mismatch": "have the server's certificate issued for {host}, " +
		"or use in mtls.endpoints the name that it has",
	"mtls:endpoint tls_alert":                       "see the server's log; it has to trust the CA of client.crt",
	"mtls:endpoint closed_after_certificate":        "see the server's log; it has to trust the CA of client.crt",
	"mtls:endpoint no_client_certificate_requested": "make the server request a client certificate",
}

const putSecret = "'aws secretsmanager put-secret-value --secret-id {thing} --secret-string file://SECRET.json'"

// step returns the next step for a problem with a thing.
func step(problem, thing string) string {
	thing = strings.TrimPrefix(thing, "file://")
	host, port, err := net.SplitHostPort(thing)
	if err != nil {
		host, port = thing, thing
	}
	return strings.NewReplacer("{thing}", thing, "{name}", strings.TrimPrefix(thing, config.IssuePrefix),
		"{host}", host, "{port}", port).Replace(steps[problem])
}

// explain returns the cause of an error about the node's proof, and what to do about it.
func explain(err error) (cause, next string) {
	cause, next = source.Explain(err)
	return cause, cmp.Or(next, attest.Advice(err))
}

// kindOf returns where a secret comes from: "file", "issue" or "secret".
func kindOf(name string) string {
	switch {
	case strings.HasPrefix(name, "file://"):
		return "file"
	case strings.HasPrefix(name, config.IssuePrefix):
		return "issue"
	}
	return "secret"
}

// secretStep returns what to do about a secret that is not current.
func secretStep(s client.SecretStatus) string {
	state := string(s.State)
	switch kind := kindOf(s.Name); {
	case s.Next != "":
		return s.Next
	case s.State == client.SecretWaiting || s.State == client.SecretHeld:
	case kind == "file" && s.State == client.SecretMissing:
		state = "file missing"
	case kind != "secret":
		state = kind
	}
	return step("mtls:secret "+state, s.Name)
}

// began remembers when each entry of the health document got its status.
type began struct {
	mu      sync.Mutex
	entries map[entry]beginning
}

// entry names an entry of the health document.
type entry struct{ name, component string }

type beginning struct {
	status client.HealthStatus
	at     time.Time
}

// note sets Since in the entries of h that do not know it themselves, and forgets the entries that are gone.
func (b *began) note(h *client.Health, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := make(map[entry]beginning, len(b.entries))
	for name, checks := range h.Checks {
		for i, c := range checks {
			e := entry{name, c.ComponentID}
			first, known := b.entries[e]
			if !known || first.status != c.Status {
				first = beginning{c.Status, now.UTC()}
			}
			seen[e] = first
			if c.Since.IsZero() {
				checks[i].Since = first.at
			}
		}
	}
	b.entries = seen
}
