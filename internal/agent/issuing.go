package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"sevagent/internal/awsconfig"
	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/issue/acme"
	"sevagent/internal/mtls/issue/privateca"
	"sevagent/internal/mtls/source"
	"sevagent/internal/mtls/spiffe"
	"sevagent/internal/promtext"
	"sevagent/internal/strictjson"
)

// issuers are the sources of mtls.issue. A source lives as long as its entry in the configuration stays the same, with
// the roots that it names, since it has a key in memory and an order under way.
type issuers struct {
	cloud    *cloud
	evidence extensionFor
	secret   func(name string) source.Source // by its name in the configuration
	pushed   func(name string)
	attempts *promtext.Counters // source, result
	log      *slog.Logger

	mu      sync.Mutex
	ctx     context.Context // of run; nil: it has not begun
	running sync.WaitGroup
	known   map[string]*issuer
}

// issuer is one entry of mtls.issue.
type issuer struct {
	config config.Issue
	roots  []*x509.Certificate // that config.Roots names
	source source.Issuing
	stop   context.CancelFunc // nil: it does not run
}

// extensionFor returns the value of the extension that carries evidence for a key, given the kind of its certificate
// and the SHA-256 of its SubjectPublicKeyInfo; nil: there is none.
type extensionFor func(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error)

func newIssuers(cloud *cloud, evidence extensionFor, log *slog.Logger, registry *promtext.Registry) *issuers {
	return &issuers{
		cloud:    cloud,
		evidence: evidence,
		log:      log.With("component", "mtls"),
		known:    make(map[string]*issuer),
		attempts: registry.Counters("sevagent_mtls_issue_attempts_total",
			"Orders of certificates for keys of this node, by source and by how they ended.", "source", "result"),
	}
}

// sources returns the sources that are configured, and ends those that are not any more. After an error all is as
// before.
func (i *issuers) sources(list []config.Issue) (named []mtls.NamedSource, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := make(map[string]*issuer)
	for _, c := range list {
		var roots []*x509.Certificate
		if c.Roots != "" {
			if roots, err = config.LoadRoots(c.Roots); err != nil {
				return nil, fmt.Errorf("mtls.issue %s: %w", c.Name, err)
			}
		}
		s := i.known[c.Name]
		if s == nil || !reflect.DeepEqual(s.config, c) || !slices.EqualFunc(s.roots, roots, (*x509.Certificate).Equal) {
			s = &issuer{config: c, roots: roots}
			if s.source, err = i.open(c, roots); err != nil {
				return nil, fmt.Errorf("mtls.issue %s: %w", c.Name, err)
			}
		}
		next[c.Name] = s
		named = append(named, mtls.NamedSource{Name: config.IssuePrefix + c.Name, Source: s.source})
	}
	for name, s := range i.known {
		if next[name] != s && s.stop != nil {
			s.stop()
		}
	}
	for name, s := range next {
		if i.known[name] != s {
			i.start(s)
		}
	}
	i.known = next
	return named, nil
}

// run runs the sources that have something to run, until ctx ends.
func (i *issuers) run(ctx context.Context) error {
	i.mu.Lock()
	i.ctx = ctx
	for _, s := range i.known {
		i.start(s)
	}
	i.mu.Unlock()
	<-ctx.Done()
	i.running.Wait()
	return nil
}

