package config

import (
	"cmp"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sevagent/internal/appraise"
	"sevagent/internal/pattern"
)

// Limits on values.
const (
	maxRate       = 50 // a second
	maxBurst      = 64
	maxSecrets    = 20
	minInterval   = 5 * time.Second
	maxInterval   = 24 * time.Hour
	maxConsumers  = 8 // each takes two inotify instances of root's 128
	maxOverlap    = 720 * time.Hour
	maxSocketPath = 107 // what fits into sockaddr_un.sun_path with its final NUL
)

// Forms of the names of secrets and hosts, and the longest. The lengths are not in the expressions, since counted
// repetitions take a millisecond each to compile, and every command of sevagent would wait for it.
var (
	secretARN  = pattern.New(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]+$`)
	secretName = pattern.New(`^[A-Za-z0-9/_+=.@-]+$`)
	hostName   = pattern.New(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)
)

const (
	maxSecretARN  = 640
	maxSecretName = 512
	maxHostName   = 253
)

// validate finds every mistake in a configuration whose types are right, and changes nothing.
func (c *Config) validate(m *mistakes) {
	m.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	m.oneOf("log.format", c.Log.Format, "auto", "text", "json")
	c.Attestation.validate(m)
	c.MTLS.validate(m)
	for i, s := range c.MTLS.Issue {
		if s.WithEvidence() && c.Attestation.Mode == ModeOff {
			m.bad(fmt.Sprintf("mtls.issue[%d].evidence", i), "there is none with attestation.mode: off")
		}
	}
	c.Listen.validate(m)
}

func (a *Attestation) validate(m *mistakes) {
	m.oneOf("attestation.mode", a.Mode, ModeEnforce, ModeWarn, ModeOff)
	m.oneOf("attestation.transport", a.Transport, "auto", "configfs", "ioctl")
	m.absolute("attestation.device", a.Device)
	m.absolute("attestation.configfs", a.Configfs)
	if a.Policy == "" {
		m.bad("attestation.policy", "empty; name a built-in profile or a file")
	} else if isProfile(a.Policy) {
		if _, err := appraise.Builtin(a.Policy); err != nil {
			m.bad("attestation.policy", `%s is none of the profiles %s and %s; a file's path has a "/" or "."`,
				quote(a.Policy), appraise.AWSShared, appraise.AWSDedicated)
		}
	}
	for i, path := range a.TPM {
		m.absolute(fmt.Sprintf("attestation.tpm[%d]", i), path)
	}
	m.oneOf("attestation.nitrotpm", a.NitroTPM, NitroTPMAuto, NitroTPMRequire, NitroTPMOff)
	if !(a.Rate > 0 && a.Rate <= maxRate) {
		m.bad("attestation.rate", "%v is not above 0 and at most %d", a.Rate, maxRate)
	}
	if a.Burst < 1 || a.Burst > maxBurst {
		m.bad("attestation.burst", "%d is not between 1 and %d", a.Burst, maxBurst)
	}
	if a.KDS != "" { // else disabled
		if err := checkBaseURL(a.KDS); err != nil {
			m.bad("attestation.kds", "%s", err)
		}
	}
	m.absolute("attestation.cache", a.Cache)
}

func (c *MTLS) validate(m *mistakes) {
	m.absolute("mtls.path", c.Path)
	if len(c.Secrets) > maxSecrets {
		m.bad("mtls.secrets", "%d secrets, at most %d are allowed", len(c.Secrets), maxSecrets)
	}
	first := make(map[string]int)
	for i, s := range c.Secrets {
		key := fmt.Sprintf("mtls.secrets[%d]", i)
		if err := checkSecret(s.Name); err != nil {
			if _, ok := m.places[key+".name"]; ok {
				key += ".name"
			}
			m.bad(key, "%s", err)
		} else if j, ok := first[s.Name]; ok {
			m.bad(key, "the same secret as mtls.secrets[%d]", j)
		} else {
			first[s.Name] = i
		}
		s.validate(m, fmt.Sprintf("mtls.secrets[%d]", i))
	}
	c.validateConsumers(m)
	c.validateIssue(m)
	if c.CAOverlap < 0 || c.CAOverlap > maxOverlap {
		m.bad("mtls.ca_overlap", "%v is not between 0s and 720h", c.CAOverlap)
	}
	m.interval("mtls.poll_interval", c.PollInterval)
	m.interval("mtls.probe_interval", c.ProbeInterval)
	if c.KeyMode&0o007 != 0 {
		m.bad("mtls.key_mode", "\"%#o\" lets everyone at the private keys; the last digit must be 0", c.KeyMode)
	}
	if c.CertMode&0o002 != 0 {
		m.bad("mtls.cert_mode", "\"%#o\" lets everyone replace the trust anchors", c.CertMode)
	}
	m.readable("mtls.key_mode", c.KeyMode)
	m.readable("mtls.cert_mode", c.CertMode)
	for i, e := range c.Endpoints {
		if err := checkHostPort(e); err != nil {
			m.bad(fmt.Sprintf("mtls.endpoints[%d]", i), "%s", err)
		}
	}
}

