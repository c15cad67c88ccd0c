// Package privateca orders certificates from AWS Private CA.
//
// The node's role needs acm-pca:IssueCertificate, with a condition that acm-pca:TemplateArn is the template in use,
// acm-pca:GetCertificate and acm-pca:GetCertificateAuthorityCertificate, all three on the CA. The condition limits what
// a certificate can be used for. Nothing in IAM limits its names: they are taken from the request, so the role can have
// a certificate in any name, those of other nodes included. A CA for each cluster limits that, or name constraints in
// its certificate.
//
// The client is pinned in go.mod to service/acmpca v1.56.12. From v1.57.0 it speaks Smithy RPC v2 CBOR instead of AWS
// JSON 1.1, which the emulated AWS of the tests does not answer. Raise both together.
package privateca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"sevagent/internal/awsconfig"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/source"
)

const (
	// callTimeout bounds Order and Collect, with everything that they ask.
	callTimeout = 10 * time.Second
	// backdated is how long before its issuance Private CA has a certificate begin (API reference, IssueCertificate,
	// ValidityNotBefore).
	backdated = 60 * time.Minute
	// maxExtension is the largest value of an extension in bytes: 4,096 characters of base64 (API reference,
	// CustomExtension).
	maxExtension = 4096 / 4 * 3
	// appears is the time within which an order that Private CA does not know may only be one that it does not know
	// yet.
	appears = time.Minute
)

// Config is what New needs.
type Config struct {
	// CA is its ARN. The region and the partition are in it.
	CA string
	// Template is the name of one of Templates.
	Template string
	// Days is how long certificates are valid from their issuance, by the CA's clock. At least 1, and at most 7 from a
	// CA for short-lived certificates.
	Days int
	// Access returns the SDK's configuration, once it is there.
	Access func(context.Context) (aws.Config, error)
}

// Authority is a CA of AWS Private CA.
type Authority struct {
	config   Config
	region   string
	template string // ARN

	api       *acmpca.Client         // nil: Access has not succeeded yet
	algorithm types.SigningAlgorithm // empty: the CA is to be read, again
}

var _ issue.Authority = (*Authority)(nil)

// Templates returns the names of the templates that make certificates as issue.Request wants them: with the names of
// the CSR and fixed usages. Others make certificates of CAs, or of any usage.
func Templates() []string {
	usages := []string{"EndEntityClientAuthCertificate", "EndEntityServerAuthCertificate", "EndEntityCertificate"}
	var all []string
	for _, usage := range usages {
		for _, variety := range []string{"", "_APIPassthrough", "_CSRPassthrough", "_APICSRPassthrough"} {
			all = append(all, usage+variety+"/V1")
		}
	}
	return all
}

// New returns the Authority of a Config. It asks AWS nothing.
func New(c Config) (*Authority, error) {
	parsed, err := arn.Parse(c.CA)
	if err != nil || parsed.Service != "acm-pca" || parsed.Region == "" ||
		!strings.HasPrefix(parsed.Resource, "certificate-authority/") || strings.Count(parsed.Resource, "/") != 1 {
		return nil, fmt.Errorf("%q is no ARN of a private CA, such as "+
			"arn:aws:acm-pca:us-east-2:111122223333:certificate-authority/12345678-1234-1234-1234-123456789012", c.CA)
	}
	if !slices.Contains(Templates(), c.Template) {
		return nil, fmt.Errorf("template %q cannot be used, only one of %s", c.Template, strings.Join(Templates(), ", "))
	}
	if c.Days < 1 {
		return nil, fmt.Errorf("a validity of %d days: it must be 1 day or more", c.Days)
	}
	return &Authority{
		config: c, region: parsed.Region,
		template: fmt.Sprintf("arn:%s:acm-pca:::template/%s", parsed.Partition, c.Template),
	}, nil
}

// String returns the CA's ARN.
func (a *Authority) String() string { return a.config.CA }

// Backdated implements issue.Authority.
func (a *Authority) Backdated() time.Duration { return backdated }

// Order implements issue.Authority by IssueCertificate. Private CA remembers the token for five minutes.
func (a *Authority) Order(ctx context.Context, r issue.Request) (issue.Order, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tried := "order a certificate from " + a.config.CA
	passthrough, err := a.passthrough(r.Extensions)
	if err != nil {
		return nil, &source.Error{Kind: source.Persistent, Err: fmt.Errorf("%s: %w", tried, err)}
	}
	if err := a.connect(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	if a.algorithm == "" { // which a CA keeps for life, as its key
		chain, err := a.read(ctx)
		if err != nil {
			return nil, err
		}
		if a.algorithm, err = algorithmOf(chain[0]); err != nil {
			return nil, &source.Error{Kind: source.Persistent, Err: fmt.Errorf("%s: %w", tried, err)}
		}
	}
	out, err := a.api.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: &a.config.CA,
		Csr:                     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR}),
		SigningAlgorithm:        a.algorithm,
		TemplateArn:             &a.template,
		// In days, and without ValidityNotBefore: every other form has a date in it that this node's clock would give.
		Validity:         &types.Validity{Type: types.ValidityPeriodTypeDays, Value: aws.Int64(int64(a.config.Days))},
		IdempotencyToken: &r.Token,
		ApiPassthrough:   passthrough,
	})
	if err != nil {
		return nil, a.classify(tried, err)
	}
	if aws.ToString(out.CertificateArn) == "" {
		return nil, fmt.Errorf("%s: the answer names no certificate", tried)
	}
	return &order{a: a, arn: *out.CertificateArn, placed: time.Now()}, nil
}

