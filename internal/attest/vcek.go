package attest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sevagent/internal/atomicfile"
	"sevagent/internal/promtext"
	"sevagent/internal/snp"
)

// maxVCEK bounds a certificate, in bytes; AMD's have about 1360.
const maxVCEK = 16 << 10

// KDS answers 429 to more than about one request in ten seconds from one address.
const (
	fetchMin     = 10 * time.Second
	fetchMax     = 5 * time.Minute
	fetchTimeout = 10 * time.Second
	// maxRetryAfter is the longest Retry-After that is obeyed.
	maxRetryAfter = time.Hour
)

// VCEKsConfig is what VCEKs needs.
type VCEKsConfig struct {
	// URL is where AMD's key distribution service is; empty: https://kdsintf.amd.com.
	URL string
	// Dir is the directory where certificates are kept, as {chip ID}-{TCB}.der. It is made if it is missing.
	Dir string
	Log *slog.Logger
	// Metrics is where VCEKs registers its metrics.
	Metrics *promtext.Registry
}

// VCEKs finds the certificates of VCEKs that the host does not hand out: on EC2's Dedicated Hosts. They come from
// AMD's key distribution service and are kept on disk, since a node must attest after a restart without it. Package
// appraise verifies them.
type VCEKs struct {
	cfg     VCEKsConfig
	client  *http.Client
	wake    chan struct{} // size one: something is wanted
	fetches *promtext.Counters
	last    atomic.Pointer[vcek] // the one in use; a node has one chip
	// failures counts failed requests in a row, and next is when KDS may be asked again; owned by Run.
	failures int
	next     time.Time

	mu   sync.Mutex
	want *vcekRequest // the newest that is missing, nil if none is
}

// vcek is a certificate that belongs to a chip and a TCB. It does not change.
type vcek struct {
	request  vcekRequest
	der      []byte
	notAfter time.Time
}

// vcekRequest names a VCEK.
type vcekRequest struct {
	line   string // the product line, as in KDS's paths
	chipID [64]byte
	tcb    snp.TCBVersion
}

// NewVCEKs returns VCEKs that fetch nothing until Run runs.
func NewVCEKs(cfg VCEKsConfig) *VCEKs {
	if cfg.URL == "" {
		cfg.URL = "https://kdsintf.amd.com"
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true // one request in months
	v := &VCEKs{
		cfg:    cfg,
		client: &http.Client{Timeout: fetchTimeout, Transport: transport, CheckRedirect: sameHost},
		wake:   make(chan struct{}, 1),
		fetches: cfg.Metrics.Counters("sevagent_attestation_vcek_fetches_total",
			"Requests to AMD's key distribution service, by outcome.", "outcome"),
	}
	for _, outcome := range []string{"ok", "failed"} {
		v.fetches.With(outcome)
	}
	return v
}

// sameHost refuses a redirect that leaves the service.
func sameHost(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return fmt.Errorf("redirected to %s://%s", req.URL.Scheme, req.URL.Host)
	}
	if len(via) > 3 {
		return errors.New("redirected more than 3 times")
	}
	return nil
}

// Find returns the certificate, DER, of the VCEK that signed r, from memory or disk. It never asks the network.
func (v *VCEKs) Find(r *snp.Report) (der []byte, ok bool) {
	request, ok := requestFor(r)
	if !ok {
		return nil, false
	}
	found, err := v.find(request)
	if err != nil {
		return nil, false
	}
	return found.der, true
}

// Want asks Run to fetch the certificate of the VCEK that signed r, and returns at once. It reports false if there is
// none to fetch: for a report without a chip ID, or of an unknown product line or report version.
func (v *VCEKs) Want(r *snp.Report) bool {
	request, ok := requestFor(r)
	if !ok {
		return false
	}
	v.mu.Lock()
	v.want = &request
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default: // it will look anyway
	}
	return true
}

// Run fetches what is wanted until ctx ends.
func (v *VCEKs) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-v.wake:
		}
		for v.wanted() != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Until(v.next)):
			}
			v.obtain(ctx, *v.wanted()) // by now perhaps for another TCB
		}
	}
}

// obtain looks for the certificate on disk, where an operator may have put it, and asks KDS once if it is not there.
func (v *VCEKs) obtain(ctx context.Context, want vcekRequest) {
	_, err := v.find(want)
	if err == nil {
		v.failures = 0
		v.arrived(want)
		return
	}
	if v.failures == 0 && !errors.Is(err, fs.ErrNotExist) {
		v.cfg.Log.Warn("ignoring invalid cached VCEK certificate", "err", err)
	}
	retryAfter, err := v.fetch(ctx, want)
	if err == nil {
		v.fetches.With("ok").Inc()
		v.failures, v.next = 0, time.Now().Add(fetchMin)
		v.arrived(want)
		return
	}
	if ctx.Err() != nil {
		return
	}
	v.fetches.With("failed").Inc()
	v.failures++
	wait := max(FetchBackoff(v.failures, rand.Float64()), retryAfter)
	v.next = time.Now().Add(wait)
	if v.failures == 1 {
		v.cfg.Log.Warn("VCEK certificate not fetched", "err", err, "retry_in", wait, "file", v.path(want))
	}
}

// FetchBackoff returns how long to wait after the nth failure in a row, n from 1: doubled from 10 s to 5 min, and up
// to half as much again, since nodes behind one address share what KDS grants. random is from [0, 1).
func FetchBackoff(n int, random float64) time.Duration {
	wait := min(fetchMax, fetchMin<<min(n-1, 5))
	return wait + time.Duration(random*float64(wait)/2)
}

