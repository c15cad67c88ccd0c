package mtls

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sevagent/internal/mtls/directory"
	"sevagent/internal/mtls/guard"
	"sevagent/internal/mtls/source"
)

// Config is what a Rotator needs for its life. What an operator may change while it runs is in Settings.
type Config struct {
	// Path is the published directory: mtls.path. It must be a tmpfs, and no private key ever reaches another file system.
	Path string
	// AllowDisk lifts that restriction: mtls.allow_disk.
	AllowDisk bool
	// Settings at the start.
	Settings Settings
	// Evidence returns the content of evidence.json for a published key, given the kind of its certificate, "client" or
	// "server", and the SHA-256 of its SubjectPublicKeyInfo. It is called before every publication of a new set, with a
	// deadline of 20 s, and publication waits for it: the node promises evidence for every key that it hands out, and a
	// reader could not tell a missing file from one that was taken away. It may return nil to say that there is to be no
	// evidence. A nil Evidence says so for good.
	Evidence func(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error)
	// Published, if not nil, is called after there are new generations, of Path or of a consumer's directory; it gets
	// that of Path. It must not wait for anything.
	Published func(generation string)
	// Registerer takes the sevagent_mtls_ metrics.
	Registerer prometheus.Registerer
	Log        *slog.Logger

	// newGuard returns the guard of a directory. Tests replace it, since the real one makes system calls that synctest
	// does not know to wait for.
	newGuard func(path string) sentinel
}

// sentinel is what a target needs of a guard.Guard.
type sentinel interface {
	Run(context.Context) error
	Changed() <-chan struct{}
	Expect(*guard.Tree)
	Verify() []guard.Finding
}

// directoryOf describes the directory of a consumer or, if it has no name, the node's own.
func (c *Config) directoryOf(consumer Consumer, log *slog.Logger) directory.Config {
	path := filepath.Join(c.Path, consumer.Name)
	return directory.Config{Path: path, AllowDisk: c.AllowDisk, Consumer: consumer.Name, Log: log}
}

// Settings can be changed while a Rotator runs, by Apply.
type Settings struct {
	// Secrets to publish together: mtls.secrets. With none, the Rotator is ready at once, publishes nothing, and
	// leaves alone what is there.
	Secrets []NamedSource
	// PollInterval is the longest time between two looks at a secret: mtls.poll_interval. It is jittered by ±20 %,
	// and shorter near a rotation or an expiry.
	PollInterval time.Duration
	// Owner and modes of the published files: mtls.owner, mtls.key_mode, mtls.cert_mode. KeyMode is for every file
	// that holds, or may hold, a private key.
	Owner             Owner
	KeyMode, CertMode fs.FileMode
	// Consumers have directories of their own below the published one, with their own owner and fewer files:
	// mtls.consumers. Names are unique. The files of one that is dropped are withdrawn.
	Consumers []Consumer
	// CAOverlap is how long ca.crt still holds the anchors that a new version has dropped: mtls.ca_overlap. 0: not at
	// all, including those that it holds now.
	CAOverlap time.Duration
}

// NamedSource is a secret as the configuration names it. Names are unique.
type NamedSource struct {
	Name   string
	Source source.Source
}

// Owner is the numeric owner of published files.
type Owner = directory.Owner

// Consumer is a directory of its own below the published one, for containers that are to see no more than they need.
type Consumer struct {
	// Name of the directory: letters, digits and dashes, so that it is no file's.
	Name  string
	Owner Owner
	// Files to publish there, such as client.pem.
	Files []string
}