// validate checks how a secret is to be read. That depends on its form, so at most one of the keys can make sense.
func (s Secret) validate(m *mistakes, key string) {
	var set []string
	if s.Validate != "" {
		set = append(set, "validate")
		if s.Validate != "none" {
			m.bad(key+".validate", "%s is not none", quote(s.Validate))
		}
	}
	if s.As != "" {
		set = append(set, "as")
		m.oneOf(key+".as", s.As, "ca_cert", "peer_ca")
	}
	if s.Fields != (Fields{}) {
		set = append(set, "fields")
	}
	if len(set) > 1 {
		m.bad(key, "%s: only one of them; validate and as are for PEM, fields for JSON", strings.Join(set, ", "))
	}
	fields := reflect.ValueOf(s.Fields)
	first := make(map[string]string)
	for i, ours := range fieldNames(fields.Type()) {
		theirs := cmp.Or(fields.Field(i).String(), ours)
		if other, ok := first[theirs]; ok {
			m.bad(key+".fields."+ours, "the key %s gives %s as well", quote(theirs), other)
		}
		first[theirs] = ours
	}
}

// Names of a consumer's directory, which must be no file's, and of what may be published there.
var (
	labelForm     = pattern.New(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	publishedName = pattern.New(`^(client|server)\.(crt|key|pem)$|^(ca|issuer)\.crt$|^cert-1?[0-9]\.pem$|` +
		`^credential-bundle\.private-key\.pem$`)
)

const maxLabel = 32

// isLabel reports whether s names a consumer's directory or a source in mtls.issue.
func isLabel(s string) bool { return len(s) <= maxLabel && labelForm.MatchString(s) }

func (c *MTLS) validateConsumers(m *mistakes) {
	if len(c.Consumers) > maxConsumers {
		m.bad("mtls.consumers", "%d consumers, at most %d are allowed", len(c.Consumers), maxConsumers)
	}
	first := make(map[string]int)
	for i, consumer := range c.Consumers {
		key := fmt.Sprintf("mtls.consumers[%d]", i)
		if j, ok := first[consumer.Name]; ok {
			m.bad(key+".name", "the same name as mtls.consumers[%d]", j)
		} else if !isLabel(consumer.Name) {
			m.bad(key+".name", "%s is not the name of a directory: 1 to 32 lower-case letters, digits and dashes",
				quote(consumer.Name))
		} else {
			first[consumer.Name] = i
		}
		if len(consumer.Files) == 0 {
			m.bad(key+".files", "empty; name some, such as client.pem and ca.crt")
		}
		for j, name := range consumer.Files {
			fileKey := fmt.Sprintf("%s.files[%d]", key, j)
			if !publishedName.MatchString(name) {
				m.bad(fileKey, "%s is not one of client.crt, client.key, client.pem, "+
					"server.crt, server.key, server.pem, ca.crt, issuer.crt, cert-N.pem, "+
					"credential-bundle.private-key.pem", quote(name))
			} else if slices.Contains(consumer.Files[:j], name) {
				m.bad(fileKey, "named twice")
			}
		}
	}
}

func (l *Listen) validate(m *mistakes) {
	m.absolute("listen.socket", l.Socket)
	if len(l.Socket) > maxSocketPath {
		m.bad("listen.socket", "%d bytes, at most %d are allowed", len(l.Socket), maxSocketPath)
	}
	if l.TCP == "" {
		return // disabled
	}
	if err := checkHostPort(l.TCP); err != nil {
		m.bad("listen.tcp", "%s", err)
	} else if host, _, _ := net.SplitHostPort(l.TCP); !isLoopback(host) {
		m.bad("listen.tcp", "%s is not a loopback address; only this machine may ask", quote(l.TCP))
	}
}

// oneOf, absolute, interval and readable record a mistake in a value of one of the common forms.

func (m *mistakes) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		m.bad(key, "%s is not one of %s", quote(value), strings.Join(allowed, ", "))
	}
}

func (m *mistakes) absolute(key, path string) {
	if !cleanAbsolute(path) {
		m.bad(key, "%s is not an absolute path without \"..\", \"//\" and a final \"/\"", quote(path))
	}
}

func (m *mistakes) interval(key string, value time.Duration) {
	if value < minInterval || value > maxInterval {
		m.bad(key, "%v is not between 5s and 24h", value)
	}
}

func (m *mistakes) readable(key string, mode fs.FileMode) {
	if mode&0o400 == 0 {
		m.bad(key, "\"%#o\" does not let the owner read", mode)
	}
}

func cleanAbsolute(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/" &&
		!strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func checkSecret(s string) error {
	if path, ok := strings.CutPrefix(s, "file://"); ok {
		if !cleanAbsolute(path) {
			return fmt.Errorf("%s does not name a clean absolute path, file:///path", quote(s))
		}
		return nil
	}
	if strings.HasPrefix(s, "arn:") {
		if len(s) > maxSecretARN || !secretARN.MatchString(s) {
			return fmt.Errorf("%s is not the ARN of a Secrets Manager secret", quote(s))
		}
		return nil
	}
	if len(s) > maxSecretName || !secretName.MatchString(s) {
		return fmt.Errorf("%s is not the name of a secret: 1 to 512 letters, digits and /_+=.@-", quote(s))
	}
	return nil
}

// checkBaseURL checks a URL that paths are added to.
func checkBaseURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%s is not a URL such as https://kdsintf.amd.com", quote(s))
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%s is not https; http is for loopback only", quote(s))
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// checkHostPort checks a name or address, the latter in brackets if it is IPv6, with a port.
func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%s is not host:port, with an IPv6 address in brackets", quote(s))
	}
	if _, err := netip.ParseAddr(host); err != nil && (len(host) > maxHostName || !hostName.MatchString(host)) {
		return fmt.Errorf("%s is not the name or address of a host in %s", quote(host), quote(s))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%s has no port from 1 to 65535", quote(s))
	}
	return nil
}
