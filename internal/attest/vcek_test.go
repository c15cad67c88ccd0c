package attest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-sev-guest/kds"

	"sevagent/internal/appraise"
	"sevagent/internal/evidence"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim"
	"sevagent/internal/snp"
)

// dedicated is a simulated Dedicated Host: its PSP signs with a VCEK, and the host adds no certificate.
type dedicated struct{ *sim.PSP }

func newDedicated(t *testing.T, change func(*sim.Options)) dedicated {
	t.Helper()
	o := sim.DefaultOptions(time.Now())
	o.Signer, o.ChipID = snp.SignedByVCEK, [64]byte{0xAB, 2, 63: 0xEF}
	if change != nil {
		change(&o)
	}
	psp := must.Get(sim.New(o))(t, "make a simulator")
	return dedicated{psp}
}

func (d dedicated) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	report, _, err := d.PSP.Report(reportData, 0)
	return Quote{Report: report}, err
}

func (d dedicated) Name() string { return "dedicated" }
func (d dedicated) Close() error { return nil }

// report returns one of its reports.
func (d dedicated) report(t *testing.T) *snp.Report {
	t.Helper()
	q := must.Get(d.Report([snp.ReportDataSize]byte{}))(t, "get a report")
	r := must.Get(snp.ParseReport(q.Report))(t, "parse a report")
	return r
}

// vcek is what AMD would answer for it.
func (d dedicated) vcek(t *testing.T) []byte {
	t.Helper()
	table := must.Get(snp.ParseCertTable(d.CertTable()))(t, "parse the certificate table")
	return table.Find(snp.GUIDVCEK)
}

// fakeKDS answers each request with the next of its answers, the last one for ever, and keeps what it was asked.
type fakeKDS struct {
	answers []http.HandlerFunc

	mu    sync.Mutex
	urls  []string
	times []time.Time
}

func (k *fakeKDS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	k.urls = append(k.urls, r.URL.String())
	k.times = append(k.times, time.Now())
	answer := k.answers[min(len(k.urls), len(k.answers))-1]
	k.mu.Unlock()
	answer(w, r)
}

// asked returns the times of the requests so far.
func (k *fakeKDS) asked() []time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.times[:len(k.times):len(k.times)]
}

// RoundTrip lets a fakeKDS stand in for the network inside a synctest bubble, where a socket would stop the clock.
func (k *fakeKDS) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	k.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func gives(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }
}

func refuses(status int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(status)
	}
}

func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func newVCEKs(url, dir string) *VCEKs {
	return NewVCEKs(VCEKsConfig{URL: url, Dir: dir, Log: slog.New(slog.DiscardHandler),
		Metrics: promtext.New()})
}

// runVCEKs runs v until the test ends.
func runVCEKs(t *testing.T, v *VCEKs) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestVCEKURL: the same place as go-sev-guest, which writes the numbers without the leading zero that 57230 has.
func TestVCEKURL(t *testing.T) {
	r := &snp.Report{Version: 3, CPUID: snp.CPUID{Family: 0x19, Model: 0x11}, ChipID: [64]byte{0xAB, 63: 1},
		ReportedTCB: snp.TCB{Bootloader: 4, TEE: 0, SNP: 29, Microcode: 222}.Version()}
	request, ok := requestFor(r)
	if !ok {
		t.Fatal("no request")
	}
	got := request.url("https://kdsintf.amd.com/")
	want := "https://kdsintf.amd.com/vcek/v1/Genoa/ab" + strings.Repeat("00", 62) +
		"01?blSPL=04&teeSPL=00&snpSPL=29&ucodeSPL=222"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	theirs := must.Get(url.Parse(kds.VCEKCertURL("Genoa", r.ChipID[:], kds.TCBVersion(r.ReportedTCB.Raw))))(t,
		"parse a URL")
	ours := must.Get(url.Parse(got))(t, "parse a URL")
	if ours.Host != theirs.Host || ours.Path != theirs.Path || len(ours.Query()) != len(theirs.Query()) {
		t.Errorf("go-sev-guest asks %v", theirs)
	}
	for name, value := range theirs.Query() {
		var a, b int
		fmt.Sscanf(ours.Query().Get(name), "%d", &a)
		fmt.Sscanf(value[0], "%d", &b)
		if !ours.Query().Has(name) || a != b {
			t.Errorf("%s is %d, go-sev-guest has %d", name, a, b)
		}
	}
	parsed, err := kds.ParseVCEKCertURL(got)
	if err != nil || !bytes.Equal(parsed.HWID, r.ChipID[:]) ||
		parsed.TCB != r.ReportedTCB.Raw || parsed.ProductLine != "Genoa" {
		t.Errorf("go-sev-guest reads it as %+v, %v", parsed, err)
	}
}

