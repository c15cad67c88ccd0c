package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/cli"
	"sevagent/internal/config"
	"sevagent/internal/evidence"
	"sevagent/internal/mtls/source"
	"sevagent/internal/nitro"
	"sevagent/internal/promtext"
	"sevagent/internal/tpm"
)

// attestation is the node's proof: the SNP device with its worker, the policy that appraises reports, and the boot gate
// that the node must pass before anything is fetched or published.
type attestation struct {
	log   *slog.Logger
	mode  string
	cloud *cloud
	gate  atomic.Pointer[gate]
	// lastKey is the last evidence for a key of this node; nil: none yet.
	lastKey atomic.Pointer[keyDocument]

	// All fields below are for modes other than off.

	transport attest.Transport
	worker    *attest.Worker         // nil: the mode is off
	tpm       *tpm.TPM               // nil: attestation.nitrotpm is off
	vceks     *attest.VCEKs          // nil: attestation.kds is ""
	region    atomic.Pointer[string] // the node's; nil: unknown

	// mu is held while the policy or the region changes, so that the worker's verifier is made of the latest of both.
	mu     sync.Mutex
	policy appraise.Policy
}

// gate is the outcome of the check at boot.
type gate struct {
	passed bool
	at     time.Time
	err    error // why it is not passed; if passed: what mode warn let through
}

// newAttestation opens the device and builds its worker. In mode warn an absent device is no error: every request then
// fails with what is missing.
func newAttestation(c Config, cloud *cloud, registry *promtext.Registry) (*attestation, error) {
	cfg := c.Config.Attestation
	a := &attestation{log: c.Log.With("component", "agent"), mode: cfg.Mode, cloud: cloud}
	a.gate.Store(&gate{})
	if cfg.Mode == config.ModeOff {
		return a, nil
	}
	policy, verifier, err := a.load(cfg.Policy)
	if err != nil {
		return nil, err
	}
	a.policy = policy
	a.transport, err = c.openDevice()
	if err != nil {
		if cfg.Mode == config.ModeEnforce {
			return nil, withAttestationAdvice(err)
		}
		a.log.Warn("continuing without the SNP device", "err", err, "advice", attest.Advice(err))
		a.transport = attest.Unavailable(err)
	}
	if cfg.KDS != "" {
		a.vceks = attest.NewVCEKs(attest.VCEKsConfig{
			URL:     cfg.KDS,
			Dir:     cfg.Cache,
			Log:     c.Log.With("component", "attest"),
			Metrics: registry,
		})
	}
	second := attest.Second{Required: cfg.NitroTPM == config.NitroTPMRequire}
	if cfg.NitroTPM != config.NitroTPMOff {
		a.tpm = tpm.New(tpm.Config{Paths: cfg.TPM, Roots: policy.NitroRoots(), Log: c.Log.With("component", "attest")})
		second.NitroTPM = nitroTPM{device: a.tpm, required: second.Required}
	}
	a.worker = attest.New(attest.Config{
		Second:    second,
		Transport: a.transport,
		Verifier:  verifier,
		Enforce:   cfg.Mode == config.ModeEnforce,
		Rate:      cfg.Rate,
		Burst:     cfg.Burst,
		VCEKs:     a.vceks,
		Log:       c.Log.With("component", "attest"),
		Metrics:   registry,
	})
	return a, nil
}

func (a *attestation) off() bool { return a.worker == nil }

func (a *attestation) close() {
	if !a.off() {
		a.transport.Close()
	}
}

// nitroTPM is the node's, which may have none.
type nitroTPM struct {
	device   *tpm.TPM
	required bool
}

// Document implements attest.NitroTPM.
func (n nitroTPM) Document(ctx context.Context, userData, nonce [64]byte) ([]byte, *nitro.Document, error) {
	text, doc, err := n.device.Document(ctx, userData, nonce)
	if !n.required && (errors.Is(err, tpm.ErrAbsent) || errors.Is(err, tpm.ErrNotNitro)) {
		return nil, nil, nil
	}
	return text, doc, err
}

// run serves the device until ctx ends.
func (a *attestation) run(ctx context.Context) error {
	if a.off() {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.worker.Run(ctx) })
	if a.tpm != nil {
		group.Go(func() error { return a.tpm.Run(ctx) })
	}
	if a.vceks != nil {
		group.Go(func() error { return a.vceks.Run(ctx) })
	}
	return group.Wait()
}

