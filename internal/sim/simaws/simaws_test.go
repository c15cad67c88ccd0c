package simaws_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// node serves both services, and returns a configuration of the real SDK for them.
func node(t *testing.T) (metadata *simaws.IMDS, secrets *simaws.Secrets, cfg aws.Config) {
	t.Helper()
	instance := simaws.DefaultInstance()
	metadata = &simaws.IMDS{Instance: instance}
	secrets = &simaws.Secrets{Region: instance.Region, AccountID: instance.AccountID}
	ms, ss := httptest.NewServer(metadata), httptest.NewServer(secrets)
	t.Cleanup(ms.Close)
	t.Cleanup(ss.Close)
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": ms.URL, "AWS_ENDPOINT_URL_SECRETS_MANAGER": ss.URL,
		"AWS_REGION":        instance.Region,
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_CA_BUNDLE": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		t.Setenv(name, value)
	}
	return metadata, secrets, must.Get(config.LoadDefaultConfig(t.Context()))(t, "load the SDK's configuration")
}

func client(cfg aws.Config) *secretsmanager.Client {
	return secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) { o.RetryMaxAttempts = 1 })
}

func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

var describeInput = &secretsmanager.DescribeSecretInput{SecretId: aws.String("prod/mtls")}

// TestSDKAgrees: the real SDK gets its region and credentials from the simulated metadata service, and uses them with
// the simulated Secrets Manager.
func TestSDKAgrees(t *testing.T) {
	metadata, secrets, cfg := node(t)
	ctx, api := t.Context(), client(cfg)
	service := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	doc, err := service.GetInstanceIdentityDocument(ctx, nil)
	if err != nil || doc.InstanceID != metadata.Instance.ID || doc.Region != metadata.Instance.Region {
		t.Fatalf("identity document: %+v, %v", doc, err)
	}
	ids := []string{secrets.Put("prod/mtls", "zero"), secrets.Put("prod/mtls", "one"), secrets.Put("prod/mtls", "two")}
	described, err := api.DescribeSecret(ctx, describeInput)
	if err != nil || len(described.VersionIdsToStages) != 2 ||
		described.VersionIdsToStages[ids[2]][0] != "AWSCURRENT" || described.VersionIdsToStages[ids[1]][0] != "AWSPREVIOUS" {
		t.Fatalf("described: %+v, %v", described, err)
	}
	arn := *described.ARN
	if !strings.HasPrefix(arn, "arn:aws:secretsmanager:us-east-2:111122223333:secret:prod/mtls-") {
		t.Errorf("ARN %s", arn)
	}
	for _, c := range []struct{ name, secret, id, label, want string }{
		{"without a version", "prod/mtls", "", "", "two"},
		{"by ARN", arn, "", "AWSCURRENT", "two"},
		{"by ARN without its end", strings.TrimSuffix(arn, "-AbCdEf"), "", "AWSCURRENT", "two"},
		{"by label", "prod/mtls", "", "AWSPREVIOUS", "one"},
		{"by ID", "prod/mtls", ids[0], "", "zero"},
		{"by ID and label", "prod/mtls", ids[2], "AWSCURRENT", "two"},
		{"whose label has moved", "prod/mtls", ids[1], "AWSCURRENT", ""},
		{"absent", "absent", "", "", ""},
	} {
		in := &secretsmanager.GetSecretValueInput{SecretId: &c.secret}
		if c.id != "" {
			in.VersionId = &c.id
		}
		if c.label != "" {
			in.VersionStage = &c.label
		}
		got, err := api.GetSecretValue(ctx, in)
		if c.want == "" && code(err) != "ResourceNotFoundException" || c.want != "" && (err != nil || *got.SecretString != c.want) {
			t.Errorf("a version %s: %+v, %v, want %q", c.name, got, err, c.want)
		}
	}

	// Codes come with 400; a number is the status alone.
	for fault, want := range map[string]int{"ThrottlingException": 400, "AccessDeniedException": 400, "503": 503} {
		secrets.SetFault(fault)
		_, err := api.DescribeSecret(ctx, describeInput)
		response, ok := errors.AsType[*awshttp.ResponseError](err)
		if !ok || response.HTTPStatusCode() != want || want == 400 && code(err) != fault {
			t.Errorf("fault %s: %v, want HTTP status %d", fault, err, want)
		}
	}
	secrets.SetFault("")
	if n := metadata.V1Requests(); n != 0 {
		t.Errorf("%d requests to the metadata service came without a token", n)
	}

	stranger := cfg.Copy()
	stranger.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIASTRANGER", SecretAccessKey: "x"}, nil
	})
	if _, err := client(stranger).DescribeSecret(ctx, describeInput); code(err) != "UnrecognizedClientException" {
		t.Errorf("a stranger's credentials: %v", err)
	}
}

func TestMetadata(t *testing.T) {
	metadata, _, _ := node(t)
	server := httptest.NewServer(metadata)
	defer server.Close()
	do := func(method, path string, headers ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		must.Do(t, err, "make a request for %s %s", method, path)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp := must.Get(http.DefaultClient.Do(req))(t, "request %s %s", method, path)
		defer resp.Body.Close()
		body := must.Get(io.ReadAll(resp.Body))(t, "read the answer to %s %s", method, path)
		return resp.StatusCode, string(body)
	}
	const (
		tokenPath   = "/latest/api/token"
		tokenHeader = "X-aws-ec2-metadata-token"
		ttl         = tokenHeader + "-ttl-seconds"
	)
	for _, seconds := range []string{"", "0", "21601", "x"} {
		if status, _ := do(http.MethodPut, tokenPath, ttl, seconds); status != 400 {
			t.Errorf("a token for %q seconds: %d", seconds, status)
		}
	}
	_, token := do(http.MethodPut, tokenPath, ttl, "60")
	for path, want := range map[string]string{
		"instance-id": metadata.Instance.ID, "instance-type": "m6a.large", "placement/region": "us-east-2", "placement/availability-zone": "us-east-2a",
		"mac": metadata.Instance.MAC, "local-ipv4": "10.0.0.10", "ami-id": metadata.Instance.ImageID, "iam/security-credentials/": "node",
	} {
		if status, got := do(http.MethodGet, "/latest/meta-data/"+path, tokenHeader, token); status != 200 || got != want {
			t.Errorf("%s: %d %q, want %q", path, status, got, want)
		}
	}
	if status, _ := do(http.MethodGet, "/latest/meta-data/absent", tokenHeader, token); status != 404 {
		t.Errorf("an absent path: %d", status)
	}
	for _, headers := range [][]string{nil, {tokenHeader, "forged"}} {
		if status, _ := do(http.MethodGet, "/latest/meta-data/instance-id", headers...); status != 401 {
			t.Errorf("with %v: %d, want 401", headers, status)
		}
	}
	if n := metadata.V1Requests(); n != 1 {
		t.Errorf("%d requests without a token, want 1", n)
	}

	metadata.SetFault(503)
	if status, _ := do(http.MethodPut, tokenPath, ttl, "60"); status != 503 {
		t.Errorf("a service that is down: %d", status)
	}
}
