package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Forms of a secret's name.
var (
	secretARN  = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]+$`)
	secretName = regexp.MustCompile(`^[A-Za-z0-9/_+=.@-]{1,512}$`)
)

// maxSocketPath is what fits into sockaddr_un.sun_path with its final NUL.
const maxSocketPath = 107

// validate returns every mistake in a configuration whose types are right.
func (c *Config) validate(places map[string]place) (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%v: %s: %s", places[key], key, fmt.Sprintf(format, args...)))
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
		}
	}
	absolute := func(key, path string) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			bad(key, "%q is not an absolute path without '..', '//' and a final '/'", path)
		}
	}
	between := func(key string, value, min, max time.Duration) {
		if value < min || value > max {
			bad(key, "%v is not between %v and %v", value, min, max)
		}
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "auto", "text", "json")

	a := c.Attestation
	oneOf("attestation.mode", a.Mode, ModeEnforce, ModeWarn, ModeOff)
	oneOf("attestation.transport", a.Transport, "auto", "configfs", "ioctl")
	absolute("attestation.device", a.Device)
	absolute("attestation.configfs", a.Configfs)
	if a.Policy == "" {
		bad("attestation.policy", "empty; name a built-in profile or a file")
	}
	if !(a.Rate > 0 && a.Rate <= 50) {
		bad("attestation.rate", "%v is not above 0 and at most 50", a.Rate)
	}
	if a.Burst < 1 || a.Burst > 64 {
		bad("attestation.burst", "%d is not between 1 and 64", a.Burst)
	}

	m := c.MTLS
	absolute("mtls.path", m.Path)
	if len(m.Secrets) > 20 {
		bad("mtls.secrets", "%d secrets, at most 20 are allowed", len(m.Secrets))
	}
	for i, s := range m.Secrets {
		key := fmt.Sprintf("mtls.secrets[%d]", i)
		if err := checkSecret(s); err != nil {
			bad(key, "%s", err)
		}
		if first := slices.Index(m.Secrets, s); first < i {
			bad(key, "the same secret as mtls.secrets[%d]", first)
		}
	}
	between("mtls.poll_interval", m.PollInterval, 5*time.Second, 24*time.Hour)
	between("mtls.probe_interval", m.ProbeInterval, 5*time.Second, 24*time.Hour)
	if m.KeyMode&0o007 != 0 {
		bad("mtls.key_mode", "%#o lets everyone at the private keys", m.KeyMode)
	}
	if m.KeyMode&0o400 == 0 {
		bad("mtls.key_mode", "%#o does not let the owner read", m.KeyMode)
	}
	if m.CertMode&0o400 == 0 {
		bad("mtls.cert_mode", "%#o does not let the owner read", m.CertMode)
	}
	for i, e := range m.Endpoints {
		if err := checkEndpoint(e); err != nil {
			bad(fmt.Sprintf("mtls.endpoints[%d]", i), "%s", err)
		}
	}

	absolute("listen.socket", c.Listen.Socket)
	if len(c.Listen.Socket) > maxSocketPath {
		bad("listen.socket", "%d bytes, at most %d are allowed", len(c.Listen.Socket), maxSocketPath)
	}
	if tcp := c.Listen.TCP; tcp != "" {
		if err := checkEndpoint(tcp); err != nil {
			bad("listen.tcp", "%s", err)
		} else if host, _, _ := net.SplitHostPort(tcp); host != "localhost" && !isLoopback(host) {
			bad("listen.tcp", "%q is not a loopback address; only this machine may ask", tcp)
		}
	}
	return errs
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func checkSecret(s string) error {
	if path, ok := strings.CutPrefix(s, "file://"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q does not name an absolute path; write file:///path", s)
		}
		return nil
	}
	if strings.HasPrefix(s, "arn:") {
		if !secretARN.MatchString(s) {
			return fmt.Errorf("%q is not the ARN of a Secrets Manager secret", s)
		}
		return nil
	}
	if !secretName.MatchString(s) {
		return fmt.Errorf("%q is not the name of a secret: letters, digits and /_+=.@- only", s)
	}
	return nil
}

func checkEndpoint(e string) error {
	host, port, err := net.SplitHostPort(e)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not host:port", e)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port between 1 and 65535", e)
	}
	return nil
}
