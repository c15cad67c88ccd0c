package config

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"sevagent/internal/pattern"
)

// Issue is where a certificate comes from whose private key is made on the node.
type Issue struct {
	// Name is the source's in status and manifest, as issue/NAME: lower-case letters, digits and dashes, at most 32.
	Name string `yaml:"name"`
	// From is acm-pca (AWS Private CA), acme (RFC 8555) or spiffe (the SPIFFE Workload API).
	From string `yaml:"from"`
	// Gives is what the certificate is for: client, server or both. Default with Template: what that is for.
	Gives []string `yaml:"gives"`
	// CommonName, DNS and URI are the names in the certificate. {instance_id}, {account}, {region} and {private_dns} stand
	// for those of the node. Default: with acm-pca the common name {instance_id}, no others. ACME takes DNS names, and a
	// common name that is one of them. SPIFFE names by itself.
	CommonName string   `yaml:"common_name"`
	DNS        []string `yaml:"dns"`
	URI        []string `yaml:"uri"`
	// Key is ecdsa-p256 or ecdsa-p384. Default ecdsa-p256. SPIFFE decides by itself.
	Key string `yaml:"key"`
	// Evidence is none or, with acm-pca, extension: the certificate carries attestation evidence for its key. Default
	// extension if Template ends in _APIPassthrough, else none.
	Evidence string `yaml:"evidence"`

	// CA is the ARN of the Private CA.
	CA string `yaml:"ca"`
	// Template is Private CA's, by name or ARN. Default by Gives and Evidence: EndEntityClientAuthCertificate/V1,
	// EndEntityServerAuthCertificate/V1 or EndEntityCertificate/V1, and with Evidence those that end in _APIPassthrough.
	Template string `yaml:"template"`
	// ValidityDays is how long Private CA's certificates are valid from their issuance, 1 to 397 days. Default 1.
	ValidityDays int `yaml:"validity_days"`

	// Directory is the URL of the ACME server's directory.
	Directory string `yaml:"directory"`
	// Roots is a PEM file with what the ACME server's TLS certificate is verified with and what its certificates lead to.
	// Default: the system's for the former, and ca_cert of a secret for the latter.
	Roots string `yaml:"roots"`
	// EAB is the secret with the external account binding, as in secrets: JSON with kid and hmac_key (base64url).
	// Default: none.
	EAB string `yaml:"eab"`
	// Contact are URLs under which the ACME server reaches the account's owner: mailto: with one address each. Default
	// none.
	Contact []string `yaml:"contact"`
	// Profile is the ACME server's. Default: the server's default.
	Profile string `yaml:"profile"`
	// Challenge is how the ACME server is shown that a name is the node's: none, where it knows, or http-01. Default none.
	Challenge string `yaml:"challenge"`
	// ChallengeListen is where http-01 is answered, host:port or :port, which the ACME server reaches by port 80 of each
	// name unless it is set to ask another. Without a default: below 1024, the unit needs CAP_NET_BIND_SERVICE.
	ChallengeListen string `yaml:"challenge_listen"`

	// Socket of the SPIFFE Workload API. Default /run/spire/agent/public/api.sock.
	Socket string `yaml:"socket"`
	// SocketUID is the user whose SPIRE agent is believed, beside root's. Default 0.
	SocketUID int `yaml:"socket_uid"`
	// SocketInContainer has a SPIRE agent in a container believed. Any container that can write to the socket's directory
	// can then pose as it. Default false.
	SocketInContainer bool `yaml:"socket_in_container"`
	// ID is the SPIFFE ID to take. Needed where the Workload API offers several.
	ID string `yaml:"id"`
}

// Kinds returns what the certificate is for, client before server.
func (s Issue) Kinds() []string {
	if len(s.Gives) > 0 {
		return slices.Sorted(slices.Values(s.Gives))
	}
	switch name := s.TemplateName(); {
	case name == "":
		return nil
	case strings.HasPrefix(name, "EndEntityClientAuth"):
		return []string{"client"}
	case strings.HasPrefix(name, "EndEntityServerAuth"):
		return []string{"server"}
	}
	return []string{"client", "server"}
}

