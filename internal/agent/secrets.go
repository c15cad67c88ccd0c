package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"sevagent/internal/awsconfig"
	"sevagent/internal/evidence"
	"sevagent/internal/mtls/source"
)

// callTimeout bounds one call to AWS with all its retries; the Rotator has its own backoff above that.
const callTimeout = 10 * time.Second

// cloud is the access to AWS. It is set up when first needed, and retried until that succeeds: the metadata service may
// come up later than the agent.
type cloud struct {
	mu      sync.Mutex
	region  string                 // empty: not found yet
	secrets *secretsmanager.Client // nil: not found yet

	identity atomic.Pointer[evidence.Instance] // nil: not known yet
}

// find reads the SDK's usual configuration and returns the region and the client of Secrets Manager. Without a region
// in the configuration, it asks the instance metadata service, version 2 only.
func (c *cloud) find(ctx context.Context) (region string, secrets *secretsmanager.Client, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.region != "" {
		return c.region, c.secrets, nil
	}
	cfg, err := awsconfig.Load()
	if err != nil {
		return "", nil, err
	}
	if cfg.Region == "" {
		if cfg.Region, err = c.askMetadata(ctx, cfg); err != nil {
			err = fmt.Errorf("ask the instance metadata service for the region: %w", err)
			return "", nil, source.Advise(err, "set AWS_REGION where there is none")
		}
	}
	c.region = cfg.Region
	c.secrets = secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) { o.Retryer = awsconfig.Retryer() })
	return c.region, c.secrets, nil
}

// askMetadata gets the instance identity document, keeps who we are and returns the region.
func (c *cloud) askMetadata(ctx context.Context, cfg aws.Config) (region string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := awsconfig.Metadata(cfg).GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return "", err
	}
	if answer.Region == "" {
		return "", errors.New("the instance identity document has no region")
	}
	i := evidence.Instance{ID: answer.InstanceID, Region: answer.Region, AccountID: answer.AccountID}
	if i.Check() == nil { // what evidence cannot name is unknown
		c.identity.Store(&i)
	}
	return answer.Region, nil
}

// instance returns which EC2 instance this is, as far as is known: the zero value until the metadata service has
// answered, and for ever where there is none.
func (c *cloud) instance() evidence.Instance {
	if i := c.identity.Load(); i != nil {
		return *i
	}
	return evidence.Instance{}
}

// identify asks the metadata service which instance this is, until it answers; find has done so where the region came
// from there. It gives up after some two hours: then there is no such service.
func (c *cloud) identify(ctx context.Context, log *slog.Logger) {
	for wait := time.Second; wait < 2*time.Hour && c.identity.Load() == nil; wait *= 2 {
		cfg, err := awsconfig.Load()
		if err == nil {
			_, err = c.askMetadata(ctx, cfg)
		}
		if err != nil && wait == time.Second {
			log.Info("evidence does not name the instance yet: the metadata service does not answer", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// secretSource is one secret of Secrets Manager, by ARN or name.
type secretSource struct {
	cloud *cloud
	id    string
}

var _ source.Source = secretSource{}

// Describe implements source.Source by DescribeSecret, which does not decrypt and so costs no KMS request.
func (s secretSource) Describe(ctx context.Context) (source.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, api, err := s.cloud.find(ctx)
	if err != nil {
		return source.Version{}, fmt.Errorf("describe secret %s: %w", s.id, err)
	}
	out, err := api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &s.id})
	if err != nil {
		return source.Version{}, s.classify("describe", err)
	}
	date, _ := awsmiddleware.GetServerTime(out.ResultMetadata)
	if out.DeletedDate != nil {
		return source.Version{}, &source.Error{
			Kind: source.Persistent, Missing: true, Date: date,
			Err:    fmt.Errorf("describe secret %s: it is scheduled for deletion", s.id),
			Advice: "aws secretsmanager restore-secret --secret-id " + s.id,
		}
	}
	v := source.Version{Date: date}
	for id, labels := range out.VersionIdsToStages {
		if slices.Contains(labels, string(source.Current)) {
			v.Current = id
		}
		if slices.Contains(labels, string(source.Pending)) {
			v.Pending = id
		}
	}
	if v.Pending == v.Current {
		v.Pending = ""
	}
	v.NextRotation = aws.ToTime(out.NextRotationDate)
	return v, nil
}

// Fetch implements source.Source. Version ID and label are both given, so that the service refuses a version that
// has lost its label since it was described.
func (s secretSource) Fetch(ctx context.Context, versionID string, label source.Label) (source.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, api, err := s.cloud.find(ctx)
	if err != nil {
		return nil, fmt.Errorf("get secret %s: %w", s.id, err)
	}
	out, err := api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{
		SecretId: &s.id, VersionId: &versionID, VersionStage: aws.String(string(label)),
	})
	if err != nil {
		// The secret was there a moment ago, so it is the version that is not found under the label.
		if code, _, _ := awsconfig.Explain(err); code == "ResourceNotFoundException" {
			err := fmt.Errorf("get secret %s: version %s is no longer %s", s.id, versionID, label)
			return nil, &source.Error{Kind: source.Moved, Err: err}
		}
		return nil, s.classify("get", err)
	}
	content := out.SecretBinary
	if out.SecretString != nil {
		content = []byte(*out.SecretString)
	}
	if len(content) > maxSecretBytes {
		err := fmt.Errorf("get secret %s: larger than %d bytes", s.id, maxSecretBytes)
		return nil, &source.Error{Kind: source.Persistent, Err: err}
	}
	return source.NewSecret(content), nil
}

// maxSecretBytes is the limit of Secrets Manager (API reference, PutSecretValue).
const maxSecretBytes = 64 << 10

// persistent has the error codes that waiting does not resolve. It may resolve all others: throttling is HTTP 400 at
// Secrets Manager, so codes count, not statuses.
var persistent = []string{
	"AccessDeniedException", "ResourceNotFoundException", "InvalidRequestException", "InvalidParameterException",
	"ValidationException", "DecryptionFailure", "UnrecognizedClientException", "InvalidSignatureException",
}

func (s secretSource) classify(verb string, err error) error {
	code, date, err := awsconfig.Explain(err)
	kind := source.Transient
	if slices.Contains(persistent, code) {
		kind = source.Persistent
	}
	advice := map[string]string{
		"AccessDeniedException": "allow secretsmanager:DescribeSecret and GetSecretValue, " +
			"and kms:Decrypt on the secret's key, to the node's role",
		"ResourceNotFoundException":   "check the name and the region",
		"DecryptionFailure":           "allow kms:Decrypt on the secret's key to the node's role",
		"UnrecognizedClientException": "check the node's credentials",
	}[code]
	return &source.Error{
		Kind: kind, Missing: code == "ResourceNotFoundException", Date: date,
		Err: fmt.Errorf("%s secret %s: %w", verb, s.id, err), Advice: advice,
	}
}