// connect makes the client.
func (a *Authority) connect(ctx context.Context) error {
	if a.api != nil {
		return nil
	}
	cfg, err := a.config.Access(ctx)
	if err != nil {
		return err
	}
	a.api = acmpca.NewFromConfig(cfg, func(o *acmpca.Options) {
		o.Region = a.region
		o.Retryer = awsconfig.Retryer()
	})
	return nil
}

// passthrough returns extensions as the API has them.
func (a *Authority) passthrough(extensions []pkix.Extension) (*types.ApiPassthrough, error) {
	if len(extensions) == 0 {
		return nil, nil
	}
	if name := a.config.Template; !strings.Contains(name, "_API") {
		// Private CA would leave them out, and say nothing.
		fit := strings.NewReplacer("_CSR", "_APICSR", "Certificate/", "Certificate_APIPassthrough/").Replace(name)
		return nil, source.Advise(fmt.Errorf("the template %s takes no extensions", name), "use "+fit)
	}
	var all []types.CustomExtension
	for _, e := range extensions {
		if len(e.Value) > maxExtension {
			err := fmt.Errorf("the extension %s has %d bytes, and Private CA takes %d at most",
				e.Id, len(e.Value), maxExtension)
			return nil, source.Advise(err, "order it without the extension, or with a shorter one")
		}
		all = append(all, types.CustomExtension{
			ObjectIdentifier: aws.String(e.Id.String()), Critical: &e.Critical,
			Value: aws.String(base64.StdEncoding.EncodeToString(e.Value)),
		})
	}
	return &types.ApiPassthrough{Extensions: &types.Extensions{CustomExtensions: all}}, nil
}

// read returns the CA's certificate with those that lead to its root. Before anything is ordered, that shows whether
// its certificates can be used.
func (a *Authority) read(ctx context.Context) ([]*x509.Certificate, error) {
	tried := "read the certificate of " + a.config.CA
	out, err := a.api.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{
		CertificateAuthorityArn: &a.config.CA,
	})
	if err != nil {
		return nil, a.classify(tried, err)
	}
	// Each is text on its own, and need not end in a newline. A root has no chain.
	chain, err := parse(aws.ToString(out.Certificate) + "\n" + aws.ToString(out.CertificateChain))
	if err == nil {
		err = endsInRoot(chain)
	}
	if err != nil {
		return nil, &source.Error{Kind: source.Persistent, Err: fmt.Errorf("%s: %w", tried, err)}
	}
	return chain, nil
}

// algorithmOf returns that with which a CA signs. It has to be of the family of the CA's key.
func algorithmOf(ca *x509.Certificate) (types.SigningAlgorithm, error) {
	switch key := ca.PublicKey.(type) {
	case *rsa.PublicKey:
		return types.SigningAlgorithmSha256withrsa, nil
	case *ecdsa.PublicKey:
		switch bits := key.Curve.Params().BitSize; {
		case bits <= 256:
			return types.SigningAlgorithmSha256withecdsa, nil
		case bits <= 384:
			return types.SigningAlgorithmSha384withecdsa, nil
		default:
			return types.SigningAlgorithmSha512withecdsa, nil
		}
	}
	return "", source.Advise(errors.New("its key is neither RSA nor ECDSA"), "use a CA with a key of one of the two")
}

// order is a certificate that Private CA has been asked for.
type order struct {
	a      *Authority
	arn    string // of the certificate
	placed time.Time
}

// Collect implements issue.Order by GetCertificate.
func (o *order) Collect(ctx context.Context) (issue.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tried := "collect certificate " + o.arn
	out, err := o.a.api.GetCertificate(ctx, &acmpca.GetCertificateInput{
		CertificateAuthorityArn: &o.a.config.CA, CertificateArn: &o.arn,
	})
	if err != nil {
		return issue.Certificate{}, o.classify(tried, err)
	}
	var chain []*x509.Certificate
	certificate, err := parse(aws.ToString(out.Certificate))
	switch {
	case err != nil:
	case len(certificate) != 1:
		err = fmt.Errorf("it is %d certificates, want 1", len(certificate))
	case aws.ToString(out.CertificateChain) == "": // read each time, since the CA's certificate may be renewed
		if chain, err = o.a.read(ctx); err != nil {
			return issue.Certificate{}, err
		}
	default:
		if chain, err = parse(*out.CertificateChain); err == nil {
			err = endsInRoot(chain)
		}
	}
	if err != nil {
		o.a.algorithm = "" // the CA is to show first that the next one can be used
		return issue.Certificate{}, &source.Error{
			Kind: source.Persistent, Err: fmt.Errorf("%s: %w: %w", tried, issue.ErrUnusable, err),
		}
	}
	root := len(chain) - 1
	return issue.Certificate{Chain: append(certificate, chain[:root]...), Anchors: chain[root:]}, nil
}

// parse reads certificates as PEM.
func parse(text string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(all) == 0 || len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("the answer is no certificates in PEM")
			}
			return all, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the answer has %q where a certificate is expected", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
}

// endsInRoot returns an error if the last certificate of a chain is not self-signed: readers of ca.crt such as OpenSSL
// trust nothing else.
func endsInRoot(chain []*x509.Certificate) error {
	last := chain[len(chain)-1]
	if bytes.Equal(last.RawIssuer, last.RawSubject) && last.CheckSignatureFrom(last) == nil {
		return nil
	}
	err := fmt.Errorf("its chain ends in %q, which was issued by %q, and not in a root", last.Subject, last.Issuer)
	return source.Advise(err, "import the CA's certificate again with the whole chain")
}
