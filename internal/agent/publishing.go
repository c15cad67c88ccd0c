package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"strings"

	"golang.org/x/sync/errgroup"

	"sevagent/client"
	"sevagent/client/certs"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/source"
	"sevagent/internal/probe"
	"sevagent/internal/promtext"
	"sevagent/internal/readers"
)

// publishing is the rotator and what looks after the readers of its generations.
type publishing struct {
	cloud   *cloud
	issuers *issuers
	rotator *mtls.Rotator
	prober  *probe.Prober
	readers *readers.Watcher
}

func newPublishing(
	cfg config.MTLS, cloud *cloud, proof *attestation, log *slog.Logger, registry *promtext.Registry,
) (*publishing, error) {
	p := &publishing{cloud: cloud, issuers: newIssuers(cloud, proof.extension, log, registry)}
	p.issuers.secret = p.source
	p.issuers.pushed = func(name string) { p.rotator.Pushed(name) }
	settings, err := p.settings(cfg)
	if err != nil {
		return nil, cli.Usage(err)
	}
	p.rotator = mtls.New(mtls.Config{
		Settings:   settings,
		Evidence:   proof.publishedEvidence,
		Registerer: registry,
		Log:        log,
	})
	p.prober = probe.New(probe.Config{
		Material:   func() (*tls.Certificate, *x509.CertPool, error) { return published(cfg.Path) },
		Settings:   probeSettings(cfg),
		Registerer: registry,
		Log:        log,
	})
	p.readers = readers.New(readers.Config{
		Path:       cfg.Path,
		Current:    func(consumer string) string { return p.rotator.Status().GenerationOf(consumer) },
		Registerer: registry,
		Log:        log.With("component", "readers"),
	})
	p.rotator.OnPublish(func(string) {
		p.prober.Hint()
		p.readers.Hint()
	})
	return p, nil
}

func (p *publishing) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.issuers.run(ctx) })
	group.Go(func() error { return p.rotator.Run(ctx) })
	group.Go(func() error { return p.prober.Run(ctx) })
	group.Go(func() error { return p.readers.Run(ctx) })
	return group.Wait()
}

// reconfigure takes over what can change while the agent runs.
func (p *publishing) reconfigure(cfg config.MTLS) error {
	settings, err := p.settings(cfg)
	if err != nil {
		return err
	}
	p.rotator.Apply(settings)
	p.prober.Apply(probeSettings(cfg))
	return nil
}

func probeSettings(cfg config.MTLS) probe.Settings {
	return probe.Settings{Endpoints: cfg.Endpoints, Interval: cfg.ProbeInterval}
}

// settings adds to the configuration where its secrets come from.
func (p *publishing) settings(cfg config.MTLS) (mtls.Settings, error) {
	s := mtls.Settings{MTLS: cfg}
	for _, secret := range cfg.Secrets {
		s.Secrets = append(s.Secrets, mtls.NamedSource{Name: secret.Name, Source: p.source(secret.Name)})
	}
	issued, err := p.issuers.sources(cfg.Issue)
	s.Secrets = append(s.Secrets, issued...)
	return s, err
}

// source returns where the secret of a name in the configuration comes from.
func (p *publishing) source(name string) source.Source {
	if path, ok := strings.CutPrefix(name, "file://"); ok {
		return source.File(path)
	}
	return secretSource{cloud: p.cloud, id: name}
}

// published reads the client certificate and the anchors the way that a container does.
func published(path string) (*tls.Certificate, *x509.CertPool, error) {
	dir, err := certs.Open(path)
	if err != nil {
		return nil, nil, err
	}
	set := dir.Set()
	return set.Client, set.Roots, nil
}

// certificates serves /v1/certificates.
func (p *publishing) certificates() *client.Certificates {
	s := p.rotator.Status()
	return &client.Certificates{
		Path: s.Path, Generation: s.Generation, PublishedAt: s.PublishedAt, Certificates: s.Certificates,
	}
}

func (p *publishing) boundKey(kind string) ([]byte, bool) {
	key, ok := p.rotator.SPKI(kind)
	return key[:], ok
}