func TestVCEKIsWanted(t *testing.T) {
	chip := [64]byte{1}
	milan, genoa, turin := snp.CPUID{Family: 0x19, Model: 0x01}, snp.CPUID{Family: 0x19,
		Model: 0x11}, snp.CPUID{Family: 0x1A, Model: 0x02}
	for _, c := range []struct {
		name   string
		report snp.Report
		line   string // none: nothing is wanted
	}{
		{"version 2", snp.Report{Version: 2, ChipID: chip}, "Milan"},
		{"Milan", snp.Report{Version: 5, CPUID: milan, ChipID: chip}, "Milan"},
		{"Genoa", snp.Report{Version: 3, CPUID: genoa, ChipID: chip}, "Genoa"},
		{"Milan-X", snp.Report{Version: 5, CPUID: snp.CPUID{Family: 0x19, Model: 0x01, Stepping: 2}, ChipID: chip}, "Milan"},
		{"Bergamo", snp.Report{Version: 3, CPUID: snp.CPUID{Family: 0x19, Model: 0xA0, Stepping: 1}, ChipID: chip}, "Genoa"},
		{"Siena", snp.Report{Version: 5, CPUID: snp.CPUID{Family: 0x19, Model: 0xA0, Stepping: 2}, ChipID: chip}, "Genoa"},
		{"Turin", snp.Report{Version: 5, CPUID: turin, ChipID: chip}, ""},
		{"unknown model", snp.Report{Version: 5, CPUID: snp.CPUID{Family: 0x19, Model: 0x40}, ChipID: chip}, ""},
		{"unknown family", snp.Report{Version: 5, CPUID: snp.CPUID{Family: 0x1B, Model: 0x01}, ChipID: chip}, ""},
		{"no chip ID", snp.Report{Version: 5, CPUID: milan}, ""},
		{"VLEK", snp.Report{Version: 5, CPUID: milan, ChipID: chip, SigningKey: snp.SignedByVLEK}, ""},
		{"unknown version", snp.Report{Version: snp.MaxKnownVersion + 1, CPUID: milan, ChipID: chip}, ""},
	} {
		request, _ := requestFor(&c.report)
		v := newVCEKs("", t.TempDir())
		if got := v.Want(&c.report); got != (c.line != "") ||
			got && request.line != c.line || got != (v.wanted() != nil) {
			t.Errorf("%s: wanted %v from line %q, want line %q", c.name, got, request.line, c.line)
		}
	}
}

// TestVCEKFromAMD: the check accepts a certificate that AMD made.
func TestVCEKFromAMD(t *testing.T) {
	const dir = "../../../shared/testdata/aws-snp"
	report, err := os.ReadFile(filepath.Join(dir, "milan-b0-v2-report.bin"))
	if err != nil {
		t.Skip("needs the captured reports: ", err)
	}
	der := must.Get(os.ReadFile(filepath.Join(dir, "milan-b0-v2-vcek.der")))(t, "read a file")
	r := must.Get(snp.ParseReport(report))(t, "parse a report")
	request, ok := requestFor(r)
	if !ok {
		t.Fatal("no request")
	}
	if _, err := request.check(der, time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Errorf("the certificate that belongs to the report is refused: %v", err)
	}
}