// WithEvidence reports whether the certificate carries evidence.
func (s Issue) WithEvidence() bool {
	if s.Evidence != "" {
		return s.Evidence == EvidenceExtension
	}
	return strings.Contains(s.Template, passthrough+"/")
}

// passthrough ends the names of Private CA's templates that take extensions.
const passthrough = "_APIPassthrough"

// TemplateName returns the name of Private CA's template; empty if there is nothing to choose it by.
func (s Issue) TemplateName() string {
	if s.Template != "" {
		_, name, isARN := strings.Cut(s.Template, ":template/")
		if !isARN {
			name = s.Template
		}
		return name
	}
	name := ""
	switch kinds := slices.Sorted(slices.Values(s.Gives)); {
	case len(kinds) == 0:
		return ""
	case len(kinds) > 1:
		name = "EndEntityCertificate"
	case kinds[0] == "client":
		name = "EndEntityClientAuthCertificate"
	default:
		name = "EndEntityServerAuthCertificate"
	}
	if s.Evidence == EvidenceExtension {
		name += passthrough
	}
	return name + "/V1"
}

// Sources of certificates for keys of the node.
const (
	FromPrivateCA = "acm-pca"
	FromACME      = "acme"
	FromSPIFFE    = "spiffe"
)

// SPIFFESocket is the default of Issue.Socket.
const SPIFFESocket = "/run/spire/agent/public/api.sock"

// EvidenceExtension puts evidence into the certificate.
const EvidenceExtension = "extension"

// IssuePrefix begins the names of these sources in status and manifest.
const IssuePrefix = "issue/"

// maxIssues bounds the sources: one for the client's certificate, one for the server's.
const maxIssues = 2

// maxDays is the longest life that public CAs ever gave in this decade; short ones are what this is for.
const maxDays = 397

var (
	privateCA = pattern.New(
		`^arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[0-9a-f-]+$`)
	caTemplate = pattern.New(`^(arn:aws[a-z-]*:acm-pca:::template/)?` +
		`EndEntity((Client|Server)Auth)?Certificate(_APIPassthrough)?/V1$`)
	mailto      = pattern.New(`^mailto:[^@,?\s[:cntrl:]]+@[A-Za-z0-9.-]+$`) // RFC 8555, 7.3
	placeholder = pattern.New(`\{[^}]*\}?`)
	spiffeID    = pattern.New(`^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$`)
)

// Placeholders are what may stand in names for those of the node.
func Placeholders() []string {
	return []string{"{instance_id}", "{account}", "{region}", "{private_dns}"}
}

func (c *MTLS) validateIssue(m *mistakes) {
	if len(c.Issue) > maxIssues {
		m.bad("mtls.issue", "%d sources, at most %d are allowed", len(c.Issue), maxIssues)
	}
	names, givers := make(map[string]int), make(map[string]int)
	for i, s := range c.Issue {
		key := fmt.Sprintf("mtls.issue[%d]", i)
		if j, ok := names[s.Name]; ok {
			m.bad(key+".name", "the same name as mtls.issue[%d]", j)
		} else if !isLabel(s.Name) {
			m.bad(key+".name", "%s is not a name: 1 to 32 lower-case letters, digits and dashes", quote(s.Name))
		}
		names[s.Name] = i
		for _, kind := range s.Kinds() {
			if j, ok := givers[kind]; ok {
				m.bad(key+".gives", "%s is what mtls.issue[%d] gives", quote(kind), j)
			}
			givers[kind] = i
		}
		s.validate(m, key)
	}
}

