package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"sevagent/client/certs"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/mtls"
	"sevagent/internal/probe"
	"sevagent/internal/readers"
	"sevagent/internal/reload"
)

// certificates is what publishes, and what looks after those who read.
type certificates struct {
	rotator *mtls.Rotator
	prober  *probe.Prober
	readers *readers.Watcher
	reload  *reload.Reloader
}

// newCertificates builds the rotator over the configured secrets, with evidence for each generation, and the parts
// that hear of its generations.
func (a *agent) newCertificates(cfg config.Config, registry prometheus.Registerer) (c certificates) {
	c.prober = probe.New(probe.Config{
		Material:   func() (*tls.Certificate, *x509.CertPool, error) { return published(cfg.MTLS.Path) },
		Settings:   probeSettings(cfg.MTLS),
		Registerer: registry,
		Log:        a.log,
	})
	c.reload = reload.New(reload.Config{
		Path:       cfg.MTLS.Path,
		Docker:     cfg.MTLS.Docker,
		Settings:   reloadSettings(cfg.MTLS),
		Registerer: registry,
		Log:        a.log.With("component", "reload"),
	})
	c.readers = readers.New(readers.Config{
		Path:       cfg.MTLS.Path,
		Current:    func(consumer string) string { return a.rotator.Status().GenerationOf(consumer) },
		Registerer: registry,
		Log:        a.log.With("component", "readers"),
	})
	c.rotator = mtls.New(mtls.Config{
		Path:      cfg.MTLS.Path,
		AllowDisk: cfg.MTLS.AllowDisk,
		Settings:  a.settings(cfg),
		Evidence:  a.publishedEvidence,
		Published: func(generation string) {
			c.prober.Hint()
			c.reload.Published(generation)
			c.readers.Hint()
		},
		Registerer: registry,
		Log:        a.log,
	})
	return c
}

func (c *certificates) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.rotator.Run(ctx) })
	group.Go(func() error { return c.prober.Run(ctx) })
	group.Go(func() error { return c.reload.Run(ctx) })
	group.Go(func() error { return c.readers.Run(ctx) })
	return group.Wait()
}

// apply takes over what a running agent can change.
func (c *certificates) apply(s mtls.Settings, cfg config.MTLS) {
	c.rotator.Apply(s)
	c.prober.Apply(probeSettings(cfg))
	c.reload.Apply(reloadSettings(cfg))
}

func probeSettings(cfg config.MTLS) probe.Settings {
	return probe.Settings{Endpoints: cfg.Endpoints, Interval: cfg.ProbeInterval}
}

func reloadSettings(cfg config.MTLS) reload.Settings {
	return reload.Settings{Enabled: cfg.Reload, Splay: cfg.ReloadSplay}
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

// settings turns the configuration into what the rotator takes.
func (a *agent) settings(cfg config.Config) mtls.Settings {
	s := mtls.Settings{
		PollInterval: cfg.MTLS.PollInterval,
		Owner:        mtls.Owner{UID: cfg.MTLS.Owner.UID, GID: cfg.MTLS.Owner.GID},
		KeyMode:      cfg.MTLS.KeyMode,
		CertMode:     cfg.MTLS.CertMode,
		CAOverlap:    cfg.MTLS.CAOverlap,
	}
	for _, c := range cfg.MTLS.Consumers {
		s.Consumers = append(s.Consumers, mtls.Consumer{Name: c.Name, Owner: mtls.Owner{UID: c.Owner.UID, GID: c.Owner.GID}, Files: c.Files})
	}
	for _, name := range cfg.MTLS.Secrets {
		source := mtls.NamedSource{Name: name}
		if path, ok := strings.CutPrefix(name, "file://"); ok {
			source.Source = mtls.FileSource(path)
		} else {
			source.Source = secretSource{cloud: a.cloud, id: name}
		}
		s.Secrets = append(s.Secrets, source)
	}
	return s
}

// publishedEvidence makes the content of evidence.json for a generation's key. Without attestation there is none;
// in mode warn a node that cannot attest still publishes.
func (a *agent) publishedEvidence(ctx context.Context, b mtls.Binding) ([]byte, error) {
	if a.attest == nil {
		return nil, nil
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	doc, _, err := a.attest.worker.Evidence(ctx, evidence.Claims{
		Purpose: evidence.PurposeMTLS,
		Nonce:   nonce,
		Binding: evidence.Binding{Kind: b.Kind, SPKISHA256: b.SPKISHA256[:]},
		Caller:  evidence.Caller{UID: uint32(os.Getuid())},
	})
	if err != nil {
		if a.cfg.Load().Attestation.Mode == config.ModeWarn {
			return nil, nil
		}
		return nil, err
	}
	return json.Marshal(doc)
}