// load reads a policy and builds a verifier for it, with the node's region if that is known.
func (a *attestation) load(name string) (policy appraise.Policy, v *appraise.Verifier, err error) {
	if policy, err = config.LoadPolicy(name); err != nil {
		return policy, nil, cli.Usage(err)
	}
	if v, err = a.verifier(policy); err != nil {
		return policy, nil, cli.Usagef("attestation.policy %s: %w", name, err)
	}
	return policy, v, nil
}

func (a *attestation) verifier(policy appraise.Policy) (*appraise.Verifier, error) {
	region := ""
	if r := a.region.Load(); r != nil {
		region = *r
	}
	return appraise.New(appraise.Config{Policy: policy, Region: region, Own: true})
}

// locate finds the node's region if the policy compares with it, and sets the verifier's region. In mode enforce the
// gate does not pass without it, since the origin of the report would go unchecked. In mode warn the gate reports that
// and continues, and only the form of CSP_ID is checked until the next self-check finds the region.
func (a *attestation) locate(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.policy.NeedsRegion() || a.region.Load() != nil {
		return nil
	}
	if err := a.findRegion(ctx); err != nil {
		return err
	}
	v, err := a.verifier(a.policy)
	if err == nil {
		a.worker.SetVerifier(v)
	}
	return err
}

func (a *attestation) findRegion(ctx context.Context) error {
	region, _, err := a.cloud.find(ctx)
	if err != nil {
		return fmt.Errorf("find the region that csp_id is compared with: %w", err)
	}
	a.region.Store(&region)
	return nil
}

// reconfigure takes over the policy of a new configuration; a bad one leaves the old in force. Everything else waits
// for a restart.
func (a *attestation) reconfigure(ctx context.Context, cfg config.Attestation) error {
	if a.off() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	policy, v, err := a.load(cfg.Policy)
	if err != nil {
		return err
	}
	if policy.NeedsRegion() && a.region.Load() == nil {
		if err := a.findRegion(ctx); err != nil {
			return err
		}
		if v, err = a.verifier(policy); err != nil {
			return err
		}
	}
	a.policy = policy
	a.worker.SetVerifier(v)
	return nil
}

