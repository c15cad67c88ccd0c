package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"sevagent/internal/mtls"
)

// Staging labels of Secrets Manager.
const (
	labelCurrent = "AWSCURRENT"
	labelPending = "AWSPENDING"
)

// callTimeout bounds one call to AWS with all its retries; the Rotator has a backoff of its own above that.
const callTimeout = 20 * time.Second

// loadAWS reads the SDK's usual configuration. Without a region in it, the instance metadata service is asked, by
// its second version only. That may be refused or absent; then region is empty.
func loadAWS(ctx context.Context) (aws.Config, error) {
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithEC2IMDSClientEnableState(imds.ClientDefaultEnableState))
	if err != nil {
		return aws.Config{}, fmt.Errorf("load the AWS configuration: %w", err)
	}
	if cfg.Region != "" {
		return cfg, nil
	}
	metadata := imds.New(imds.Options{}, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := metadata.GetRegion(ctx, nil)
	if err != nil {
		return cfg, fmt.Errorf("ask the instance metadata service for the region: %w; set AWS_REGION where there is none", err)
	}
	cfg.Region = answer.Region
	return cfg, nil
}

// secretSource is one secret of Secrets Manager, by ARN or name.
type secretSource struct {
	api *secretsmanager.Client
	id  string
}

var _ mtls.Source = secretSource{}

// Describe implements mtls.Source by DescribeSecret, which does not decrypt and so costs no KMS request.
func (s secretSource) Describe(ctx context.Context) (mtls.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := s.api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &s.id})
	if err != nil {
		return mtls.Version{}, s.classify("describe", err)
	}
	if out.DeletedDate != nil {
		return mtls.Version{}, &mtls.SourceError{Kind: mtls.Persistent, Err: fmt.Errorf("describe secret %s: it is scheduled for deletion", s.id)}
	}
	var v mtls.Version
	for id, labels := range out.VersionIdsToStages {
		if slices.Contains(labels, labelCurrent) {
			v.Current = id
		}
		if slices.Contains(labels, labelPending) {
			v.Pending = id
		}
	}
	if v.Pending == v.Current {
		v.Pending = ""
	}
	v.NextRotation = aws.ToTime(out.NextRotationDate)
	return v, nil
}

// Fetch implements mtls.Source. Version ID and label are both given, so that the service refuses a version that
// has lost its label since it was described.
func (s secretSource) Fetch(ctx context.Context, versionID string) (mtls.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := s.api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{
		SecretId: &s.id, VersionId: &versionID, VersionStage: aws.String(labelCurrent),
	})
	if err != nil {
		// The secret was there a moment ago, so it is the version that is not found under the label.
		if code := errorCode(err); code == "ResourceNotFoundException" {
			return nil, &mtls.SourceError{Kind: mtls.LabelMoved, Err: fmt.Errorf("get secret %s: version %s is not %s any more", s.id, versionID, labelCurrent)}
		}
		return nil, s.classify("get", err)
	}
	if out.SecretString == nil {
		return mtls.NewSecret(out.SecretBinary), nil
	}
	return mtls.NewSecret([]byte(*out.SecretString)), nil
}

// persistent are the error codes that do not go away by waiting. Everything else may: throttling is HTTP 400 at
// Secrets Manager, so codes tell, not statuses.
var persistent = []string{
	"AccessDeniedException", "ResourceNotFoundException", "InvalidRequestException", "InvalidParameterException",
	"ValidationException", "DecryptionFailure", "UnrecognizedClientException", "InvalidSignatureException",
}

func (s secretSource) classify(verb string, err error) error {
	code := errorCode(err)
	kind := mtls.Transient
	if slices.Contains(persistent, code) {
		kind = mtls.Persistent
	}
	advice := map[string]string{
		"AccessDeniedException":       "; allow secretsmanager:DescribeSecret and GetSecretValue, and kms:Decrypt on the secret's key, to the node's role",
		"ResourceNotFoundException":   "; check the name and the region",
		"DecryptionFailure":           "; allow kms:Decrypt on the secret's key to the node's role",
		"UnrecognizedClientException": "; check the node's credentials",
	}[code]
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		// The chain's own text repeats request IDs and retry counts; code and message are what is of use.
		return &mtls.SourceError{Kind: kind, Err: fmt.Errorf("%s secret %s: %s: %s%s", verb, s.id, code, api.ErrorMessage(), advice)}
	}
	return &mtls.SourceError{Kind: kind, Err: fmt.Errorf("%s secret %s: %w", verb, s.id, err)}
}

func errorCode(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}
