package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"sevagent/internal/pattern"
)

// Options is the node to make.
type Options struct {
	Target        Target // Cluster is required, InstanceID is left to bootstrap
	Dirs          Dirs
	SignalTimeout time.Duration // to signal CloudFormation, the wait for a resource that does not wait yet included

	// The agent's configuration; empty: its default.
	Secrets, Endpoints        []string
	MTLSPath, MTLSOwner, Mode string
	Consumers                 []string // NAME=UID:GID=FILE,FILE
	Issue                     []string // entries of mtls.issue, as JSON

	Socket  string        // the agent's
	Timeout time.Duration // for the agent's proof and the first certificates

	MetadataTimeout, Deadline time.Duration // for the metadata service's first answer, and for all but the signal
	Provider                  string        // the capacity provider that the cluster has to list first; "": none
	ProviderTimeout           time.Duration // for that

	ECSConfig  string   // the path of ecs.config
	ECSData    string   // the ECS agent's data directory
	ECSOptions []string // KEY=VALUE for ecs.config, or KEY= to leave a key to the ECS agent
	Services   string   // ServicesSystemd or ServicesNone
	Install    Install

	// FirstBoot: this is user data's call, and nobody is there to see a mistake in the options. It keeps the node out of
	// the cluster and is signaled, as all else that fails. Else such a mistake changes nothing.
	FirstBoot bool
}

// Dirs are the directories of bootstrap's files.
type Dirs struct {
	Config string // the agent's configuration; 50-bootstrap.yaml goes into its conf.d, signal.json beside that
	State  string // how far bootstrap has come, and what was signaled
}

// DefaultDirs are those that the package's units and sevagent use.
var DefaultDirs = Dirs{Config: "/etc/sevagent", State: "/var/lib/sevagent"}

func (d Dirs) check() error {
	var m mistakes
	m.path("--config-dir", d.Config)
	m.path("--state-dir", d.State)
	return errors.Join(m...)
}

// What ECS and CloudFormation accept.
var (
	clusterName = pattern.New(`^[A-Za-z][A-Za-z0-9_-]{0,254}$`)
	stackName   = pattern.New(`^([a-zA-Z][-a-zA-Z0-9]{0,127}|arn:aws[a-z-]*:cloudformation:[-a-zA-Z0-9:/._+]+)$`)
	logicalID   = pattern.New(`^[A-Za-z0-9]{0,255}$`)
	// Amazon ECS API Reference, CreateCapacityProvider, name.
	providerName = pattern.New(`^[A-Za-z0-9_-]{0,255}$`)
	regionName   = pattern.New(`^([a-z0-9]+(-[a-z0-9]+)+)?$`)
)

// mistakes collects what is wrong with options.
type mistakes []error

func (m *mistakes) add(format string, args ...any) { *m = append(*m, fmt.Errorf(format, args...)) }

func (m *mistakes) positive(flag string, d time.Duration) {
	if d <= 0 {
		m.add("%s is %v, want a positive duration", flag, d)
	}
}

// path refuses what would be the working directory.
func (m *mistakes) path(flag, path string) {
	if path == "" {
		m.add("%s is empty, want a path", flag)
	}
}

