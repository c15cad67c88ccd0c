package privateca_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"sevagent/internal/awsconfig"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/issue/privateca"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simca"
)

const client = "EndEntityClientAuthCertificate/V1"

// serve has a simulated node with a CA answer the real SDK.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) *simaws.PrivateCA {
	t.Helper()
	instance := simaws.DefaultInstance()
	service := &simaws.PrivateCA{Region: instance.Region, AccountID: instance.AccountID}
	service.SetCA(must.Get(simca.New("Root", time.Now()))(t, "make a CA"))
	var handler http.Handler = service
	if wrap != nil {
		handler = wrap(handler)
	}
	metadata, server := httptest.NewServer(&simaws.IMDS{Instance: instance}), httptest.NewServer(handler)
	t.Cleanup(metadata.Close)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.URL, "AWS_ENDPOINT_URL_ACM_PCA": server.URL,
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_CA_BUNDLE": "", "AWS_REGION": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		t.Setenv(name, value)
	}
	return service
}

func access(context.Context) (aws.Config, error) { return awsconfig.Load() }

func authority(t *testing.T, service *simaws.PrivateCA, template string) *privateca.Authority {
	t.Helper()
	c := privateca.Config{CA: service.ARN(), Template: template, Days: 1, Access: access}
	return must.Get(privateca.New(c))(t, "make an authority")
}

var tokens = 0

// request makes a request for a name, with its key.
func request(t *testing.T, name string, extensions ...pkix.Extension) (issue.Request, *ecdsa.PrivateKey) {
	t.Helper()
	key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
	csr := must.Get(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
	}, key))(t, "make a request")
	tokens++
	return issue.Request{CSR: csr, Token: strings.Repeat("x", tokens), Extensions: extensions}, key
}

// order orders and collects.
func order(t *testing.T, a *privateca.Authority, r issue.Request) (issue.Certificate, error) {
	t.Helper()
	o, err := a.Order(t.Context(), r)
	if err != nil {
		return issue.Certificate{}, err
	}
	return o.Collect(t.Context())
}

// TestOrder: a root alone, and a root with a CA below it.
func TestOrder(t *testing.T) {
	service := serve(t, nil)
	root := must.Get(simca.New("Root", time.Now()))(t, "make a root")
	below := must.Get(root.Intermediate("Below", time.Now()))(t, "make a CA below it")
	for _, c := range []struct {
		name  string
		ca    *simca.CA
		chain int
	}{{"root", root, 1}, {"subordinate", below, 2}} {
		t.Run(c.name, func(t *testing.T) {
			service.SetCA(c.ca)
			a := authority(t, service, client)
			r, key := request(t, "node-1")
			got := must.Get(order(t, a, r))(t, "order a certificate")
			if len(got.Chain) != c.chain || len(got.Anchors) != 1 || !got.Anchors[0].Equal(root.Cert) {
				t.Fatalf("%d certificates and %d anchors, want %d and the root", len(got.Chain), len(got.Anchors), c.chain)
			}
			leaf, roots, between := got.Chain[0], x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(got.Anchors[0])
			for _, i := range got.Chain[1:] {
				between.AddCert(i)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "node-1",
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			if err != nil || !key.PublicKey.Equal(leaf.PublicKey) {
				t.Errorf("the certificate does not verify for its key: %v", err)
			}
			if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
				t.Errorf("usages %v, want clients alone", leaf.ExtKeyUsage)
			}
			if got, want := leaf.NotAfter.Sub(leaf.NotBefore.Add(a.Backdated())), 24*time.Hour; got != want {
				t.Errorf("valid for %v from its issuance, want %v", got, want)
			}
		})
	}
}

// TestPartition: region and partition are those of the CA, whatever the node's.
func TestPartition(t *testing.T) {
	service := serve(t, nil)
	service.Region = "us-gov-west-1" // the node is in us-east-2
	r, _ := request(t, "node-1")
	must.Get(order(t, authority(t, service, client), r))(t, "order a certificate")
}