// passGate proves that this is a working SNP guest before anything is fetched or published. In mode enforce it returns
// nil only with a report that the policy accepts; a failure that waiting cannot repair is an error at once.
func (a *attestation) passGate(ctx context.Context) error {
	if a.off() {
		a.gate.Store(&gate{passed: true, at: time.Now(), err: attest.ErrOff})
		return nil
	}
	enforce := a.mode == config.ModeEnforce
	var said string
	for n := 1; ; n++ {
		verdict, err := a.prove(ctx)
		if ctx.Err() != nil {
			return nil
		}
		passed := err == nil || !enforce
		a.gate.Store(&gate{passed: passed, at: time.Now(), err: err})
		switch {
		case err == nil:
			a.log.Info("boot gate passed", "verdict", verdict.String())
			return nil
		case passed:
			a.log.Warn("boot gate not passed; continuing since attestation.mode is warn", "err", err)
			return nil
		case attest.Permanent(err):
			return withAttestationAdvice(err)
		}
		wait := gateWait(n, err, mathrand.Float64())
		if text := err.Error(); text != said || wait > gateMin {
			a.log.Warn("boot gate not passed yet", "err", err, "retry_in", wait)
			said = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

const (
	gateMin   = time.Second
	gateMax   = 30 * time.Second
	gateClock = 5 * time.Second
)

// gateWait returns how long to wait after the nth attempt to pass the gate, n from 1. What it is waited for may be late
// at boot, and the node waits with it: asking the metadata service for the region costs nothing, and a clock is set
// within seconds. random is from [0, 1).
func gateWait(n int, err error, random float64) time.Duration {
	if _, ok := errors.AsType[*notLocated](err); ok {
		n = max(1, n-source.BootTries)
	}
	wait := min(gateMax, gateMin<<min(n-1, 10))
	if attest.Code(err) == appraise.CodeCertificateNotYet {
		wait = min(wait, gateClock)
	}
	return wait - time.Duration(random*float64(wait)/5)
}

// notLocated is the error of a node that does not know its region yet.
type notLocated struct{ error }

func (e *notLocated) Unwrap() error { return e.error }

// prove gets a report of this node and appraises it.
func (a *attestation) prove(ctx context.Context) (*appraise.Verdict, error) {
	if err := a.locate(ctx); err != nil {
		return nil, &notLocated{err}
	}
	_, verdict, err := a.worker.Evidence(ctx, a.ownClaims(evidence.PurposeBoot, evidence.Binding{}))
	if err != nil {
		return nil, err
	}
	return verdict, verdict.Err()
}

// identify learns which instance this is. Nothing waits for it, since there may be no metadata service.
func (a *attestation) identify(ctx context.Context) {
	if !a.off() {
		a.cloud.identify(ctx, a.log)
	}
}

// ownClaims returns the agent's own claims: a fresh nonce, and its own user as the caller.
func (a *attestation) ownClaims(purpose evidence.Purpose, binding evidence.Binding) evidence.Claims {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	return evidence.Claims{
		Purpose: purpose, Nonce: nonce, Binding: binding,
		Caller: evidence.HostCaller(uint32(os.Getuid())), Instance: a.cloud.instance(),
	}
}

// evidence serves a caller of the local API.
func (a *attestation) evidence(
	ctx context.Context, claims evidence.Claims,
) (*evidence.Document, *appraise.Verdict, error) {
	switch {
	case a.off():
		return nil, nil, attest.ErrOff
	case !a.gate.Load().passed:
		return nil, nil, attest.ErrNotReady
	}
	claims.Instance = a.cloud.instance()
	return a.worker.Evidence(ctx, claims)
}

// publishedEvidence makes the content of evidence.json for a generation's key: none without attestation, and none in
// mode warn on a node that cannot attest, which still publishes.
func (a *attestation) publishedEvidence(
	ctx context.Context, kind string, spki [sha256.Size]byte,
) ([]byte, error) {
	doc, err := a.keyEvidence(ctx, kind, spki)
	if doc == nil || err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// extension makes the value of the extension that carries evidence in a certificate, for a key that has none yet.
func (a *attestation) extension(ctx context.Context, kind string, spki [sha256.Size]byte) ([]byte, error) {
	doc, err := a.keyEvidence(ctx, kind, spki)
	if doc == nil || err != nil {
		return nil, err
	}
	extension, err := doc.Extension()
	if err != nil { // too large, by the batch that it was in
		a.lastKey.Store(nil)
	}
	return extension.Value, err
}

// keyEvidence makes evidence for a key of this node, or returns what it has made for that key last: a new key needs
// evidence for its certificate and then for its publication.
func (a *attestation) keyEvidence(
	ctx context.Context, kind string, spki [sha256.Size]byte,
) (*evidence.Document, error) {
	if a.off() {
		return nil, nil
	}
	key := boundKey{kind, spki}
	if last := a.lastKey.Load(); last != nil && last.key == key && time.Since(last.at) < keyEvidenceAge {
		return last.doc, nil
	}
	binding := evidence.Binding{Kind: kind, SPKISHA256: spki[:]}
	doc, _, err := a.worker.Evidence(ctx, a.ownClaims(evidence.PurposeMTLS, binding))
	if err != nil {
		if a.mode == config.ModeWarn {
			return nil, nil
		}
		return nil, err
	}
	a.lastKey.Store(&keyDocument{key, doc, time.Now()})
	return doc, nil
}

// boundKey names a public key and the kind of its certificate.
type boundKey struct {
	kind string
	spki [sha256.Size]byte
}

// keyDocument is the evidence for a key.
type keyDocument struct {
	key boundKey
	doc *evidence.Document
	at  time.Time
}

// keyEvidenceAge is how long evidence for a key may be used a second time.
const keyEvidenceAge = 10 * time.Minute

// recheckInterval is how often the agent gets a report for itself. Hosts get new firmware a few times a year and a
// certificate expires over weeks, so hours are soon enough; the device is slow, callers that wait for evidence share
// its rate, and the host throttles. recheckJitter spreads it by ±20 %: a fleet boots together.
const (
	recheckInterval = 6 * time.Hour
	recheckJitter   = 0.2
)

// recheckAfter returns how long to wait before the next self-check. random is from [0, 1).
func recheckAfter(random float64) time.Duration {
	return time.Duration(float64(recheckInterval) * (1 - recheckJitter + 2*recheckJitter*random))
}

// recheck gets a report of this node in every interval, once the gate is passed. Without it, drift and an expiring
// certificate would show only when a caller asks for evidence.
func (a *attestation) recheck(ctx context.Context) error {
	if a.off() {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(recheckAfter(mathrand.Float64())):
		}
		// In mode warn the gate may have passed without the node's region: find it now.
		if err := a.locate(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("self-check without the node's region", "err", err)
		}
		// The worker records the outcome, good or bad, except for a full queue: then others get reports.
		_, _, _ = a.worker.Evidence(ctx, a.ownClaims(evidence.PurposeBoot, evidence.Binding{}))
	}
}

// withAttestationAdvice adds to an error of package attest how to repair it.
func withAttestationAdvice(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("attest this node: %w%s", err, advice(err))
}

func advice(err error) string {
	if text := attest.Advice(err); text != "" {
		return "; " + text
	}
	return ""
}
