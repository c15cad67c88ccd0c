package mtls

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"path/filepath"

	"sevagent/internal/config"
	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/directory"
	"sevagent/internal/mtls/guard"
	"sevagent/internal/mtls/source"
	"sevagent/internal/promtext"
)

// Config is what a Rotator needs for its life. What an operator may change while it runs is in Settings.
type Config struct {
	// Settings at the start. Path and AllowDisk of them stay for the Rotator's life: Path must be a tmpfs unless
	// AllowDisk lifts that restriction, since no private key is to reach another file system.
	Settings Settings
	// Evidence returns the content of evidence.json for a published key, given the kind of its certificate, "client" or
	// "server", and the SHA-256 of its SubjectPublicKeyInfo. It is called before every publication of a new set, with a
	// deadline of 20 s, and publication waits for it: the node promises evidence for every key that it hands out, and a
	// reader could not tell a missing file from one that was taken away. It may return nil to say that there is to be
	// no evidence. A nil Evidence says so for good.
	Evidence func(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error)
	// Registerer takes the sevagent_mtls_ metrics.
	Registerer *promtext.Registry
	Log        *slog.Logger

	// newGuard returns the guard of a directory. Tests replace it, since the real one makes system calls that synctest
	// does not know to wait for.
	newGuard func(path string) sentinel
	// verifying is called as each verification of certificates begins. Tests make it slow.
	verifying func()
}

// sentinel is what a target needs of a guard.Guard.
type sentinel interface {
	Run(context.Context) error
	Changed() <-chan struct{}
	Expect(*guard.Tree)
	Verify() []guard.Finding
}

// directoryOf describes the directory of a consumer or, if it has no name, the node's own.
func (c *Config) directoryOf(consumer config.Consumer, log *slog.Logger) directory.Config {
	path := filepath.Join(c.Settings.Path, consumer.Name)
	return directory.Config{Path: path, AllowDisk: c.Settings.AllowDisk, Consumer: consumer.Name, Log: log}
}

// Settings can be changed while a Rotator runs, by Apply.
type Settings struct {
	// MTLS is the configuration. The Rotator reads of it what says how to publish, and the interval of polls. Consumers
	// have directories of their own below the published one; the files of one that is dropped are withdrawn.
	config.MTLS
	// Secrets are the sources of MTLS.Secrets, to publish together. With none, the Rotator is ready at once, publishes
	// nothing, and leaves alone what is there.
	Secrets []NamedSource
}

// NamedSource is a secret as the configuration names it. Names are unique.
type NamedSource struct {
	Name   string
	Source source.Source
}

// reading returns how the secret of a name is to be read.
func (s *Settings) reading(name string) certset.Reading {
	for _, c := range s.MTLS.Secrets {
		if c.Name == name {
			return certset.Reading{Validate: c.Validate, As: c.As, Fields: certset.Fields(c.Fields)}
		}
	}
	return certset.Reading{}
}