func TestFetchVCEK(t *testing.T) {
	d := newDedicated(t, nil)
	good := d.vcek(t)
	elsewhere := httptest.NewServer(gives(good))
	defer elsewhere.Close()
	vlek := newDedicated(t, func(o *sim.Options) { o.Signer, o.ChipID = snp.SignedByVLEK, [64]byte{} })
	vlekTable, _ := snp.ParseCertTable(vlek.CertTable())
	for _, c := range []struct {
		name       string
		answer     http.HandlerFunc
		want       string // part of the error, none: it is fetched
		retryAfter time.Duration
	}{
		{"good", gives(good), "", 0},
		{"too often", refuses(429, "17"), "429 Too Many Requests", 17 * time.Second},
		{"unknown chip", refuses(404, ""), "404 Not Found", 0},
		{"out of order", refuses(503, "999999"), "503 Service Unavailable", maxRetryAfter},
		{"nothing", gives(nil), "x509", 0},
		{"garbage", gives([]byte("<html>")), "x509", 0},
		{"with a tail", gives(append(bytes.Clone(good), 0)), "x509: trailing data", 0},
		{"too large", gives(make([]byte, maxVCEK+1)), "more than 16384 bytes", 0},
		{"another kind", gives(vlekTable.Find(snp.GUIDVLEK)), `for "SEV-VLEK", want SEV-VCEK`, 0},
		{"another chip", gives(newDedicated(t, func(o *sim.Options) { o.ChipID[1]++ }).vcek(t)),
			"the certificate has hwID", 0},
		{"hwID in an OCTET STRING", gives(newDedicated(t, func(o *sim.Options) {
			o.AlterCertificate = func(c *x509.Certificate) {
				for i, e := range c.ExtraExtensions {
					if bytes.Equal(e.Value, o.ChipID[:]) {
						c.ExtraExtensions[i].Value = append([]byte{4, 64}, e.Value...)
					}
				}
			}
		}).vcek(t)), "the certificate has hwID", 0},
		{"another TCB", gives(newDedicated(t, func(o *sim.Options) { o.TCB.Microcode++ }).vcek(t)),
			"the certificate has ucodeSPL", 0},
		{"expired", gives(newDedicated(t, func(o *sim.Options) { o.NotAfter = time.Now().Add(-time.Hour) }).vcek(t)),
			"the certificate expired", 0},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		}, "redirected to " + elsewhere.URL, 0},
		{"a moment later", func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("again") == "" {
				http.Redirect(w, r, r.URL.String()+"&again=1", http.StatusFound)
				return
			}
			w.Write(good)
		}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			dir := filepath.Join(t.TempDir(), "made", "here")
			v := newVCEKs(server.URL, dir)
			r := d.report(t)
			request, _ := requestFor(r)
			retryAfter, err := v.fetch(t.Context(), request)
			if retryAfter != c.retryAfter {
				t.Errorf("Retry-After is taken as %v, want %v", retryAfter, c.retryAfter)
			}
			if c.want == "" {
				must.Do(t, err, "fetch the certificate")
				name := filepath.Join(dir, fmt.Sprintf("%x-%016x.der", r.ChipID, r.ReportedTCB.Raw))
				if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, good) {
					t.Errorf("on disk: %d bytes, %v", len(got), err)
				}
				if fi, err := os.Stat(name); err != nil || fi.Mode() != 0o644 {
					t.Errorf("mode %v, %v", fi.Mode(), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, ok := v.Find(r); ok {
				t.Error("found nevertheless")
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("something was written")
			}
		})
	}
}

