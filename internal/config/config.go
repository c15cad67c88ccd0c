// Package config reads the agent's configuration and policy files, strictly: an unknown or doubled key, a second
// document or a wrong type is a mistake, and all mistakes are reported at once, each as `file:line: key: what is
// wrong`.
//
// The order is fixed: defaults, config.yaml, conf.d/*.yaml in the order of their names. A later file overrides the
// keys that it sets. Nothing else reads files or the environment, and validation changes nothing.
package config

import (
	"io/fs"
	"log/slog"
	"slices"
	"time"
)

// Config is the whole configuration. These comments are its manual.
type Config struct {
	Log         Log         `yaml:"log"`
	Attestation Attestation `yaml:"attestation"`
	MTLS        MTLS        `yaml:"mtls"`
	Listen      Listen      `yaml:"listen"`
}

// Log is how the agent writes to standard error.
type Log struct {
	// Level is debug, info, warn or error. Default info. SIGHUP changes it.
	Level string `yaml:"level"`
	// Format is text, json, or auto: text on a terminal, else JSON. Default auto.
	Format string `yaml:"format"`
}

// SlogLevel returns Level for log/slog.
func (l Log) SlogLevel() slog.Level {
	var level slog.Level
	if level.UnmarshalText([]byte(l.Level)) != nil {
		return slog.LevelInfo // validate refuses what does not parse
	}
	return level
}

// Modes of attestation.
const (
	ModeEnforce = "enforce"
	ModeWarn    = "warn"
	ModeOff     = "off"
)

// Values of Attestation.NitroTPM.
const (
	NitroTPMAuto    = "auto"
	NitroTPMRequire = "require"
	NitroTPMOff     = "off"
)

// Attestation is how the node proves what it is.
type Attestation struct {
	// Mode is enforce (no proof, no readiness), warn (go on, and say so) or off. Default enforce.
	Mode string `yaml:"mode"`
	// Transport is auto, configfs or ioctl. Default auto.
	Transport string `yaml:"transport"`
	// Device is the character device. Default /dev/sev-guest.
	Device string `yaml:"device"`
	// Configfs is the report directory of configfs-tsm. Default /sys/kernel/config/tsm/report.
	Configfs string `yaml:"configfs"`
	// Policy is a built-in profile, aws-shared or aws-dedicated, or the path of a policy file. Default aws-shared.
	Policy string `yaml:"policy"`
	// NitroTPM is auto (evidence has a document of the node's NitroTPM where there is one), require or off. Default auto.
	NitroTPM string `yaml:"nitrotpm"`
	// TPM lists the TPM's devices in the order to try them. Default /dev/tpmrm0 and /dev/tpm0.
	TPM []string `yaml:"tpm"`
	// Rate is the number of device requests a second that are sustained, above 0 and at most 50. Default 1.
	Rate float64 `yaml:"rate"`
	// Burst is how many requests may come at once, 1 to 64. Default 4.
	Burst int `yaml:"burst"`
	// KDS is AMD's key distribution service, asked for the VCEK where a report is signed by one and the host adds no
	// certificate: on Dedicated Hosts. https, or http on loopback; empty disables it. Default https://kdsintf.amd.com.
	KDS string `yaml:"kds"`
	// Cache is the directory where VCEK certificates are kept. Default /var/lib/sevagent.
	Cache string `yaml:"cache"`
}

// MTLS is what is published, and where.
type MTLS struct {
	// Path is the published directory. Default /etc/ecs/mtls.
	Path string `yaml:"path"`
	// Secrets to publish, at most 20. Default none: nothing is published.
	Secrets []Secret `yaml:"secrets"`
	// Issue are sources of certificates whose private keys are made on the node; at most 2. Default none.
	Issue []Issue `yaml:"issue"`
	// PollInterval is how often each secret is looked at, 5s to 24h, varied by 20 % each time. Default 5m.
	PollInterval time.Duration `yaml:"poll_interval"`
	// Owner is the numeric "uid:gid" of the published files. Default 0:0.
	Owner Owner `yaml:"owner"`
	// KeyMode is the mode of files with a private key, octal; nothing for others. Default 0400: a container that is given
	// a bare user ID has group 0, and would read keys of 0:0 with 0440.
	KeyMode fs.FileMode `yaml:"key_mode"`
	// CertMode is the mode of all other files, octal. Default 0444.
	CertMode fs.FileMode `yaml:"cert_mode"`
	// Consumers get directories of their own below Path, with their own owner and some of the files; at most 8.
	Consumers []Consumer `yaml:"consumers"`
	// CAOverlap is how long ca.crt still holds the anchors that a new version has not, at most 720h. Default 0s: not
	// at all. A secret with "ca_overlap": false drops them at once.
	CAOverlap time.Duration `yaml:"ca_overlap"`
	// AllowRemoval publishes a version of a secret even if it takes away files that the version before gave. Default
	// false: it is rejected.
	AllowRemoval bool `yaml:"allow_removal"`
	// AllowDisk lets Path be on something else than a tmpfs, where private keys reach a disk. Default false.
	AllowDisk bool `yaml:"allow_disk"`
	// Endpoints are the enclave servers, host:port. Default none.
	Endpoints []string `yaml:"endpoints"`
	// ProbeInterval is how often each endpoint is probed, 5s to 24h. Default 60s.
	ProbeInterval time.Duration `yaml:"probe_interval"`
}

