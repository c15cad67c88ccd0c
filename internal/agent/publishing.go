package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"sevagent/client"
	"sevagent/client/certs"
	"sevagent/internal/config"
	"sevagent/internal/mtls"
	"sevagent/internal/mtls/source"
	"sevagent/internal/probe"
	"sevagent/internal/readers"
)

// publishing is the rotator and what looks after the readers of its generations.
type publishing struct {
	cloud   *cloud
	rotator *mtls.Rotator
	prober  *probe.Prober
	readers *readers.Watcher
}

// evidenceFor returns the content of evidence.json for a published key, given the kind of its certificate and the
// SHA-256 of its SubjectPublicKeyInfo; nil: there is none.
type evidenceFor func(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error)

func newPublishing(
	cfg config.MTLS, cloud *cloud, evidence evidenceFor, log *slog.Logger, registry prometheus.Registerer,
) *publishing {
	p := &publishing{cloud: cloud}
	p.rotator = mtls.New(mtls.Config{
		Settings:   p.settings(cfg),
		Evidence:   evidence,
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
	return p
}

func (p *publishing) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.rotator.Run(ctx) })
	group.Go(func() error { return p.prober.Run(ctx) })
	group.Go(func() error { return p.readers.Run(ctx) })
	return group.Wait()
}

// reconfigure takes over what can change while the agent runs.
func (p *publishing) reconfigure(cfg config.MTLS) {
	p.rotator.Apply(p.settings(cfg))
	p.prober.Apply(probeSettings(cfg))
}

func probeSettings(cfg config.MTLS) probe.Settings {
	return probe.Settings{Endpoints: cfg.Endpoints, Interval: cfg.ProbeInterval}
}

// settings adds to the configuration where its secrets come from.
func (p *publishing) settings(cfg config.MTLS) mtls.Settings {
	s := mtls.Settings{MTLS: cfg}
	for _, secret := range cfg.Secrets {
		s.Secrets = append(s.Secrets, mtls.NamedSource{Name: secret.Name, Source: p.source(secret.Name)})
	}
	return s
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