// TestCalls: the CA's certificate is read once, whatever the number of orders, and again after a refusal.
func TestCalls(t *testing.T) {
	service := serve(t, nil)
	a := authority(t, service, client)
	read := func() int { return service.Calls()["GetCertificateAuthorityCertificate"] }
	for range 3 {
		r, _ := request(t, "node-1")
		must.Get(order(t, a, r))(t, "order a certificate")
	}
	if n := read(); n != 1 {
		t.Errorf("the CA's certificate was read %d times for 3 orders, want 1", n)
	}
	service.Fail("IssueCertificate", "ThrottlingException", 1)
	r, _ := request(t, "node-1")
	if _, err := order(t, a, r); source.KindOf(err) != source.Transient {
		t.Errorf("throttled: %v, want a transient error", err)
	}
	must.Get(order(t, a, r))(t, "order a certificate")
	if n := read(); n != 1 {
		t.Errorf("the CA's certificate was read %d times, want 1: throttling does not put it into doubt", n)
	}
	service.SetState("EXPIRED")
	if _, err := order(t, a, r); err != nil {
		t.Errorf("an order that is repeated: %v, want the certificate that its token stands for", err)
	}
	r, _ = request(t, "node-1")
	if _, err := order(t, a, r); source.KindOf(err) != source.Persistent {
		t.Errorf("an expired CA: %v, want a persistent error", err)
	}
	service.SetState("")
	other := must.Get(simca.New("Other", time.Now()))(t, "make a CA")
	service.SetCA(other)
	got := must.Get(order(t, a, r))(t, "order a certificate")
	if n := read(); n != 2 || !got.Anchors[0].Equal(other.Cert) {
		t.Errorf("the CA's certificate was read %d times, want 2; the anchor is %q", n, got.Anchors[0].Subject)
	}
}

// TestLost: an answer that is lost does not cost a certificate.
func TestLost(t *testing.T) {
	service := serve(t, nil)
	a := authority(t, service, client)
	r, _ := request(t, "node-1")
	service.Fail("IssueCertificate", simaws.Lost, 1)
	if _, err := order(t, a, r); err == nil || source.KindOf(err) != source.Transient {
		t.Errorf("a connection that ends: %v, want a transient error", err)
	}
	service.Fail("IssueCertificate", simaws.Silent, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Order(ctx, r); !errors.Is(err, context.DeadlineExceeded) || source.KindOf(err) != source.Transient {
		t.Errorf("no answer: %v, want a transient error", err)
	}
	must.Get(order(t, a, r))(t, "order a certificate")
	if n := service.Issued(); n != 1 {
		t.Errorf("%d certificates were issued, want 1", n)
	}

	accepted := must.Get(a.Order(t.Context(), r))(t, "order it again")
	service.Fail("GetCertificate", simaws.Cut, 1)
	if _, err := accepted.Collect(t.Context()); !errors.Is(err, issue.ErrPending) {
		t.Errorf("half an answer: %v, want ErrPending", err)
	}
	must.Get(accepted.Collect(t.Context()))(t, "collect the certificate")
}

func TestExtensions(t *testing.T) {
	service := serve(t, nil)
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 35}
	extension := pkix.Extension{Id: id, Value: bytes.Repeat([]byte{5}, 3072)}
	const passthrough = "EndEntityClientAuthCertificate_APIPassthrough/V1"
	r, _ := request(t, "node-1", extension)
	got := must.Get(order(t, authority(t, service, passthrough), r))(t, "order a certificate")
	found := 0
	for _, e := range got.Chain[0].Extensions {
		if e.Id.Equal(id) && bytes.Equal(e.Value, extension.Value) && !e.Critical {
			found++
		}
	}
	if found != 1 {
		t.Errorf("the certificate has the extension %d times, want 1", found)
	}
	before := service.Calls()
	extension.Value = append(extension.Value, 5)
	long, _ := request(t, "node-1", extension)
	for _, c := range []struct {
		template, want string
		r              issue.Request
	}{
		{client, "takes no extensions; use " + passthrough, r},
		{"EndEntityCertificate_CSRPassthrough/V1", "use EndEntityCertificate_APICSRPassthrough/V1", r},
		{passthrough, "1.3.6.1.5.5.7.1.35 has 3073 bytes, and Private CA takes 3072", long},
	} {
		_, err := order(t, authority(t, service, c.template), c.r)
		if source.KindOf(err) != source.Persistent || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a persistent error with %q", c.template, err, c.want)
		}
	}
	if after := service.Calls(); after["IssueCertificate"] != before["IssueCertificate"] {
		t.Error("what would be refused was ordered")
	}
}

