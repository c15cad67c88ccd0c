package simaws

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sevagent/internal/sim/simca"
)

// PrivateCA is the part of AWS Private CA that a node uses: one CA, and an http.Handler that speaks AWS JSON 1.1 and
// knows the operations IssueCertificate, with the templates for end entities and a validity in days, GetCertificate and
// GetCertificateAuthorityCertificate. With Region and AccountID set, and a CA by SetCA, it is ready to serve.
type PrivateCA struct {
	Region, AccountID string

	mu     sync.Mutex
	ca     *simca.CA
	state  string        // "": ACTIVE
	delay  time.Duration // from an order to the issuance
	flaw   Flaw
	faults map[string]callFault // by operation
	calls  map[string]int       // by operation
	tokens map[string]ordered   // by idempotency token
	issued map[string]ordered   // by ARN
}

// ordered is a certificate that was ordered.
type ordered struct {
	arn                string
	at, ready          time.Time
	certificate, chain string // PEM
}

// callFault is what happens to so many calls; below zero, to all.
type callFault struct {
	fault string
	calls int
}

// Faults of a call, beside error codes and HTTP statuses.
const (
	Lost   = "lost"   // it does what it should, but the connection ends without an answer
	Cut    = "cut"    // half of the answer is all that comes
	Silent = "silent" // it does what it should, but is not answered before the client gives up
)

// Flaw is what is wrong with a certificate.
type Flaw string

// Flaws.
const (
	WrongKey   Flaw = "key"      // for another key than that of the request
	WrongName  Flaw = "name"     // for another name
	WrongUsage Flaw = "usage"    // for signing code
	WrongChain Flaw = "chain"    // with the chain of another CA
	NoRoot     Flaw = "root"     // with a chain that ends below the root
	Tomorrow   Flaw = "tomorrow" // not valid before tomorrow
)

// SetCA sets or replaces what the CA signs with.
func (p *PrivateCA) SetCA(ca *simca.CA) { p.set(func() { p.ca = ca }) }

// SetState sets the CA's state, such as DISABLED. "": ACTIVE.
func (p *PrivateCA) SetState(state string) { p.set(func() { p.state = state }) }

// SetDelay sets how long after its order a certificate is issued.
func (p *PrivateCA) SetDelay(d time.Duration) { p.set(func() { p.delay = d }) }

// SetFlaw sets what is wrong with the certificates ordered next. "": nothing.
func (p *PrivateCA) SetFlaw(f Flaw) { p.set(func() { p.flaw = f }) }

// Fail makes so many of the next calls of an operation fail with an error code such as ThrottlingException, an HTTP
// status such as "503", Lost or Silent; below zero, all. It replaces what the last Fail for the operation set.
func (p *PrivateCA) Fail(operation, fault string, calls int) {
	p.set(func() {
		if p.faults == nil {
			p.faults = make(map[string]callFault)
		}
		p.faults[operation] = callFault{fault, calls}
	})
}

func (p *PrivateCA) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// Calls returns how often each operation was called.
func (p *PrivateCA) Calls() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.calls)
}

// Issued returns how many certificates were ordered, and so paid for.
func (p *PrivateCA) Issued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.issued)
}

// ARN returns that of the CA.
func (p *PrivateCA) ARN() string {
	const id = "certificate-authority/12345678-1234-1234-1234-123456789012"
	return Instance{Region: p.Region, AccountID: p.AccountID}.ARN("acm-pca", id)
}

// pcaInput has the members of all operations.
type pcaInput struct {
	CertificateAuthorityArn, CertificateArn         string
	Csr                                             []byte
	SigningAlgorithm, TemplateArn, IdempotencyToken string

	Validity struct {
		Type  string
		Value int
	}
	ValidityNotBefore *struct{}
	ApiPassthrough    struct {
		Extensions struct {
			CustomExtensions []struct {
				ObjectIdentifier, Value string
				Critical                bool
			}
		}
	}
}