func (s Issue) validate(m *mistakes, key string) {
	if len(s.Kinds()) == 0 {
		m.bad(key+".gives", "empty; name client, server or both")
	}
	for i, kind := range s.Gives {
		m.oneOf(fmt.Sprintf("%s.gives[%d]", key, i), kind, "client", "server")
	}
	if fits := (Issue{Template: s.Template}).Kinds(); len(s.Gives) > 0 && s.Template != "" {
		for _, kind := range s.Gives {
			if !slices.Contains(fits, kind) {
				m.bad(key+".template", "%s makes no certificates for a %s, which gives names", quote(s.Template), kind)
			}
		}
	}
	m.oneOf(key+".from", s.From, FromPrivateCA, FromACME, FromSPIFFE)
	optional := func(name, value string, allowed ...string) {
		if value != "" {
			m.oneOf(key+"."+name, value, allowed...)
		}
	}
	optional("key", s.Key, "ecdsa-p256", "ecdsa-p384")
	optional("evidence", s.Evidence, "none", EvidenceExtension)
	optional("challenge", s.Challenge, "none", "http-01")
	s.validateFor(m, key)
	validateName(m, key+".common_name", "common_name", s.CommonName)
	for i, name := range s.DNS {
		validateName(m, fmt.Sprintf("%s.dns[%d]", key, i), "dns", name)
	}
	for i, name := range s.URI {
		validateName(m, fmt.Sprintf("%s.uri[%d]", key, i), "uri", name)
	}
}

// validateFor verifies the keys that are for one kind of source, and that no others are set.
func (s Issue) validateFor(m *mistakes, key string) {
	for _, k := range []struct {
		from, name string
		isSet      bool
	}{
		{FromPrivateCA, "ca", s.CA != ""},
		{FromPrivateCA, "template", s.Template != ""},
		{FromPrivateCA, "validity_days", s.ValidityDays != 0},
		{FromACME, "directory", s.Directory != ""},
		{FromACME, "roots", s.Roots != ""},
		{FromACME, "eab", s.EAB != ""},
		{FromACME, "contact", len(s.Contact) > 0},
		{FromACME, "profile", s.Profile != ""},
		{FromACME, "challenge", s.Challenge != ""},
		{FromACME, "challenge_listen", s.ChallengeListen != ""},
		{FromSPIFFE, "socket", s.Socket != ""},
		{FromSPIFFE, "id", s.ID != ""},
		{FromSPIFFE, "socket_uid", s.SocketUID != 0},
		{FromSPIFFE, "socket_in_container", s.SocketInContainer},
	} {
		if k.isSet && k.from != s.From {
			m.bad(key+"."+k.name, "is for from: %s", k.from)
		}
	}
	switch s.From {
	case FromPrivateCA:
		if !privateCA.MatchString(s.CA) {
			m.bad(key+".ca", "%s is not the ARN of a Private CA", quote(s.CA))
		}
		if s.Template != "" && !caTemplate.MatchString(s.Template) {
			m.bad(key+".template", "%s is not the name of a template, such as EndEntityClientAuthCertificate/V1",
				quote(s.Template))
		}
		if s.ValidityDays < 0 || s.ValidityDays > maxDays {
			m.bad(key+".validity_days", "%d is not 1 to %d", s.ValidityDays, maxDays)
		}
		if s.Evidence == EvidenceExtension && s.Template != "" && !strings.Contains(s.Template, passthrough+"/") {
			m.bad(key+".template", "%s takes no extension; evidence: %s needs an _APIPassthrough template",
				quote(s.Template), EvidenceExtension)
		}
	case FromACME:
		if err := checkBaseURL(s.Directory); err != nil {
			m.bad(key+".directory", "%s", err)
		} else if !strings.HasPrefix(s.Directory, "https:") {
			m.bad(key+".directory", "%s is not https, which ACME needs even on loopback", quote(s.Directory))
		}
		if s.Roots != "" {
			m.absolute(key+".roots", s.Roots)
		}
		if s.EAB != "" {
			if err := checkSecret(s.EAB); err != nil {
				m.bad(key+".eab", "%s", err)
			}
		}
		for i, c := range s.Contact {
			if !mailto.MatchString(c) {
				m.bad(fmt.Sprintf("%s.contact[%d]", key, i), "%s is not mailto: with one address", quote(c))
			}
		}
		if s.Challenge == "http-01" {
			if err := checkListen(s.ChallengeListen); err != nil {
				m.bad(key+".challenge_listen", "%s", err)
			}
		} else if s.ChallengeListen != "" {
			m.bad(key+".challenge_listen", "is for challenge: http-01")
		}
		if len(s.URI) > 0 {
			m.bad(key+".uri", "ACME is for DNS names")
		}
		if s.CommonName != "" && !slices.Contains(s.DNS, s.CommonName) {
			m.bad(key+".common_name", "%s is not one of dns, as ACME wants it", quote(s.CommonName))
		}
		if len(s.DNS) == 0 {
			m.bad(key+".dns", "empty; ACME is for DNS names, name one at least")
		}
	case FromSPIFFE:
		if s.Socket != "" {
			m.absolute(key+".socket", s.Socket)
			if len(s.Socket) > maxSocketPath {
				m.bad(key+".socket", "%d bytes, at most %d are allowed", len(s.Socket), maxSocketPath)
			}
		}
		if s.SocketUID < 0 || s.SocketUID > math.MaxInt32 {
			m.bad(key+".socket_uid", "%d is not a user ID", s.SocketUID)
		}
		dots := func(segment string) bool { return segment == "." || segment == ".." }
		if s.ID != "" && (!spiffeID.MatchString(s.ID) || slices.ContainsFunc(strings.Split(s.ID, "/"), dots)) {
			m.bad(key+".id", "%s is not a SPIFFE ID, spiffe://trust-domain/path", quote(s.ID))
		}
		if s.CommonName != "" || len(s.DNS)+len(s.URI) > 0 || s.Key != "" {
			m.bad(key, "common_name, dns, uri and key: SPIFFE's registration entry decides; remove them here")
		}
	}
	if s.From != FromPrivateCA && s.Evidence == EvidenceExtension {
		m.bad(key+".evidence", "only acm-pca can put evidence into the certificate; peers find it in evidence.json")
	}
}