// TestErrors has the errors that the API reference and the user guide list for the three operations.
func TestErrors(t *testing.T) {
	service := serve(t, nil)
	const issuing, collecting, reading = "IssueCertificate", "GetCertificate", "GetCertificateAuthorityCertificate"
	for _, c := range []struct {
		operation, fault string
		want             source.Kind
		text             string
	}{
		{issuing, "ThrottlingException", source.Transient, "order a certificate from arn:"},
		{issuing, "500", source.Transient, ""},
		{issuing, "503", source.Transient, ""},
		{issuing, "ExpiredTokenException", source.Transient, ""},
		{issuing, "AccessDeniedException", source.Persistent, "acm-pca:IssueCertificate, where acm-pca:TemplateArn is " +
			"arn:aws:acm-pca:::template/EndEntityClientAuthCertificate/V1, acm-pca:GetCertificate and"},
		{issuing, "InvalidStateException", source.Persistent, "enable it if DISABLED"},
		{issuing, "LimitExceededException", source.Persistent, "quota"},
		{issuing, "MalformedCSRException", source.Persistent, "names"},
		{issuing, "InvalidArgsException", source.Persistent, "template"},
		{issuing, "ValidationException", source.Persistent, "outlive"},
		{issuing, "ResourceNotFoundException", source.Persistent, "ARN"},
		{issuing, "InvalidArnException", source.Persistent, "ARN"},
		{issuing, "UnrecognizedClientException", source.Persistent, "credentials"},
		{reading, "AccessDeniedException", source.Persistent, "acm-pca:GetCertificateAuthorityCertificate"},
		{reading, "ThrottlingException", source.Transient, "read the certificate of arn:"},
		{collecting, "AccessDeniedException", source.Persistent, "acm-pca:GetCertificate"},
		{collecting, "InvalidStateException", source.Persistent, "collect certificate arn:"},
		{collecting, "ThrottlingException", source.Transient, ""},
		{collecting, "500", source.Transient, ""},
	} {
		t.Run(c.operation+" "+c.fault, func(t *testing.T) {
			a := authority(t, service, client)
			before := service.Calls()[c.operation]
			service.Fail(c.operation, c.fault, -1)
			r, _ := request(t, "node-1")
			_, err := order(t, a, r)
			if err == nil || source.KindOf(err) != c.want || errors.Is(err, issue.ErrLost) || errors.Is(err, issue.ErrPending) {
				t.Fatalf("%v, want a %s error", err, c.want)
			}
			if text := err.Error(); !strings.Contains(text, c.text) || strings.Contains(text, "\n") {
				t.Errorf("%q, want one line with %q", text, c.text)
			}
			if e, ok := errors.AsType[*source.Error](err); !ok || e.Date.IsZero() {
				t.Errorf("%v has no date", err)
			}
			if n := service.Calls()[c.operation] - before; n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
			service.Fail(c.operation, "", 0)
		})
	}
}

// TestCollect: what is not an error, and what ends an order.
func TestCollect(t *testing.T) {
	service := serve(t, nil)
	a := authority(t, service, client)
	r, _ := request(t, "node-1")
	o := must.Get(a.Order(t.Context(), r))(t, "order a certificate")
	for _, fault := range []string{"RequestInProgressException", "ResourceNotFoundException"} {
		service.Fail("GetCertificate", fault, 2)
		for range 2 {
			if _, err := o.Collect(t.Context()); !errors.Is(err, issue.ErrPending) {
				t.Errorf("%s: %v, want that it is pending", fault, err)
			}
		}
	}
	must.Get(o.Collect(t.Context()))(t, "collect the certificate")
	service.Fail("GetCertificate", "RequestFailedException", 1)
	_, err := o.Collect(t.Context())
	if !errors.Is(err, issue.ErrLost) || !strings.Contains(err.Error(), "RequestFailedException: simulated") {
		t.Errorf("an issuance that failed: %v, want that the order is lost, and why", err)
	}
	service.SetDelay(time.Hour)
	r, _ = request(t, "node-1")
	if _, err := order(t, a, r); !errors.Is(err, issue.ErrPending) {
		t.Errorf("a slow CA: %v, want that it is pending", err)
	}
}

