package appraise

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"sevagent/internal/nitro"
)

// NitroTPM says what evidence must have of the node's NitroTPM, beside the attestation report. The node, and anyone on
// the way, can take that part away: the other rules mean something only with NitroRequire.
type NitroTPM struct {
	Mode NitroMode `yaml:"mode"`
	// InstanceIDs lists acceptable EC2 instances. Empty: any.
	InstanceIDs []string `yaml:"instance_ids"`
	// PCRs lists acceptable boots. Empty: any.
	PCRs []nitro.Set `yaml:"pcrs"`
}

// NitroMode says whether evidence must have a document of a NitroTPM. One that is there must be genuine in any mode.
type NitroMode string

// The modes. The zero value is Accept.
const (
	NitroRequire NitroMode = "require"
	NitroAccept  NitroMode = "accept"
	NitroRefuse  NitroMode = "refuse"
)

// Codes of evidence that a policy's rule nitrotpm rejects.
const (
	CodeNitroTPMMissing  = "nitrotpm_missing"
	CodeNitroTPMRefused  = "nitrotpm_refused"
	CodeNitroTPMInstance = nitro.CodeInstance
	CodeNitroTPMPCRs     = "nitrotpm_pcrs"
)

// RootsAWS is AWS's root, in the verdict on a bare document that a Nitro hypervisor signed.
const RootsAWS = "aws"

// applied reports whether the rule says anything.
func (n NitroTPM) applied() bool {
	return n.Mode == NitroRequire || n.Mode == NitroRefuse || len(n.InstanceIDs) > 0 || len(n.PCRs) > 0
}

// words is what the rule requires, for people.
func (n NitroTPM) words() string {
	if n.Mode == NitroRefuse {
		return "none"
	}
	words := "a document"
	if n.Mode != NitroRequire {
		words = "if it is there (it can be taken away), a document"
	}
	if len(n.InstanceIDs) > 0 {
		words += fmt.Sprintf(" of one of %d known instances", len(n.InstanceIDs))
	}
	if len(n.PCRs) > 0 {
		words += fmt.Sprintf(", booted from one of %d known values", len(n.PCRs))
	}
	return words
}

// ApplyNitroTPM applies the rule nitrotpm of p to a document that was verified, nil if the evidence has none.
func (v *Verdict) ApplyNitroTPM(p Policy, d *nitro.Document, now time.Time) {
	rule := p.NitroTPM
	add := func(name, code string, ok bool, observed, required string) {
		v.rule(name, Enforce, ok, observed, required)
		if !ok && v.Status != Fail {
			v.fail(code, fmt.Sprintf("%s is %s, want %s", name, observed, required))
		}
	}
	found := "there"
	if d == nil {
		found = "not there"
	}
	switch rule.Mode {
	case NitroRequire:
		add("nitrotpm", CodeNitroTPMMissing, d != nil, found, "a document of the node's NitroTPM, which can be taken away")
	case NitroRefuse:
		add("nitrotpm", CodeNitroTPMRefused, d == nil, found, "none")
	}
	if d == nil {
		return
	}
	if len(rule.InstanceIDs) > 0 {
		add("nitrotpm.instance_ids", CodeNitroTPMInstance, slices.Contains(rule.InstanceIDs, d.InstanceID),
			d.InstanceID, fmt.Sprintf("one of %d known instances", len(rule.InstanceIDs)))
	}
	if len(rule.PCRs) > 0 {
		ok, required := nitro.Match(rule.PCRs, d.PCRs, now)
		add("nitrotpm.pcrs", CodeNitroTPMPCRs, ok, bootedFrom(d), required)
	}
}

// bootedFrom names the registers that say what an instance was booted from.
func bootedFrom(d *nitro.Document) string {
	var parts []string
	for _, i := range []int{4, 7, 12} {
		if value, ok := d.PCRs[i]; ok {
			parts = append(parts, fmt.Sprintf("PCR%d %v", i, value))
		}
	}
	return "booted from " + strings.Join(parts, ", ")
}

// nitroRoot reports whether a certificate is the root of a Nitro hypervisor: AWS's have such names.
func nitroRoot(cert *x509.Certificate) bool {
	return strings.HasSuffix(cert.Subject.CommonName, ".nitro-enclaves")
}

// NitroRoots returns the roots for documents of Nitro hypervisors in the policy's own roots, nil if there are none:
// then AWS's root is meant.
func (p Policy) NitroRoots() *x509.CertPool {
	var pool *x509.CertPool
	for block, rest := pem.Decode(p.RootsPEM); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && nitroRoot(cert) {
			if pool == nil {
				pool = x509.NewCertPool()
			}
			pool.AddCert(cert)
		}
	}
	return pool
}
