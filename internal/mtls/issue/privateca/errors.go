package privateca

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"sevagent/internal/awsconfig"
	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/source"
)

// persistent has the error codes that waiting does not resolve, with what does.
var persistent = map[string]string{
	"AccessDeniedException": "allow acm-pca:IssueCertificate, where acm-pca:TemplateArn is {template}, " +
		"acm-pca:GetCertificate and acm-pca:GetCertificateAuthorityCertificate on the CA to the node's role; " +
		"if the CA is another account's, it has to be shared for that template, too",
	"ResourceNotFoundException": "check the CA's ARN, and that the CA was not deleted",
	"InvalidArnException":       "check the CA's ARN",
	"InvalidStateException": "the CA has to be ACTIVE, and 'aws acm-pca describe-certificate-authority' shows what it " +
		"is: install its certificate if PENDING_CERTIFICATE, enable it if DISABLED, renew its certificate if EXPIRED, " +
		"restore it if DELETED",
	"LimitExceededException": "have that quota raised, or use another CA",
	"MalformedCSRException":  "check the names that the certificate is to have",
	"InvalidArgsException":   "check the template and the validity",
	"ValidationException": "check that the certificate would not outlive the CA's, nor last more than 7 days if the " +
		"CA is for short-lived ones",
	"UnrecognizedClientException": "check the node's credentials",
	"InvalidSignatureException":   "check the node's clock and its credentials",
}

// classify makes an error of the API a source.Error with advice. Throttling has HTTP 400 here, so codes count and not
// statuses. All codes that it does not know are transient: failures inside the service, credentials that have expired.
func (a *Authority) classify(tried string, err error) error {
	code, date, err := awsconfig.Explain(err)
	kind := source.Transient
	advice, stands := persistent[code]
	if stands {
		kind = source.Persistent
		a.algorithm = "" // the CA may have changed, so that it is read again
	}
	return &source.Error{
		Kind: kind, Date: date,
		Err: fmt.Errorf("%s: %w", tried, err), Advice: strings.ReplaceAll(advice, "{template}", a.template),
	}
}

// classify is that of the Authority, but for what an order can end in. Its certificate is issued after the order was
// accepted, within seconds.
func (o *order) classify(tried string, err error) error {
	code, date, plain := awsconfig.Explain(err)
	_, cut := errors.AsType[*smithy.DeserializationError](err)
	switch {
	case cut: // the SDK may close a connection from which an answer comes slowly; the certificate stays there
		return issue.ErrPending
	case code == "RequestInProgressException", code == "ResourceNotFoundException" && time.Since(o.placed) < appears:
		return issue.ErrPending
	case code == "RequestFailedException", code == "ResourceNotFoundException":
		return &source.Error{
			Kind: source.Transient, Date: date, Err: fmt.Errorf("%s: %w: %w", tried, issue.ErrLost, plain),
		}
	}
	return o.a.classify(tried, err)
}