// TestFlaws: whether a certificate is the one wanted is for the caller to check.
func TestFlaws(t *testing.T) {
	service := serve(t, nil)
	a := authority(t, service, client)
	for flaw, has := range map[simaws.Flaw]func(leaf, anchor *x509.Certificate, key *ecdsa.PrivateKey) bool{
		simaws.WrongKey: func(leaf, _ *x509.Certificate, key *ecdsa.PrivateKey) bool {
			return !key.PublicKey.Equal(leaf.PublicKey)
		},
		simaws.WrongName: func(leaf, _ *x509.Certificate, _ *ecdsa.PrivateKey) bool {
			return leaf.Subject.CommonName == "another" && leaf.VerifyHostname("node-1") != nil
		},
		simaws.WrongUsage: func(leaf, _ *x509.Certificate, _ *ecdsa.PrivateKey) bool {
			return leaf.ExtKeyUsage[0] == x509.ExtKeyUsageCodeSigning
		},
		simaws.WrongChain: func(leaf, anchor *x509.Certificate, _ *ecdsa.PrivateKey) bool {
			return leaf.CheckSignatureFrom(anchor) != nil
		},
		simaws.Tomorrow: func(leaf, _ *x509.Certificate, _ *ecdsa.PrivateKey) bool {
			return leaf.NotBefore.After(time.Now())
		},
	} {
		for _, f := range []simaws.Flaw{flaw, ""} {
			service.SetFlaw(f)
			r, key := request(t, "node-1")
			got := must.Get(order(t, a, r))(t, "order a certificate with the flaw %q", f)
			if has(got.Chain[0], got.Anchors[0], key) != (f == flaw) {
				t.Errorf("the certificate with the flaw %q has or lacks %q", f, flaw)
			}
		}
	}
}

// TestNoRoot: what has no root above it is not ordered, and cannot be used if the CA has none any more once it is.
func TestNoRoot(t *testing.T) {
	service := serve(t, nil)
	a := authority(t, service, client)
	service.SetFlaw(simaws.NoRoot)
	root := must.Get(simca.New("Root", time.Now()))(t, "make a root")
	below := must.Get(root.Intermediate("Below", time.Now()))(t, "make a CA below it")
	service.SetCA(below)
	r, _ := request(t, "node-1")
	const want = `ends in "CN=Below", which was issued by "CN=Root", and not in a root`
	_, err := order(t, a, r)
	if !errors.Is(err, issue.ErrUnusable) || !strings.Contains(err.Error(), want) {
		t.Errorf("a certificate: %v, want %s", err, want)
	}
	service.SetCA(&simca.CA{Cert: below.Cert, Key: below.Key})
	issued := service.Issued()
	r, _ = request(t, "node-1")
	_, err = order(t, a, r)
	if source.KindOf(err) != source.Persistent || !strings.Contains(err.Error(), want) || service.Issued() != issued {
		t.Errorf("a CA: %v and %d certificates, want %s and none", err, service.Issued()-issued, want)
	}
}