// Secret is where a secret is and, if that is not as it looks, how it is read. A name alone stands for a Secret that
// has nothing else.
type Secret struct {
	// Name is an ARN or a name in Secrets Manager, or file:///path.
	Name string `yaml:"name"`
	// Validate is none to publish PEM outside of JSON without verifying it.
	Validate string `yaml:"validate"`
	// As is the field that PEM outside of JSON gives, ca_cert or peer_ca. Default: it is published as cert-N.pem.
	As string `yaml:"as"`
	// Fields are the keys of a JSON secret whose names are not ours.
	Fields Fields `yaml:"fields"`
}

// Fields are the keys of a JSON secret, by the field that each of them gives. Default for each: the same name.
type Fields struct {
	ClientCert string `yaml:"client_cert"`
	ClientKey  string `yaml:"client_key"`
	CACert     string `yaml:"ca_cert"`
	ServerCert string `yaml:"server_cert"`
	ServerKey  string `yaml:"server_key"`
	PeerCA     string `yaml:"peer_ca"`
}

// Consumer is a directory for containers that need not see everything.
type Consumer struct {
	// Name of the directory below Path: lower-case letters, digits and dashes, at most 32.
	Name string `yaml:"name"`
	// Owner is the numeric "uid:gid" of its files. Default 0:0.
	Owner Owner `yaml:"owner"`
	// Files to publish there, such as client.pem and ca.crt. manifest.json comes with them, and evidence.json with a
	// certificate.
	Files []string `yaml:"files"`
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID int }

// Listen is where the local API listens. It cannot change while the agent runs.
type Listen struct {
	// Socket is the Unix socket; systemd's socket unit takes precedence. Default /run/sevagent/sevagent.sock.
	Socket string `yaml:"socket"`
	// TCP is a loopback address for the operational endpoints; empty disables it. Default 127.0.0.1:9180.
	TCP string `yaml:"tcp"`
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		Log: Log{Level: "info", Format: "auto"},
		Attestation: Attestation{
			Mode: ModeEnforce, Transport: "auto", Device: "/dev/sev-guest", Configfs: "/sys/kernel/config/tsm/report",
			Policy: "aws-shared", NitroTPM: NitroTPMAuto, TPM: []string{"/dev/tpmrm0", "/dev/tpm0"},
			Rate: 1, Burst: 4, KDS: "https://kdsintf.amd.com", Cache: "/var/lib/sevagent",
		},
		MTLS: MTLS{
			Path: "/etc/ecs/mtls", PollInterval: 5 * time.Minute, KeyMode: 0o400, CertMode: 0o444,
			ProbeInterval: time.Minute,
		},
		Listen: Listen{Socket: "/run/sevagent/sevagent.sock", TCP: "127.0.0.1:9180"},
	}
}

// NeedsRestart names the keys that differ from old and that a running agent does not take over.
func (c Config) NeedsRestart(old Config) (keys []string) {
	for _, k := range []struct {
		name    string
		differs bool
	}{
		{"attestation.mode", c.Attestation.Mode != old.Attestation.Mode},
		{"attestation.transport", c.Attestation.Transport != old.Attestation.Transport},
		{"attestation.device", c.Attestation.Device != old.Attestation.Device},
		{"attestation.configfs", c.Attestation.Configfs != old.Attestation.Configfs},
		{"attestation.nitrotpm", c.Attestation.NitroTPM != old.Attestation.NitroTPM},
		{"attestation.tpm", !slices.Equal(c.Attestation.TPM, old.Attestation.TPM)},
		{"attestation.rate", c.Attestation.Rate != old.Attestation.Rate},
		{"attestation.burst", c.Attestation.Burst != old.Attestation.Burst},
		{"attestation.kds", c.Attestation.KDS != old.Attestation.KDS},
		{"attestation.cache", c.Attestation.Cache != old.Attestation.Cache},
		{"mtls.path", c.MTLS.Path != old.MTLS.Path},
		{"mtls.allow_disk", c.MTLS.AllowDisk != old.MTLS.AllowDisk},
		{"log.format", c.Log.Format != old.Log.Format},
		{"listen.socket", c.Listen.Socket != old.Listen.Socket},
		{"listen.tcp", c.Listen.TCP != old.Listen.TCP},
	} {
		if k.differs {
			keys = append(keys, k.name)
		}
	}
	return keys
}
