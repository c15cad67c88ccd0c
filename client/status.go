package client

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is the answer of GET /v1/status: all that "sevagent status" shows.
type Status struct {
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
	// Cluster is the ECS cluster that ecs.config names. Empty: none.
	Cluster     string      `json:"cluster,omitempty"`
	Health      Health      `json:"health"`
	Attestation Attestation `json:"attestation"`
	// MTLS is what is published in mtls.path, and why.
	MTLS Publication `json:"mtls"`
	// Endpoints are the enclave servers of mtls.endpoints, in the order of the configuration.
	Endpoints []Endpoint `json:"endpoints"`
	Readers   Readers    `json:"readers"`
	// ReloadError is why the agent refused its configuration when it last re-read it. Empty: it did not.
	ReloadError string `json:"reload_error,omitempty"`
}

// HealthStatus is the state of one check and of the whole: draft-inadarei-api-health-check, section 3.1.
type HealthStatus string

// The states of a check, from good to bad. A node with a warning is ready.
const (
	Pass HealthStatus = "pass"
	Warn HealthStatus = "warn"
	Fail HealthStatus = "fail"
)

// Certificates is the answer of GET /v1/certificates. It never holds a key.
type Certificates struct {
	Path         string        `json:"path"`
	Generation   string        `json:"generation,omitempty"`
	PublishedAt  time.Time     `json:"published_at,omitzero"`
	Certificates []Certificate `json:"certificates"`
}

// Health is the answer of GET /readyz, application/health+json.
type Health struct {
	// Status is that of the worst check.
	Status  HealthStatus `json:"status"`
	Version string       `json:"version,omitempty"`
	// Checks has one entry or more under each name, such as "attestation:gate" or "mtls:secret".
	Checks map[string][]Check `json:"checks"`
}

// Check is one entry of a Health.
type Check struct {
	// ComponentID tells entries of one name apart: the secret, the directory, the endpoint.
	ComponentID string       `json:"componentId,omitempty"`
	Status      HealthStatus `json:"status"`
	Time        time.Time    `json:"time,omitzero"`
	// Output is the cause of any status but pass.
	Output string `json:"output,omitempty"`

	// The rest is the agent's own; the draft permits it.

	// Since is when the agent first saw this status, without another in between.
	Since time.Time `json:"since,omitzero"`
	// Until is when what still works ends, such as the certificates that a rejected secret leaves in place.
	Until time.Time `json:"until,omitzero"`
	// Next is what to do about it, a command or a sentence. Empty: nothing.
	Next string `json:"next,omitempty"`
}

// NamedCheck is an entry of a Health with its name.
type NamedCheck struct {
	Name string
	Check
}

// String describes c in one line: its name, the cause and what to do.
func (c NamedCheck) String() string {
	text := c.Name
	for _, part := range []struct{ before, text string }{{" ", c.ComponentID}, {": ", c.Output}, {"; ", c.Next}} {
		if part.text != "" {
			text += part.before + part.text
		}
	}
	return text
}

// Ready reports whether the node has passed the boot gate and published a valid set.
func (h *Health) Ready() bool { return h.Status == Pass || h.Status == Warn }

// Problems lists the entries that do not pass, worst first: what fails before what warns, and of these the oldest.
func (h *Health) Problems() (list []NamedCheck) {
	for name, checks := range h.Checks {
		for _, c := range checks {
			if c.Status != Pass {
				list = append(list, NamedCheck{name, c})
			}
		}
	}
	slices.SortFunc(list, func(a, b NamedCheck) int {
		return cmp.Or(
			cmp.Compare(b.Status.rank(), a.Status.rank()),
			a.Since.Compare(b.Since), strings.Compare(a.Name, b.Name), strings.Compare(a.ComponentID, b.ComponentID),
		)
	})
	return list
}

// rank orders states from good to bad.
func (s HealthStatus) rank() int { return slices.Index([]HealthStatus{"", Pass, Warn, Fail}, s) }

// Add records a check under its name; the whole is as good as its worst check.
func (h *Health) Add(name string, c Check) {
	if h.Checks == nil {
		h.Checks = make(map[string][]Check)
	}
	h.Checks[name] = append(h.Checks[name], c)
	if c.Status.rank() > h.Status.rank() {
		h.Status = c.Status
	}
}