// ServeHTTP implements http.Handler.
func (p *PrivateCA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amzn-Requestid", newUUID())
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var in pcaInput
	var answer any
	var fault string
	refusal := &apiError{"SerializationException", "the request is not JSON"}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in) == nil {
		answer, refusal, fault = p.serve(r.Header, in)
	}
	switch fault {
	case Lost:
		panic(http.ErrAbortHandler)
	case Silent:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	if refusal == nil {
		text, _ := json.Marshal(answer) // of text: always marshals
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		if fault == Cut {
			text = text[:len(text)/2]
		}
		w.Write(text)
		return
	}
	w.Header().Set("X-Amzn-Errortype", refusal.code)
	if _, body := writeStatus(w, refusal.code); body {
		json.NewEncoder(w).Encode(map[string]string{"__type": refusal.code, "message": refusal.message})
	}
}

func (p *PrivateCA) serve(header http.Header, in pcaInput) (answer any, refusal *apiError, fault string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	operation := strings.TrimPrefix(header.Get("X-Amz-Target"), "ACMPrivateCA.")
	if p.calls == nil {
		p.calls, p.tokens, p.issued = make(map[string]int), make(map[string]ordered), make(map[string]ordered)
	}
	p.calls[operation]++
	if !authorized(header, p.Region+"/acm-pca") {
		const text = "The security token included in the request is invalid."
		return nil, &apiError{"UnrecognizedClientException", text}, ""
	}
	if f := p.faults[operation]; f.calls != 0 {
		p.faults[operation] = callFault{f.fault, f.calls - 1}
		if f.fault != Lost && f.fault != Silent && f.fault != Cut {
			return nil, &apiError{f.fault, "simulated"}, ""
		}
		fault = f.fault
	}
	if in.CertificateAuthorityArn != p.ARN() {
		const text = "Could not find certificate authority with arn "
		return nil, &apiError{"ResourceNotFoundException", text + in.CertificateAuthorityArn}, ""
	}
	switch operation {
	case "IssueCertificate":
		answer, refusal = p.issue(in)
	case "GetCertificate":
		answer, refusal = p.get(in.CertificateArn)
	case "GetCertificateAuthorityCertificate":
		chain := p.ca.Chain()
		own := map[string]string{"Certificate": pemOf(chain[:1])}
		if len(chain) > 1 { // a root has no chain
			own["CertificateChain"] = pemOf(chain[1:])
		}
		answer = own
	default:
		refusal = &apiError{"UnknownOperationException", operation + " is not simulated"}
	}
	return answer, refusal, fault
}

func pemOf(certificates []*x509.Certificate) string {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return strings.TrimSpace(string(text))
}

func (p *PrivateCA) get(arn string) (answer any, refusal *apiError) {
	o, ok := p.issued[arn]
	switch {
	case !ok:
		return nil, &apiError{"ResourceNotFoundException", "Could not find certificate with arn " + arn}
	case time.Now().Before(o.ready):
		return nil, &apiError{"RequestInProgressException", "The certificate " + arn + " is being issued."}
	}
	return map[string]string{"Certificate": o.certificate, "CertificateChain": o.chain}, nil
}