func (v *VCEKs) wanted() *vcekRequest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.want
}

// arrived marks request as done, unless Want has asked for another one since.
func (v *VCEKs) arrived(request vcekRequest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.want != nil && *v.want == request {
		v.want = nil
	}
}

// find looks in memory, then on disk.
func (v *VCEKs) find(request vcekRequest) (*vcek, error) {
	if last := v.last.Load(); last != nil && last.request == request && time.Now().Before(last.notAfter) {
		return last, nil
	}
	f, err := os.Open(v.path(request))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	der, err := readCertificate(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	found, err := request.check(der, time.Now())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	v.last.Store(found)
	return found, nil
}

// fetch asks KDS once and keeps the answer. With an error it may return how long KDS wants to be left alone.
func (v *VCEKs) fetch(ctx context.Context, request vcekRequest) (retryAfter time.Duration, err error) {
	url := request.url(v.cfg.URL)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("fetch the VCEK certificate: %w", err)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("fetch the VCEK certificate: %w", err) // names the URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()), fmt.Errorf("fetch %s: %s", url, resp.Status)
	}
	der, err := readCertificate(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("fetch %s: %w", url, err)
	}
	found, err := request.check(der, time.Now())
	if err != nil {
		return 0, fmt.Errorf("fetch %s: %w", url, err)
	}
	v.last.Store(found)
	v.cfg.Log.Info("VCEK certificate fetched", "url", url, "not_after", found.notAfter)
	if err := v.keep(found); err != nil {
		v.cfg.Log.Warn("VCEK certificate not kept; the next start needs the network", "err", err)
	}
	return 0, nil
}

func (v *VCEKs) keep(found *vcek) error {
	if err := os.MkdirAll(v.cfg.Dir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(v.path(found.request), found.der, 0o644)
}

func (v *VCEKs) path(r vcekRequest) string {
	return filepath.Join(v.cfg.Dir, fmt.Sprintf("%x-%016x.der", r.chipID, r.tcb.Raw))
}

// readCertificate reads at most maxVCEK bytes.
func readCertificate(from io.Reader) ([]byte, error) {
	der, err := io.ReadAll(io.LimitReader(from, maxVCEK+1))
	if err == nil && len(der) > maxVCEK {
		err = fmt.Errorf("more than %d bytes", maxVCEK)
	}
	return der, err
}

// parseRetryAfter reads the header of that name, seconds or a date: RFC 9110, section 10.2.3. Zero: there is none.
func parseRetryAfter(value string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

// requestFor names the VCEK that signed r, if AMD hands out its certificate by what r says.
func requestFor(r *snp.Report) (vcekRequest, bool) {
	request := vcekRequest{chipID: r.ChipID, tcb: r.ReportedTCB}
	if r.SigningKey != snp.SignedByVCEK || !r.Known() || r.ChipID == [64]byte{} {
		return request, false
	}
	// The product line is the name in KDS's paths: that of Bergamo and Siena is Genoa. Turin is left out: KDS has other
	// parameters for it.
	product := r.CPUID.Product()
	if r.Version < 3 { // has no CPUID; the firmware that writes such reports runs on Milan
		product = snp.Milan
	}
	if product.Layout() == snp.LayoutMilan {
		request.line = product.Line()
	}
	return request, request.line != ""
}

// url is where KDS has the certificate: AMD publication 57230, "Get VCEK".
func (r vcekRequest) url(base string) string {
	tcb := r.tcb.Components()
	return fmt.Sprintf("%s/vcek/v1/%s/%x?blSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d",
		strings.TrimSuffix(base, "/"), r.line, r.chipID, tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode)
}

// check reads der as the certificate that r names. One for another chip or TCB, or one that has expired, would stand in
// the way of the right one if it were kept.
func (r vcekRequest) check(der []byte, now time.Time) (*vcek, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if cert.Subject.CommonName != "SEV-VCEK" {
		return nil, fmt.Errorf("the certificate is for %q, want SEV-VCEK", cert.Subject.CommonName)
	}
	// Below AMD's arc 1.3.6.1.4.1.3704.1: AMD publication 57230, "VCEK Certificate Extensions". The values of 3.x are
	// integers, hwID comes as plain bytes, although 57230 has an OCTET STRING.
	tcb := r.tcb.Components()
	for _, want := range []struct {
		name, id string
		value    []byte
	}{
		{"hwID", "4", r.chipID[:]}, {"blSPL", "3.1", integer(tcb.Bootloader)}, {"teeSPL", "3.2", integer(tcb.TEE)},
		{"snpSPL", "3.3", integer(tcb.SNP)}, {"ucodeSPL", "3.8", integer(tcb.Microcode)},
	} {
		var got []byte
		for _, e := range cert.Extensions {
			if e.Id.String() == "1.3.6.1.4.1.3704.1."+want.id {
				got = e.Value
			}
		}
		if !bytes.Equal(got, want.value) {
			return nil, fmt.Errorf("the certificate has %s %x, want %x", want.name, got, want.value)
		}
	}
	if !now.Before(cert.NotAfter) {
		return nil, fmt.Errorf("the certificate expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return &vcek{request: r, der: der, notAfter: cert.NotAfter}, nil
}

func integer(n uint8) []byte {
	der, err := asn1.Marshal(int(n))
	if err != nil {
		panic(err) // of an int
	}
	return der
}