// TestAnswer: an answer that is no certificate, or several, cannot be used. Without a chain, it is that of the CA.
func TestAnswer(t *testing.T) {
	var change func(map[string]string)
	service := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Amz-Target") != "ACMPrivateCA.GetCertificate" {
				h.ServeHTTP(w, r)
				return
			}
			recorded := httptest.NewRecorder()
			h.ServeHTTP(recorded, r)
			var answer map[string]string
			must.Do(t, json.Unmarshal(recorded.Body.Bytes(), &answer), "read the answer")
			change(answer)
			json.NewEncoder(w).Encode(answer)
		})
	})
	root := must.Get(simca.New("Root", time.Now()))(t, "make a root")
	service.SetCA(must.Get(root.Intermediate("Below", time.Now()))(t, "make a CA below it"))
	a := authority(t, service, client)
	for _, c := range []struct {
		name   string
		change func(map[string]string)
		good   bool
	}{
		{"no chain", func(m map[string]string) { delete(m, "CertificateChain") }, true},
		{"no certificate", func(m map[string]string) { delete(m, "Certificate") }, false},
		{"two certificates", func(m map[string]string) { m["Certificate"] += "\n" + m["CertificateChain"] }, false},
		{"half a certificate", func(m map[string]string) { m["Certificate"] = m["Certificate"][:100] }, false},
		{"half a chain", func(m map[string]string) { m["CertificateChain"] = m["CertificateChain"][:100] }, false},
	} {
		change = c.change
		r, _ := request(t, "node-1")
		got, err := order(t, a, r)
		if c.good && (err != nil || len(got.Chain) != 2 || !got.Anchors[0].Equal(root.Cert)) ||
			!c.good && !errors.Is(err, issue.ErrUnusable) {
			t.Errorf("%s: %d certificates, %v", c.name, len(got.Chain), err)
		}
	}
}

// TestClock: a node whose clock is wrong has its first request refused, and corrects it by the service's.
func TestClock(t *testing.T) {
	const ahead = time.Hour
	refused := 0
	service := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			now := time.Now().Add(ahead).UTC()
			w.Header().Set("Date", now.Format(http.TimeFormat))
			signed := must.Get(time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date")))(t, "read the date")
			if now.Sub(signed).Abs() > 5*time.Minute {
				refused++
				w.WriteHeader(http.StatusBadRequest)
				json.NewEncoder(w).Encode(map[string]string{"__type": "InvalidSignatureException", "message": "expired"})
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	a := authority(t, service, client)
	for range 2 {
		r, _ := request(t, "node-1")
		must.Get(order(t, a, r))(t, "order a certificate")
	}
	if refused != 1 {
		t.Errorf("%d requests were refused, want 1", refused)
	}
}

func TestNoAccess(t *testing.T) {
	fault := errors.New("no region yet")
	service := serve(t, nil)
	a := must.Get(privateca.New(privateca.Config{CA: service.ARN(), Template: client, Days: 1,
		Access: func(ctx context.Context) (aws.Config, error) {
			if fault != nil {
				return aws.Config{}, fault
			}
			return access(ctx)
		}}))(t, "make an authority")
	r, _ := request(t, "node-1")
	if _, err := order(t, a, r); !errors.Is(err, fault) || source.KindOf(err) != source.Transient {
		t.Errorf("%v, want a transient %v", err, fault)
	}
	fault = nil
	must.Get(order(t, a, r))(t, "order a certificate")
}

func TestNew(t *testing.T) {
	const ca = "arn:aws-us-gov:acm-pca:us-gov-west-1:111122223333:certificate-authority/1"
	good := privateca.Config{CA: ca, Template: client, Days: 7, Access: access}
	if a := must.Get(privateca.New(good))(t, "make an authority"); a.String() != ca || a.Backdated() != time.Hour {
		t.Errorf("%s, backdated by %v", a, a.Backdated())
	}
	for name, c := range map[string]privateca.Config{
		"no ARN":            {CA: "ca", Template: client, Days: 7},
		"a secret":          {CA: "arn:aws:secretsmanager:us-east-2:111122223333:secret:a", Template: client, Days: 7},
		"a certificate":     {CA: ca + "/certificate/2", Template: client, Days: 7},
		"a CA's template":   {CA: ca, Template: "SubordinateCACertificate_PathLen0/V1", Days: 7},
		"any usage":         {CA: ca, Template: "BlankEndEntityCertificate_APIPassthrough/V1", Days: 7},
		"a template's ARN":  {CA: ca, Template: "arn:aws:acm-pca:::template/" + client, Days: 7},
		"no days":           {CA: ca, Template: client},
		"a negative number": {CA: ca, Template: client, Days: -1},
	} {
		if a, err := privateca.New(c); err == nil {
			t.Errorf("%s: %s, want an error", name, a)
		}
	}
}