// validateName verifies a name for the certificate, with placeholders of plausible values put in.
func validateName(m *mistakes, key, kind, value string) {
	plain := placeholder.ReplaceAllStringFunc(value, func(p string) string {
		if slices.Contains(Placeholders(), p) {
			return "x"
		}
		m.bad(key, "%s is not one of %s", quote(p), strings.Join(Placeholders(), ", "))
		return "x"
	})
	u, err := url.Parse(plain)
	switch {
	case kind == "dns" && (len(plain) > maxHostName || !hostName.MatchString(strings.TrimPrefix(plain, "*."))):
		m.bad(key, "%s is not a DNS name", quote(value))
	case kind == "uri" && (err != nil || u.Scheme == "" || u.Host == ""):
		m.bad(key, "%s is not a URI with a scheme and a host", quote(value))
	case kind == "common_name" && (len(plain) > 64 || strings.ContainsFunc(plain, func(r rune) bool { return r < ' ' })):
		m.bad(key, "%s is not a common name: at most 64 printable characters", quote(value))
	}
}

// checkListen checks host:port, where the host may be left out.
func checkListen(s string) error {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s = netip.IPv4Unspecified().String() + ":" + port
	}
	return checkHostPort(s)
}

// CheckRoots reads the files that Issue names, as LoadPolicy does the policy's.
func (c MTLS) CheckRoots() error {
	for i, s := range c.Issue {
		if s.Roots == "" {
			continue
		}
		if _, err := LoadRoots(s.Roots); err != nil {
			return fmt.Errorf("mtls.issue[%d].roots: %w", i, err)
		}
	}
	return nil
}

// LoadRoots reads a PEM file of certificates, such as Issue.Roots.
func LoadRoots(path string) (roots []*x509.Certificate, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("read %s: it holds no certificate in PEM", path)
	}
	return roots, nil
}