// check reports every mistake in the options that can be seen without the agent's own configuration. units are the
// directories that the units use.
func (o Options) check(units Dirs) error {
	var m mistakes
	if !clusterName.MatchString(o.Target.Cluster) {
		m.add("--cluster is %q, want a letter followed by letters, digits, - and _, at most 255", o.Target.Cluster)
	}
	if o.Services != ServicesSystemd && o.Services != ServicesNone {
		m.add("--services is %q, want %s or %s", o.Services, ServicesSystemd, ServicesNone)
	}
	m.path("--ecs-config", o.ECSConfig)
	m.path("--ecs-data-dir", o.ECSData)
	m.path("--socket", o.Socket)
	m.positive("--timeout", o.Timeout)
	m.positive("--metadata-timeout", o.MetadataTimeout)
	m.positive("--deadline", o.Deadline)
	if o.Provider != "" {
		m.positive("--provider-timeout", o.ProviderTimeout)
	}
	if !providerName.MatchString(o.Provider) {
		m.add("--capacity-provider is %q, want letters, digits, - and _, at most 255", o.Provider)
	}
	if _, _, err := o.ecsSettings(); err != nil {
		m = append(m, err)
	}
	if o.Services == ServicesSystemd && o.Dirs != units {
		m.add("--config-dir is %q and --state-dir %q, and the units use %q and %q; use --services=%s with others",
			o.Dirs.Config, o.Dirs.State, units.Config, units.State, ServicesNone)
	}
	// The agent's configuration reports what is not an absolute path.
	if filepath.IsAbs(o.MTLSPath) && o.Services == ServicesSystemd {
		if _, err := unitPath(o.MTLSPath); err != nil {
			m.add("--mtls-path is %q: %w", o.MTLSPath, err)
		}
	}
	for _, text := range o.Consumers {
		if _, ok := parseConsumer(text); !ok {
			m.add("--mtls-consumer is %q, want NAME=UID:GID=FILE,FILE, such as api=1000:1000=client.pem,ca.crt", text)
		}
	}
	for _, text := range o.Issue {
		if !isObject(text) {
			m.add(`--mtls-issue is %.80q, want a JSON object, such as {"name": "node", "from": "acm-pca", "ca": "ARN", `+
				`"gives": ["client"]}`, text)
		}
	}
	return errors.Join(append(m, o.Dirs.check(), o.checkSignal(), o.Install.check())...)
}

// isObject reports whether text is one JSON object, without line breaks, which YAML reads as JSON does.
func isObject(text string) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal([]byte(text), &object) == nil && object != nil && !strings.ContainsAny(text, "\r\n")
}

// checkSignal checks the options that are about CloudFormation.
func (o Options) checkSignal() error {
	var m mistakes
	t := o.Target
	named := t.ReadyResource != "" || t.UpdateResource != ""
	switch {
	case t.Stack == "" && named:
		m.add("--stack is missing: the stack of the resources to signal")
	case t.Stack != "" && !named:
		m.add("--ready-resource or --update-resource is missing: a resource of stack %s to signal", t.Stack)
	case t.Stack != "" && !stackName.MatchString(t.Stack):
		m.add("--stack is %q, want a stack's name or ID", t.Stack)
	}
	for _, r := range [][2]string{{"--ready-resource", t.ReadyResource}, {"--update-resource", t.UpdateResource}} {
		if !logicalID.MatchString(r[1]) {
			m.add("%s is %q, want a logical ID: letters and digits", r[0], r[1])
		}
	}
	if !regionName.MatchString(t.Region) {
		m.add("--region is %q, want a region such as us-east-2", t.Region)
	}
	m.positive("--signal-timeout", o.SignalTimeout)
	return errors.Join(m...)
}

// SignalOptions is what Signal waits for, and for how long.
type SignalOptions struct {
	Dirs                   Dirs
	Introspection          string        // URL of the ECS agent's introspection endpoint, on loopback
	Timeout, SignalTimeout time.Duration // for the registration, and for CloudFormation
}

func (o SignalOptions) check() error {
	var m mistakes
	if _, err := introspection(o.Introspection); err != nil {
		m.add("--introspection is %q, want http:// and a loopback address with its port", o.Introspection)
	}
	m.positive("--timeout", o.Timeout)
	m.positive("--signal-timeout", o.SignalTimeout)
	return errors.Join(append(m, o.Dirs.check())...)
}

// introspection returns the address in the URL of the ECS agent's introspection endpoint.
func introspection(base string) (netip.AddrPort, error) {
	u, err := url.Parse(base)
	if err != nil {
		return netip.AddrPort{}, err
	}
	at, err := netip.ParseAddrPort(u.Host)
	if err == nil && (u.Scheme != "http" || !at.Addr().IsLoopback()) {
		err = errors.New("not on loopback")
	}
	return at, err
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