// usages has the templates for end entities, without their varieties (AWS Private CA User Guide, "template
// definitions").
var usages = map[string][]x509.ExtKeyUsage{
	"EndEntityCertificate":           {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	"EndEntityClientAuthCertificate": {x509.ExtKeyUsageClientAuth},
	"EndEntityServerAuthCertificate": {x509.ExtKeyUsageServerAuth},
}

// tokenLife is how long Private CA remembers an idempotency token (API reference, IssueCertificate).
const tokenLife = 5 * time.Minute

// oidSubjectAltName is what a certificate takes from its request, with the subject.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// issue orders a certificate.
func (p *PrivateCA) issue(in pcaInput) (answer any, refusal *apiError) {
	now := time.Now()
	if o, ok := p.tokens[in.IdempotencyToken]; ok && now.Sub(o.at) < tokenLife {
		return map[string]string{"CertificateArn": o.arn}, nil
	}
	request, template, refusal := p.check(in, now)
	if refusal != nil {
		return nil, refusal
	}
	key, chain := request.PublicKey, p.ca.Chain()
	switch p.flaw {
	case WrongKey:
		other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		key = &other.PublicKey
	case WrongName:
		template.RawSubject, template.ExtraExtensions = nil, nil
		template.Subject, template.DNSNames = pkix.Name{CommonName: "another"}, []string{"another"}
	case WrongUsage:
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	case WrongChain:
		other, err := simca.New("Another CA", now)
		if err != nil {
			return nil, &apiError{"InternalFailure", err.Error()}
		}
		chain = other.Chain()
	case NoRoot:
		chain = chain[:len(chain)-1]
	case Tomorrow:
		template.NotBefore = now.Add(24 * time.Hour)
		template.NotAfter = template.NotAfter.Add(24 * time.Hour)
	}
	certificate, err := p.ca.Certify(template, key)
	if err != nil {
		return nil, &apiError{"InternalFailure", err.Error()}
	}
	o := ordered{
		arn: p.ARN() + "/certificate/" + strings.ReplaceAll(newUUID(), "-", ""), at: now, ready: now.Add(p.delay),
		certificate: pemOf([]*x509.Certificate{certificate}), chain: pemOf(chain),
	}
	p.issued[o.arn] = o
	if in.IdempotencyToken != "" {
		p.tokens[in.IdempotencyToken] = o
	}
	return map[string]string{"CertificateArn": o.arn}, nil
}

// check refuses what Private CA refuses, and returns the request with what its certificate is to be.
func (p *PrivateCA) check(in pcaInput, now time.Time) (*x509.CertificateRequest, *x509.Certificate, *apiError) {
	refuse := func(code, text string, args ...any) (*x509.CertificateRequest, *x509.Certificate, *apiError) {
		return nil, nil, &apiError{code, fmt.Sprintf(text, args...)}
	}
	if p.state != "" {
		return refuse("InvalidStateException", "The certificate authority is in the %s state.", p.state)
	}
	prefix, _, _ := strings.Cut(p.ARN(), "acm-pca")
	name, ok := strings.CutPrefix(in.TemplateArn, prefix+"acm-pca:::template/")
	name, version, _ := strings.Cut(name, "/")
	base, variety, _ := strings.Cut(name, "_")
	varieties := []string{"", "APIPassthrough", "CSRPassthrough", "APICSRPassthrough"}
	if !ok || version != "V1" || usages[base] == nil || !slices.Contains(varieties, variety) {
		return refuse("InvalidArgsException", "simulated: no template %s", in.TemplateArn)
	}
	if in.SigningAlgorithm != "SHA256WITHECDSA" { // the keys of simca are P-256
		return refuse("InvalidArgsException", "The signing algorithm %s does not fit the CA's key.", in.SigningAlgorithm)
	}
	block, _ := pem.Decode(in.Csr)
	if block == nil {
		return refuse("MalformedCSRException", "The CSR is not PEM.")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return refuse("MalformedCSRException", "The CSR is malformed: %v", err)
	}
	if in.Validity.Type != "DAYS" || in.Validity.Value < 1 || in.ValidityNotBefore != nil {
		return refuse("ValidationException", "simulated: only a validity in days")
	}
	template := &x509.Certificate{
		RawSubject: request.RawSubject, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, in.Validity.Value),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: usages[base],
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(p.ca.Cert.NotAfter) {
		return refuse("ValidationException", "The certificate validity exceeds that of the certificate authority.")
	}
	for _, e := range request.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	for _, e := range in.ApiPassthrough.Extensions.CustomExtensions {
		id, err1 := oid(e.ObjectIdentifier)
		value, err2 := base64.StdEncoding.DecodeString(e.Value)
		if err1 != nil || err2 != nil || len(e.Value) > 4096 { // API reference, CustomExtension
			return refuse("ValidationException", "Value at 'apiPassthrough.extensions.customExtensions' is not valid.")
		}
		if strings.HasPrefix(variety, "API") { // otherwise it is ignored
			extension := pkix.Extension{Id: id, Critical: e.Critical, Value: value}
			template.ExtraExtensions = append(template.ExtraExtensions, extension)
		}
	}
	return request, template, nil
}

func oid(text string) (id asn1.ObjectIdentifier, err error) {
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, err
		}
		id = append(id, n)
	}
	return id, nil
}