func (i *issuers) start(s *issuer) {
	r, ok := s.source.(interface{ Run(context.Context) error })
	if !ok || i.ctx == nil || i.ctx.Err() != nil {
		return
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(i.ctx)
	i.running.Go(func() {
		if err := r.Run(ctx); err != nil && ctx.Err() == nil {
			i.log.Error("a source of certificates has stopped; restart the agent", "secret", s.config.Name, "err", err)
		}
	})
}

// open makes the source of an entry.
func (i *issuers) open(c config.Issue, roots []*x509.Certificate) (source.Issuing, error) {
	name := config.IssuePrefix + c.Name
	gives := c.Kinds()
	if c.From == config.FromSPIFFE {
		return spiffe.New(spiffe.Config{
			Name: name, Socket: cmp.Or(c.Socket, config.SPIFFESocket), ID: c.ID, Gives: gives,
			Owner: uint32(c.SocketUID), Contained: c.SocketInContainer, Changed: func() { i.pushed(name) }, Log: i.log,
		}), nil
	}
	conf := issue.Config{
		Name: name, From: c.From, Gives: gives, Key: cmp.Or(c.Key, "ecdsa-p256"), Spec: specOf(c, roots), Log: i.log,
		Names: func(ctx context.Context) (*x509.CertificateRequest, error) { return i.names(ctx, c) },
	}
	for _, result := range []string{"issued", string(source.Transient), string(source.Persistent)} {
		i.attempts.With(name, result)
	}
	conf.Attempted = func(result string) { i.attempts.With(name, result).Inc() }
	if c.WithEvidence() {
		conf.Evidence = i.evidence
	}
	switch c.From {
	case config.FromPrivateCA:
		authority, err := privateca.New(privateca.Config{
			CA:       c.CA,
			Template: c.TemplateName(),
			Days:     cmp.Or(c.ValidityDays, 1),
			Access:   func(context.Context) (aws.Config, error) { return awsconfig.Load() },
		})
		if err != nil {
			return nil, err
		}
		conf.Authority = authority
	default:
		conf.Authority = i.acme(c, roots)
	}
	return issue.New(conf), nil
}

func (i *issuers) acme(c config.Issue, roots []*x509.Certificate) *acme.Authority {
	conf := acme.Config{
		Anchors: roots, Directory: c.Directory, Contact: c.Contact, Profile: c.Profile,
		Challenge: cmp.Or(c.Challenge, acme.None), Listen: c.ChallengeListen, Log: i.log,
	}
	if c.EAB != "" {
		conf.EAB = func(ctx context.Context) (string, []byte, error) { return readEAB(ctx, i.secret(c.EAB)) }
	}
	if c.Roots != "" {
		conf.Roots = x509.NewCertPool()
		for _, r := range roots {
			conf.Roots.AddCert(r)
		}
	}
	return acme.New(conf)
}

// readEAB reads an external account binding (RFC 8555, 7.3.4).
func readEAB(ctx context.Context, s source.Source) (kid string, mac []byte, err error) {
	v, err := s.Describe(ctx)
	if err != nil {
		return "", nil, err
	}
	content, err := s.Fetch(ctx, v.Current, source.Current)
	if err != nil {
		return "", nil, err
	}
	var eab struct {
		KID     string `json:"kid"`
		HMACKey string `json:"hmac_key"`
	}
	if err := strictjson.Unmarshal(content(), &eab); err != nil {
		return "", nil, fmt.Errorf("read the external account binding, which is JSON with kid and hmac_key: %w", err)
	}
	mac, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(eab.HMACKey, "="))
	if err != nil || len(mac) == 0 || eab.KID == "" {
		return "", nil, fmt.Errorf("read the external account binding: want kid, and hmac_key in base64url")
	}
	return eab.KID, mac, nil
}

// onTheWay are the keys of an entry that say how a certificate is come by, and change nothing in it.
var onTheWay = []string{"name", "eab", "contact", "challenge", "challenge_listen"}

// specOf names what is ordered by the keys that are set, so that a key of a later version that is not set changes
// nothing, and by the roots, which are published with it.
func specOf(c config.Issue, roots []*x509.Certificate) string {
	var b strings.Builder
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); !slices.Contains(onTheWay, tag) && !v.Field(i).IsZero() {
			fmt.Fprintf(&b, "%s=%v\n", tag, v.Field(i))
		}
	}
	for _, r := range roots {
		fmt.Fprintf(&b, "root %x\n", sha256.Sum256(r.Raw))
	}
	return b.String()
}

// names returns the request for a certificate of this node.
func (i *issuers) names(ctx context.Context, c config.Issue) (*x509.CertificateRequest, error) {
	common := c.CommonName
	if common == "" && c.From == config.FromPrivateCA { // which wants a subject or names
		common = "{instance_id}"
	}
	texts := append([]string{common}, slices.Concat(c.DNS, c.URI)...)
	for k, placeholder := range config.Placeholders() {
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, placeholder) }) {
			continue
		}
		value, err := i.cloud.fact(ctx, placeholder)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", config.Placeholders()[k], err)
		}
		for j := range texts {
			texts[j] = strings.ReplaceAll(texts[j], placeholder, value)
		}
	}
	request := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: texts[0]},
		DNSNames: texts[1 : 1+len(c.DNS)],
	}
	for _, text := range texts[1+len(c.DNS):] {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		request.URIs = append(request.URIs, u)
	}
	return request, nil
}

// fact returns what a placeholder in the names of a certificate stands for.
func (c *cloud) fact(ctx context.Context, placeholder string) (string, error) {
	cfg, err := awsconfig.Load()
	if err != nil {
		return "", err
	}
	if placeholder == "{private_dns}" {
		answer, err := awsconfig.Metadata(cfg).GetMetadata(ctx, &imds.GetMetadataInput{Path: "local-hostname"})
		if err != nil {
			return "", fmt.Errorf("ask the instance metadata service for local-hostname: %w", err)
		}
		defer answer.Content.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Content, 256))
		name, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ") // a VPC may have several domains
		return name, err
	}
	if c.identity.Load() == nil {
		if _, err := c.askMetadata(ctx, cfg); err != nil {
			return "", fmt.Errorf("ask the instance metadata service: %w", err)
		}
	}
	i := c.instance()
	return map[string]string{"{instance_id}": i.ID, "{account}": i.AccountID, "{region}": i.Region}[placeholder], nil
}