func TestVCEKFetchedInTheEnd(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers []http.HandlerFunc
		// least and most that lie between the first request and the last
		least, most time.Duration
	}{
		{"at once", nil, 0, 0},
		{"500 then good", []http.HandlerFunc{refuses(500, "")}, fetchMin, fetchMin * 3 / 2},
		{"429 with Retry-After", []http.HandlerFunc{refuses(429, "60")}, time.Minute, time.Minute},
		{"slow", []http.HandlerFunc{hangs}, fetchTimeout + fetchMin, fetchTimeout + fetchMin*3/2},
		{"garbage, too large", []http.HandlerFunc{gives([]byte("?")), gives(make([]byte, 1<<20))},
			3 * fetchMin, 3 * fetchMin * 3 / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDedicated(t, nil)
				k := &fakeKDS{answers: append(c.answers, gives(d.vcek(t)))}
				v := newVCEKs("http://kds.test", t.TempDir())
				v.client.Transport = k
				runVCEKs(t, v)
				r := d.report(t)
				for range 100 { // folds into one wish
					if !v.Want(r) {
						t.Fatal("not wanted")
					}
				}
				time.Sleep(time.Hour)
				if der, ok := v.Find(r); !ok || !bytes.Equal(der, d.vcek(t)) {
					t.Errorf("found %d bytes, %v", len(der), ok)
				}
				asked := k.asked()
				if len(asked) != len(c.answers)+1 {
					t.Fatalf("asked %d times, want %d", len(asked), len(c.answers)+1)
				}
				if took := asked[len(asked)-1].Sub(asked[0]); took < c.least || took > c.most {
					t.Errorf("took %v, want %v to %v", took, c.least, c.most)
				}
			})
		})
	}
}

// TestVCEKAfterFirmwareUpdate: the newest wish counts, and KDS is left alone for ten seconds also after a success.
func TestVCEKAfterFirmwareUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := newDedicated(t, nil)
		after := newDedicated(t, func(o *sim.Options) { o.TCB.Microcode++ })
		k := &fakeKDS{answers: []http.HandlerFunc{gives(before.vcek(t)), refuses(500, ""), gives(after.vcek(t))}}
		v := newVCEKs("http://kds.test", t.TempDir())
		v.client.Transport = k
		runVCEKs(t, v)
		v.Want(before.report(t))
		synctest.Wait()
		v.Want(after.report(t))
		time.Sleep(time.Minute)
		for name, d := range map[string]dedicated{"before": before, "after": after} {
			if der, ok := v.Find(d.report(t)); !ok || !bytes.Equal(der, d.vcek(t)) {
				t.Errorf("%s: found %d bytes, %v", name, len(der), ok)
			}
		}
		asked := k.asked()
		if len(asked) != 3 || asked[1].Sub(asked[0]) < fetchMin {
			t.Errorf("asked at %v, want three times", asked)
		}
	})
}

// TestVCEKOnDisk: what one agent fetched or an operator put there, the next one finds; an invalid one is replaced.
func TestVCEKOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDedicated(t, nil)
		r := d.report(t)
		dir := t.TempDir()
		k := &fakeKDS{answers: []http.HandlerFunc{gives(d.vcek(t))}}
		first := newVCEKs("http://kds.test", dir)
		first.client.Transport = k
		runVCEKs(t, first)
		request, _ := requestFor(r)
		must.Do(t, os.WriteFile(first.path(request), []byte("torn"), 0o644), "write a file")
		if _, ok := first.Find(r); ok {
			t.Error("found what is torn")
		}
		first.Want(r)
		synctest.Wait()
		if len(k.asked()) != 1 {
			t.Errorf("asked %d times, want once", len(k.asked()))
		}

		silent := &fakeKDS{answers: []http.HandlerFunc{refuses(500, "")}}
		second := newVCEKs("http://kds.test", dir)
		second.client.Transport = silent
		runVCEKs(t, second)
		second.Want(r)
		time.Sleep(time.Hour)
		if der, ok := second.Find(r); !ok || !bytes.Equal(der, d.vcek(t)) {
			t.Errorf("found %d bytes, %v", len(der), ok)
		}
		if n := len(silent.asked()); n != 0 {
			t.Errorf("asked %d times with the certificate on disk", n)
		}

		// An operator helps while it waits.
		third := newVCEKs("http://kds.test", t.TempDir())
		third.client.Transport = silent
		runVCEKs(t, third)
		third.Want(r)
		synctest.Wait()
		must.Do(t, os.WriteFile(third.path(request), d.vcek(t), 0o644), "write a file")
		if _, ok := third.Find(r); !ok {
			t.Error("not found at once")
		}
		time.Sleep(time.Hour)
		if n := len(silent.asked()); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

