package simaws_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
		found := err == nil && *got.SecretString == c.want
		if c.want == "" && code(err) != "ResourceNotFoundException" || c.want != "" && !found {
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

const (
	tokenPath   = "/latest/api/token"
	tokenHeader = "X-aws-ec2-metadata-token"
	ttlHeader   = tokenHeader + "-ttl-seconds"
)

// answer has the handler answer a request, and returns status 0 if it does not.
func answer(ctx context.Context, h http.Handler, method, path string, headers ...string) (status int, body string) {
	req := httptest.NewRequestWithContext(ctx, method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	defer func() {
		if r := recover(); r != nil && r != http.ErrAbortHandler {
			panic(r)
		}
	}()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

// Version 2 of the service alone: no item without a token, and no token by GET, for long or through a proxy.
func TestMetadataToken(t *testing.T) {
	metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	_, token := answer(t.Context(), metadata, http.MethodPut, tokenPath, ttlHeader, "60")
	const item = "/latest/meta-data/instance-id"
	for _, c := range []struct {
		name, method, path string
		headers            []string
		want               int
	}{
		{"token", http.MethodPut, tokenPath, []string{ttlHeader, "21600"}, 200},
		{"token without a TTL", http.MethodPut, tokenPath, nil, 400},
		{"token for no time", http.MethodPut, tokenPath, []string{ttlHeader, "0"}, 400},
		{"token for too long", http.MethodPut, tokenPath, []string{ttlHeader, "21601"}, 400},
		{"token for x seconds", http.MethodPut, tokenPath, []string{ttlHeader, "x"}, 400},
		{"token by GET", http.MethodGet, tokenPath, []string{ttlHeader, "60"}, 405},
		{"token through a proxy", http.MethodPut, tokenPath, []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		{"item", http.MethodGet, item, []string{tokenHeader, token}, 200},
		{"item by POST", http.MethodPost, item, []string{tokenHeader, token}, 405},
		{"item without a token", http.MethodGet, item, nil, 401},
		{"item with another token", http.MethodGet, item, []string{tokenHeader, "forged"}, 401},
		{"absent item without a token", http.MethodGet, item + "x", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, _ := answer(t.Context(), metadata, c.method, c.path, c.headers...); status != c.want {
				t.Errorf("status %d, want %d", status, c.want)
			}
		})
	}
	if n := metadata.V1Requests(); n != 2 {
		t.Errorf("%d requests without a token, want 2", n)
	}
}

// What the ECS agent and bootstrap ask for, and what only some instances have.
func TestMetadataItems(t *testing.T) {
	metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	_, token := answer(t.Context(), metadata, http.MethodPut, tokenPath, ttlHeader, "60")
	expect := func(path, want string) {
		t.Helper()
		wantStatus := 200
		if want == "" {
			wantStatus = 404
		}
		status, got := answer(t.Context(), metadata, http.MethodGet, "/latest/"+path, tokenHeader, token)
		if status != wantStatus || status == 200 && got != want {
			t.Errorf("%s: %d %q, want %d %q", path, status, got, wantStatus, want)
		}
	}
	const nic = "meta-data/network/interfaces/macs/"
	i := metadata.Instance
	for path, want := range map[string]string{
		"meta-data/instance-id": i.ID, "meta-data/instance-type": "m6a.large", "meta-data/ami-id": i.ImageID,
		"meta-data/mac": i.MAC, "meta-data/local-ipv4": "10.0.0.10",
		"meta-data/placement/region":               "us-east-2",
		"meta-data/placement/availability-zone":    "us-east-2a",
		"meta-data/placement/availability-zone-id": "use2-az1",
		"meta-data/placement/":                     "availability-zone\navailability-zone-id\nregion",
		"meta-data/iam/security-credentials/":      "node",
		nic:                                        i.MAC + "/",
		nic + i.MAC + "/vpc-id":                    i.VPC,
		nic + i.MAC + "/subnet-id":                 i.Subnet,
		nic + "02:00:00:00:00:99/vpc-id":           "",
		"meta-data/absent":                         "",
		"meta-data/instance":                       "",
		"meta-data/public-ipv4":                    "",
	} {
		expect(path, want)
	}
	for path, value := range map[string]string{
		"user-data": "#!/bin/sh\n",
		"meta-data/autoscaling/target-lifecycle-state": "Warmed:Stopped",
		"meta-data/outpost-arn":                        metadata.Instance.ARN("outposts", "outpost/op-0123456789abcdef0"),
		"meta-data/spot/instance-action":               `{"action": "terminate", "time": "2026-01-01T00:02:00Z"}`,
		"meta-data/tags/instance/Name":                 "node",
	} {
		expect(path, "")
		metadata.Set(path, value)
		expect(path, value)
	}
	expect("meta-data/tags/instance", "Name")
	metadata.Set("meta-data/autoscaling/target-lifecycle-state", "InService")
	expect("meta-data/autoscaling/target-lifecycle-state", "InService")
	metadata.Unset("meta-data/autoscaling/target-lifecycle-state")
	expect("meta-data/autoscaling/target-lifecycle-state", "")
}

// A service that is off, late or silent, as a whole or below a path.
func TestMetadataFaults(t *testing.T) { synctest.Test(t, testMetadataFaults) }

func testMetadataFaults(t *testing.T) {
	metadata := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	const item, role = "/latest/meta-data/instance-id", "/latest/meta-data/iam/security-credentials/"
	_, token := answer(t.Context(), metadata, http.MethodPut, tokenPath, ttlHeader, "21600")
	get := func(path string) int {
		status, _ := answer(t.Context(), metadata, http.MethodGet, path, tokenHeader, token)
		return status
	}
	expect := func(when string, wantItem, wantRole int) {
		t.Helper()
		if gotItem, gotRole := get(item), get(role); gotItem != wantItem || gotRole != wantRole {
			t.Errorf("%s: %d for an item and %d for the role, want %d and %d", when, gotItem, gotRole, wantItem, wantRole)
		}
	}
	expect("without a fault", 200, 200)
	metadata.SetFault(403)
	expect("switched off", 403, 403)
	if status, _ := answer(t.Context(), metadata, http.MethodPut, tokenPath, ttlHeader, "60"); status != 403 {
		t.Errorf("switched off: %d for a token", status)
	}
	metadata.SetFault(0)
	expect("switched on", 200, 200)
	metadata.FailFor(12*time.Second, 404, "meta-data/iam/")
	expect("while credentials are late", 200, 404)
	time.Sleep(12 * time.Second)
	expect("once they are there", 200, 200)
	metadata.FailFor(15*time.Second, 503, "")
	time.Sleep(15*time.Second - time.Nanosecond)
	expect("for a while", 503, 503)
	time.Sleep(time.Nanosecond)
	expect("after it", 200, 200)

	metadata.FailFor(time.Minute, simaws.Hang, "")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if status, _ := answer(ctx, metadata, http.MethodGet, item, tokenHeader, token); status != 0 || ctx.Err() == nil {
		t.Errorf("a silent service answers %d before its client gives up", status)
	}
}