// Attestation is the node's own view of its proof. It proves nothing to others: see Evidence.
type Attestation struct {
	// Mode is attestation.mode: enforce, warn or off.
	Mode string `json:"mode"`
	// Transport is how the SNP device is reached: configfs or ioctl.
	Transport string `json:"transport,omitempty"`
	// Region is the one that the policy compares CSP_ID with. Empty: it does not, or the region is not known yet.
	Region string `json:"region,omitempty"`
	// InstanceID is the EC2 instance that evidence names, by the metadata service. Empty: not known, or there is none.
	InstanceID string `json:"instance_id,omitempty"`
	GatePassed bool   `json:"gate_passed"`
	// GateError is why the gate is not passed, or what mode warn let through.
	GateError string `json:"gate_error,omitempty"`

	// The rest describes the last report. Verdict is its status: pass, warn, fail or unsupported_report_version.

	Verdict string `json:"verdict,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Policy  string `json:"policy,omitempty"`
	// Roots is "amd", or "custom" if the policy names roots of its own.
	Roots         string `json:"roots,omitempty"`
	Signer        string `json:"signer,omitempty"` // VLEK or VCEK
	CSPID         string `json:"csp_id,omitempty"`
	ReportVersion uint32 `json:"report_version,omitempty"`
	Measurement   string `json:"measurement,omitempty"` // 48 bytes, hex
	ReportedTCB   string `json:"reported_tcb,omitempty"`
	Firmware      string `json:"firmware,omitempty"`
	// NotAfter is when the endorsement key's certificate expires.
	NotAfter   time.Time `json:"certificate_not_after,omitzero"`
	LastReport time.Time `json:"last_report,omitzero"`

	// LastError is why the last request of the device gave no report. Empty: it gave one.
	LastError string `json:"last_error,omitempty"`
	// Waiting is how many requests wait for a report, BusySeconds how long the device has been busy with one.
	Waiting     int     `json:"waiting"`
	BusySeconds float64 `json:"busy_seconds,omitempty"`
	// NitroTPM is absent where none is asked for.
	NitroTPM *NitroTPM `json:"nitrotpm,omitempty"`
	// Drift has the last changes from one genuine report to the next, DriftSinceStart the differences between the
	// first report and the last.
	Drift           []Drift `json:"drift,omitempty"`
	DriftSinceStart []Drift `json:"drift_since_start,omitempty"`
}

// NitroTPM is what AWS's Nitro hypervisor says of the instance, by the last document.
type NitroTPM struct {
	// LastDocument is when the NitroTPM was last asked. Absent: it was not.
	LastDocument time.Time `json:"last_document,omitzero"`
	InstanceID   string    `json:"instance_id,omitempty"`
	// Image is a digest of the registers that say what the node was booted from: SHA-256 over PCR4, PCR7 and PCR12, hex.
	Image string `json:"image,omitempty"`
	// Drift has those of them that differ from the first document since the agent started.
	Drift []Drift `json:"drift,omitempty"`
	Error string  `json:"error,omitempty"` // why the last request gave nothing
}

// Drift is a value that changed between two genuine reports of one node.
type Drift struct {
	// At is when the later report arrived.
	At time.Time `json:"at"`
	// What is a field of the report or of its certificate, one of a fixed set: "reported_tcb", "csp_id".
	What string `json:"what"`
	From string `json:"from"`
	To   string `json:"to"`
}

// ProbeResult is how a probe of an endpoint ended. The values are stable: they are in metrics, too.
type ProbeResult string

// How a probe can end. Only ProbeOK is good.
const (
	ProbeOK      ProbeResult = "ok"
	ProbePending ProbeResult = "pending" // not probed yet
	// ProbeNoMaterial: nothing is published to probe with; the network was not touched.
	ProbeNoMaterial  ProbeResult = "no_material"
	ProbeDNS         ProbeResult = "dns"         // the name does not resolve
	ProbeRefused     ProbeResult = "refused"     // nothing listens
	ProbeUnreachable ProbeResult = "unreachable" // any other failure to connect
	ProbeTimeout     ProbeResult = "timeout"     // to connect or, if Reachable, to shake hands
	// ProbeProtocol: not TLS, no version of it that we speak, or broken off before a certificate was requested.
	ProbeProtocol     ProbeResult = "protocol"
	ProbeExpired      ProbeResult = "server_certificate_expired"
	ProbeUntrusted    ProbeResult = "server_certificate_untrusted"
	ProbeNameMismatch ProbeResult = "server_name_mismatch"
	// ProbeAlert: the server ended the handshake with a TLS alert. Reason says which one, and whether the server
	// had our certificate.
	ProbeAlert ProbeResult = "tls_alert"
	// ProbeClosed: the server had our certificate and hung up without an alert, which is how Node.js refuses one.
	ProbeClosed ProbeResult = "closed_after_certificate"
	// ProbeNotRequested: the handshake succeeds without mutual TLS: the server requests no certificate. A warning.
	ProbeNotRequested ProbeResult = "no_client_certificate_requested"
)

// Endpoint is the agent's knowledge of one endpoint.
type Endpoint struct {
	Endpoint string      `json:"endpoint"` // host:port, as configured
	Result   ProbeResult `json:"result"`   // of the last probe
	// Reason explains any result but ok and pending.
	Reason      string    `json:"reason,omitempty"`
	Since       time.Time `json:"since,omitzero"`        // when Result was first seen, without another in between
	LastProbe   time.Time `json:"last_probe,omitzero"`   // when the last probe started
	LastSuccess time.Time `json:"last_success,omitzero"` // when the last one that ended ok did
	Failures    int       `json:"failures"`              // probes in a row that did not end ok

	// The rest describes the last probe, as far as it got.

	Reachable bool `json:"reachable"` // a TCP connection was made
	// Address is what the connection was made to, IP:port.
	Address          string  `json:"address,omitempty"`
	ConnectSeconds   float64 `json:"connect_seconds,omitempty"`   // to resolve the name and to connect
	HandshakeSeconds float64 `json:"handshake_seconds,omitempty"` // from there to the end of the client's handshake
	TLSVersion       string  `json:"tls_version,omitempty"`       // as in "TLS 1.3"
	// Server is the leaf that the server showed, trusted or not.
	Server *ServerCertificate `json:"server_certificate,omitempty"`
}

// OK reports whether the last probe succeeded. It is false before the first one.
func (e Endpoint) OK() bool { return e.Result == ProbeOK }

// ServerCertificate describes the leaf of an endpoint.
type ServerCertificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"` // of the certificate, hex
}