// TestVCEKWithoutCache: a directory that cannot be written costs the cache, not the certificate.
func TestVCEKWithoutCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must.Do(t, os.WriteFile(file, nil, 0o644), "write a file")
	d := newDedicated(t, nil)
	v := newVCEKs("http://kds.test", filepath.Join(file, "sub"))
	v.client.Transport = &fakeKDS{answers: []http.HandlerFunc{gives(d.vcek(t))}}
	r := d.report(t)
	request, _ := requestFor(r)
	must.Get(v.fetch(t.Context(), request))(t, "fetch the certificate without a place for the cache")
	if _, ok := v.Find(r); !ok {
		t.Error("not found")
	}
}

func TestFetchBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{
		1: 10 * time.Second, 2: 20 * time.Second, 5: 160 * time.Second, 6: fetchMax, 1000: fetchMax,
	} {
		if got := FetchBackoff(n, 0); got != want {
			t.Errorf("failure %d: %v, want %v", n, got, want)
		}
		if got := FetchBackoff(n, 0.999); got <= want || got >= want*3/2 {
			t.Errorf("failure %d: %v at most, want less than %v", n, got, want*3/2)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 25, 7, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "17": 17 * time.Second, "-1": 0, "soon": 0, "1000000": maxRetryAfter, "99999999999999999999": 0,
		"Wed, 25 Nov 2026 07:02:00 GMT": 2 * time.Minute, "Wed, 25 Nov 2026 06:00:00 GMT": 0,
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// TestWorkerWithVCEKFromKDS: a Dedicated Host from end to end, under the policy for it and the simulator's roots.
func TestWorkerWithVCEKFromKDS(t *testing.T) {
	d := newDedicated(t, nil)
	policy := must.Get(appraise.Builtin(appraise.AWSDedicated))(t, "take a built-in policy")
	policy.RootsPEM = d.Roots()
	verifier := must.Get(appraise.New(appraise.Config{Policy: policy, Own: true}))(t, "make a verifier")
	k := &fakeKDS{answers: []http.HandlerFunc{gives(d.vcek(t))}}
	server := httptest.NewServer(k)
	defer server.Close()
	vceks := newVCEKs(server.URL, t.TempDir())
	worker := func(v *VCEKs) *Worker {
		w := New(Config{Transport: d, Verifier: verifier, Enforce: true, Rate: 50, Burst: 64, VCEKs: v,
			Log: slog.New(slog.DiscardHandler), Metrics: promtext.New()})
		run(t, w)
		return w
	}

	_, _, err := worker(nil).Evidence(t.Context(), claims(1, 1))
	if Code(err) != appraise.CodeCertificateMissing {
		t.Errorf("without VCEKs: %v, want %s", err, appraise.CodeCertificateMissing)
	}

	w := worker(vceks)
	_, _, err = w.Evidence(t.Context(), claims(1, 2))
	if !errors.Is(err, ErrVCEKPending) || Code(err) != "vcek_pending" ||
		Permanent(err) || RetryAfter(err) != 10*time.Second || Advice(err) == "" {
		t.Fatalf("the first request: %v, want ErrVCEKPending", err)
	}
	if len(k.asked()) != 0 {
		t.Error("KDS was asked on the serving path")
	}
	runVCEKs(t, vceks)
	deadline := time.Now().Add(2 * time.Minute)
	for n := uint64(3); ; n++ {
		doc, verdict, err := w.Evidence(t.Context(), claims(1, n))
		if errors.Is(err, ErrVCEKPending) && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil || verdict.Status != appraise.Pass {
			t.Fatalf("later: %+v, %v", verdict, err)
		}
		if doc == nil || verdict.Signer != "VCEK" || w.State().NotAfter.IsZero() {
			t.Errorf("document %v, signer %s", doc, verdict.Signer)
		}
		break
	}
	if n := len(k.asked()); n != 1 {
		t.Errorf("KDS was asked %d times, want once", n)
	}
}

// tabled is a Dedicated Host that adds a table of its own to its reports.
type tabled struct {
	dedicated
	table snp.CertTable
}

func (d tabled) Report(reportData [snp.ReportDataSize]byte) (Quote, error) {
	q, err := d.dedicated.Report(reportData)
	q.CertTable = d.table.Encode()
	return q, err
}

// TestDocumentBeginsWithTheSigningKey: whatever else the host adds, and wherever the VCEK comes from, a document begins
// with the certificate of the key that signed, as its readers require.
func TestDocumentBeginsWithTheSigningKey(t *testing.T) {
	shared := must.Get(sim.New(sim.DefaultOptions(time.Now())))(t, "make a simulator")
	vlek := must.Get(snp.ParseCertTable(shared.CertTable()))(t, "parse the certificate table").Find(snp.GUIDVLEK)
	d := newDedicated(t, nil)
	cached := newVCEKs("", t.TempDir())
	request, ok := requestFor(d.report(t))
	if !ok {
		t.Fatal("there is no VCEK to ask AMD for")
	}
	cached.last.Store(must.Get(request.check(d.vcek(t), time.Now()))(t, "check the VCEK"))
	for _, c := range []struct {
		name  string
		table snp.CertTable
		vceks *VCEKs
	}{
		{"VCEK alone", snp.CertTable{{GUID: snp.GUIDVCEK, Data: d.vcek(t)}}, nil},
		{"VLEK first", snp.CertTable{{GUID: snp.GUIDVLEK, Data: vlek}, {GUID: snp.GUIDVCEK, Data: d.vcek(t)}}, nil},
		{"VLEK in the table, VCEK from AMD", snp.CertTable{{GUID: snp.GUIDVLEK, Data: vlek}}, cached},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorker(t, tabled{d, c.table}, 50, 64)
			w.cfg.VCEKs = c.vceks
			run(t, w)
			doc, _, err := w.Evidence(t.Context(), claims(1, 1))
			must.Do(t, err, "get evidence")
			doc = must.Get(evidence.Parse(must.Get(json.Marshal(doc))(t, "encode the document")))(t,
				"parse the document")
			certs := must.Get(doc.Certs())(t, "take the certificates out of the document")
			if !bytes.Equal(certs[0], d.vcek(t)) {
				t.Errorf("the first of %d certificates is not the VCEK's", len(certs))
			}
		})
	}
}

