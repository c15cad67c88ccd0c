package simaws_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"sevagent/internal/sim/simaws"
)

// TestSDKAgrees: the real SDK gets its region and credentials from the simulated metadata service, and talks with
// them to the simulated Secrets Manager.
func TestSDKAgrees(t *testing.T) {
	instance := simaws.DefaultInstance()
	metadata := &simaws.IMDS{Instance: instance}
	secrets := &simaws.Secrets{Region: instance.Region, AccountID: instance.AccountID}
	ms, ss := httptest.NewServer(metadata), httptest.NewServer(secrets)
	defer ms.Close()
	defer ss.Close()
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": ms.URL, "AWS_ENDPOINT_URL_SECRETS_MANAGER": ss.URL, "AWS_REGION": instance.Region,
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary }).GetInstanceIdentityDocument(ctx, nil)
	if err != nil || doc.InstanceID != instance.ID || doc.Region != instance.Region {
		t.Fatalf("identity document: %+v, %v", doc, err)
	}
	api := secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) { o.RetryMaxAttempts = 1 })
	first := secrets.Put("prod/mtls", "one")
	second := secrets.Put("prod/mtls", "two")
	got, err := api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String(secrets.ARN("prod/mtls")), VersionStage: aws.String("AWSCURRENT")})
	if err != nil || *got.SecretString != "two" || *got.VersionId != second {
		t.Fatalf("current value: %v, %v", got, err)
	}
	described, err := api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String("prod/mtls")})
	if err != nil || described.VersionIdsToStages[second][0] != "AWSCURRENT" || described.VersionIdsToStages[first][0] != "AWSPREVIOUS" {
		t.Fatalf("described: %v, %v", described, err)
	}
	code := func(err error) string {
		if api, ok := errors.AsType[smithy.APIError](err); ok {
			return api.ErrorCode()
		}
		return ""
	}
	_, err = api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String("prod/mtls"), VersionId: &first, VersionStage: aws.String("AWSCURRENT")})
	if code(err) != "ResourceNotFoundException" {
		t.Errorf("a version without the label: %v", err)
	}
	_, err = api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String("absent")})
	if code(err) != "ResourceNotFoundException" {
		t.Errorf("an absent secret: %v", err)
	}
	secrets.SetFault("ThrottlingException")
	_, err = api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String("prod/mtls")})
	if code(err) != "ThrottlingException" {
		t.Errorf("throttled: %v", err)
	}
	secrets.SetFault("")
	secrets.Delete("prod/mtls")
	_, err = api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String("prod/mtls")})
	if code(err) != "InvalidRequestException" {
		t.Errorf("a deleted secret: %v", err)
	}
	if n := metadata.V1Requests(); n != 0 {
		t.Errorf("%d requests to the metadata service came without a token", n)
	}
}