// Readers lists the containers that hold an old generation of the published files.
type Readers struct {
	// Stale has the first 64 of them, in order of their IDs.
	Stale []StaleReader `json:"stale"`
	// StaleCount is how many there are.
	StaleCount int `json:"stale_count"`
	// Checked is when the scan that Stale comes from ended. Zero: there was none.
	Checked time.Time `json:"checked,omitzero"`
	// Error is what the last scan could not see. Empty: it saw everything.
	Error string `json:"error,omitempty"`
}

// StaleReader is a container that holds an old generation, or another mount namespace that does.
type StaleReader struct {
	ContainerID string       `json:"container_id,omitempty"`
	TaskID      string       `json:"task_id,omitempty"` // of ECS: the last part of a task's ARN
	PID         int          `json:"pid"`
	Comm        string       `json:"comm"` // the process chooses it
	Files       []StaleMount `json:"files"`
	// FilesOmitted is how many more there are.
	FilesOmitted int `json:"files_omitted,omitempty"`
}

// String describes r in one line.
func (r StaleReader) String() string {
	who := fmt.Sprintf("process %d (%s)", r.PID, r.Comm)
	if r.ContainerID != "" {
		who = "container " + r.ContainerID
	}
	if r.TaskID != "" {
		who += " of task " + r.TaskID
	}
	return fmt.Sprintf("%s mounts %d files or directories of an old generation, which a rotation does not reach",
		who, len(r.Files)+r.FilesOmitted)
}

// StaleMount is a mount, in a container, of published files that a rotation does not reach.
type StaleMount struct {
	MountPoint string `json:"mount_point"` // in the container
	// Consumer is the name of the consumer whose directory it is in; empty: the published directory itself.
	Consumer string `json:"consumer,omitempty"`
	// File is the mounted file's name. Empty: a whole directory is mounted.
	File string `json:"file,omitempty"`
	// Generation is the one that the file, or the directory, is part of. Empty: the published directory itself was
	// replaced.
	Generation string `json:"generation,omitempty"`
	Deleted    bool   `json:"deleted"` // from the host; the container has the only copy
}