// TestWorkerWithoutChipID: nothing can be fetched for such a report, so no caller is asked to wait.
func TestWorkerWithoutChipID(t *testing.T) {
	d := newDedicated(t, func(o *sim.Options) { o.ChipID = [64]byte{} })
	w := newWorker(t, d, 50, 64)
	w.cfg.Enforce, w.cfg.VCEKs = true, newVCEKs("http://127.0.0.1:1", t.TempDir())
	run(t, w)
	if _, _, err := w.Evidence(t.Context(), claims(1, 1)); Code(err) != appraise.CodeCertificateMissing {
		t.Errorf("got %v, want %s", err, appraise.CodeCertificateMissing)
	}
}

// FuzzVCEK: what is not the certificate never passes for it, and nothing panics.
func FuzzVCEK(f *testing.F) {
	f.Add([]byte("0\x82"), uint64(0))
	if der, err := os.ReadFile("../../../shared/testdata/aws-snp/milan-b0-v2-vcek.der"); err == nil {
		f.Add(der, binary.LittleEndian.Uint64([]byte{3, 0, 0, 0, 0, 0, 8, 115}))
	}
	f.Fuzz(func(t *testing.T, der []byte, tcb uint64) {
		found, err := vcekRequest{chipID: [64]byte{1}, tcb: snp.TCBVersion{Raw: tcb}}.check(der, time.Now())
		if err == nil && (!bytes.Contains(der, found.request.chipID[:]) || !bytes.Equal(found.der, der)) {
			t.Errorf("accepted %x", der)
		}
	})
}
