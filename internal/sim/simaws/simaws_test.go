package simaws_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
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
	return metadata, secrets, load(t)
}

func load(t *testing.T) aws.Config {
	t.Helper()
	return must.Get(config.LoadDefaultConfig(t.Context()))(t, "load the SDK's configuration")
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

// Inputs for the one secret of these tests.
var (
	secretID      = aws.String("prod/mtls")
	current       = aws.String("AWSCURRENT")
	describeInput = &secretsmanager.DescribeSecretInput{SecretId: secretID}
	getInput      = &secretsmanager.GetSecretValueInput{SecretId: secretID}
)

// TestSDKAgrees: the real SDK gets its region and credentials from the simulated metadata service, and uses them with
// the simulated Secrets Manager.
func TestSDKAgrees(t *testing.T) {
	metadata, secrets, cfg := node(t)
	ctx := t.Context()
	service := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	doc, err := service.GetInstanceIdentityDocument(ctx, nil)
	if err != nil || doc.InstanceID != metadata.Instance.ID || doc.Region != metadata.Instance.Region {
		t.Fatalf("identity document: %+v, %v", doc, err)
	}
	api := client(cfg)
	first := secrets.Put("prod/mtls", "one")
	second := secrets.Put("prod/mtls", "two")
	got, err := api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{
		SecretId: aws.String(secrets.ARN("prod/mtls")), VersionStage: current,
	})
	if err != nil || *got.SecretString != "two" || *got.VersionId != second {
		t.Fatalf("current value: %v, %v", got, err)
	}
	described, err := api.DescribeSecret(ctx, describeInput)
	if err != nil || described.VersionIdsToStages[second][0] != "AWSCURRENT" ||
		described.VersionIdsToStages[first][0] != "AWSPREVIOUS" {
		t.Fatalf("described: %v, %v", described, err)
	}
	_, err = api.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{
		SecretId: secretID, VersionId: &first, VersionStage: current,
	})
	if code(err) != "ResourceNotFoundException" {
		t.Errorf("a version without the label: %v", err)
	}
	_, err = api.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String("absent")})
	if code(err) != "ResourceNotFoundException" {
		t.Errorf("an absent secret: %v", err)
	}
	secrets.SetFault("ThrottlingException")
	_, err = api.DescribeSecret(ctx, describeInput)
	if code(err) != "ThrottlingException" {
		t.Errorf("throttled: %v", err)
	}
	secrets.SetFault("")
	secrets.Delete("prod/mtls")
	_, err = api.GetSecretValue(ctx, getInput)
	if code(err) != "InvalidRequestException" {
		t.Errorf("a deleted secret: %v", err)
	}
	if n := metadata.V1Requests(); n != 0 {
		t.Errorf("%d requests to the metadata service came without a token", n)
	}
}

// TestRotation does what a rotation function does: pending, then current.
func TestRotation(t *testing.T) {
	_, secrets, cfg := node(t)
	ctx, api := t.Context(), client(cfg)
	create := &secretsmanager.CreateSecretInput{Name: secretID, SecretString: aws.String("one")}
	created, err := api.CreateSecret(ctx, create)
	if err != nil || *created.ARN != secrets.ARN("prod/mtls") {
		t.Fatalf("create: %v, %v", created, err)
	}
	if _, err := api.CreateSecret(ctx, create); code(err) != "ResourceExistsException" {
		t.Errorf("create again: %v", err)
	}
	one := *created.VersionId
	two := "22222222-2222-2222-2222-222222222222"
	pending := &secretsmanager.PutSecretValueInput{
		SecretId: secretID, ClientRequestToken: &two, SecretBinary: []byte("two"), VersionStages: []string{"AWSPENDING"},
	}
	for range 2 { // can be repeated
		if put, err := api.PutSecretValue(ctx, pending); err != nil || *put.VersionId != two {
			t.Fatalf("put: %v, %v", put, err)
		}
	}
	pending.SecretBinary = []byte("three")
	if _, err := api.PutSecretValue(ctx, pending); code(err) != "ResourceExistsException" {
		t.Errorf("put another value with the same token: %v", err)
	}
	labels := func() string {
		t.Helper()
		out := must.Get(api.DescribeSecret(ctx, describeInput))(t, "describe the secret")
		return fmt.Sprint(out.VersionIdsToStages[one], out.VersionIdsToStages[two])
	}
	if got, want := labels(), "[AWSCURRENT] [AWSPENDING]"; got != want {
		t.Errorf("labels = %s, want %s", got, want)
	}
	move := func(label, from, to string) error {
		in := &secretsmanager.UpdateSecretVersionStageInput{SecretId: secretID, VersionStage: &label}
		if from != "" {
			in.RemoveFromVersionId = &from
		}
		if to != "" {
			in.MoveToVersionId = &to
		}
		_, err := api.UpdateSecretVersionStage(ctx, in)
		return err
	}
	if err := move("AWSCURRENT", "", two); code(err) != "InvalidParameterException" {
		t.Errorf("move a label without its version: %v", err)
	}
	if err := move("AWSCURRENT", one, ""); code(err) != "InvalidParameterException" {
		t.Errorf("remove AWSCURRENT: %v", err)
	}
	if err := move("AWSCURRENT", one, "33333333-3333-3333-3333-333333333333"); code(err) != "ResourceNotFoundException" {
		t.Errorf("move to an absent version: %v", err)
	}
	must.Do(t, move("AWSCURRENT", one, two), "move AWSCURRENT")
	must.Do(t, move("AWSPENDING", two, ""), "move AWSPENDING")
	if got, want := labels(), "[AWSPREVIOUS] [AWSCURRENT]"; got != want {
		t.Errorf("labels = %s, want %s", got, want)
	}
	out, err := api.GetSecretValue(ctx, getInput)
	if err != nil || out.SecretString != nil || string(out.SecretBinary) != "two" ||
		!slices.Equal(out.VersionStages, []string{"AWSCURRENT"}) {
		t.Errorf("the value: %v, %v", out, err)
	}
	secrets.Rollback("prod/mtls", one)
	if got, want := labels(), "[AWSCURRENT] [AWSPREVIOUS]"; got != want {
		t.Errorf("labels after a rollback = %s, want %s", got, want)
	}
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	secrets.SetNextRotation("prod/mtls", at)
	if out, err := api.DescribeSecret(ctx, describeInput); err != nil ||
		!aws.ToTime(out.NextRotationDate).Equal(at) {
		t.Errorf("next rotation %v, %v, want %v", out.NextRotationDate, err, at)
	}
}

func TestSecretsFaults(t *testing.T) {
	_, secrets, cfg := node(t)
	api := client(cfg)
	secrets.Put("prod/mtls", "one")
	get := func(ctx context.Context) error {
		_, err := api.GetSecretValue(ctx, getInput)
		return err
	}
	describe := func() error {
		_, err := api.DescribeSecret(t.Context(), describeInput)
		return err
	}
	status := func(err error) int {
		if e, ok := errors.AsType[interface {
			error
			HTTPStatusCode() int
		}](err); ok {
			return e.HTTPStatusCode()
		}
		return 0
	}
	for code, want := range map[string]int{
		"ThrottlingException": 400, "AccessDeniedException": 400, "DecryptionFailure": 400, "InternalServiceError": 500, "503": 503,
	} {
		secrets.SetFault(code)
		if err := get(t.Context()); status(err) != want {
			t.Errorf("%s: HTTP status %d, want %d: %v", code, status(err), want, err)
		}
	}
	secrets.SetFault("")
	calls := secrets.Calls("GetSecretValue")
	secrets.Fail(simaws.Fault{Operation: "GetSecretValue", Code: "AccessDeniedException", Calls: 2})
	for i, want := range []string{"AccessDeniedException", "AccessDeniedException", ""} {
		if err := describe(); err != nil {
			t.Errorf("DescribeSecret fails with GetSecretValue: %v", err)
		}
		if err := get(t.Context()); code(err) != want || (err == nil) != (want == "") {
			t.Errorf("call %d: %v, want %q", i, err, want)
		}
	}
	if got := secrets.Calls("GetSecretValue") - calls; got != 3 {
		t.Errorf("%d calls counted, want 3", got)
	}

	// The SDK's own retry succeeds.
	secrets.Fail(simaws.Fault{Code: "ThrottlingException", Calls: 1})
	patient := secretsmanager.NewFromConfig(cfg)
	if _, err := patient.DescribeSecret(t.Context(), describeInput); err != nil {
		t.Errorf("throttled once: %v", err)
	}

	secrets.SetLatency(time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slow service: %v", err)
	}
	secrets.SetLatency(0)

	stranger := cfg.Copy()
	stranger.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIASTRANGER", SecretAccessKey: "x"}, nil
	})
	_, err := client(stranger).DescribeSecret(t.Context(), describeInput)
	if code(err) != "UnrecognizedClientException" {
		t.Errorf("a stranger's credentials: %v", err)
	}
}

// TestRawRequests sends what the SDK never does.
func TestRawRequests(t *testing.T) {
	secrets := &simaws.Secrets{Region: "us-east-2", AccountID: "111122223333"}
	secrets.SetSkew(time.Hour)
	server := httptest.NewServer(secrets)
	defer server.Close()
	post := func(body io.Reader, headers ...string) (status int, errorType string, date time.Time) {
		t.Helper()
		req := must.Get(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, body))(t, "make a request")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp := must.Get(http.DefaultClient.Do(req))(t, "send the request")
		defer resp.Body.Close()
		date = must.Get(http.ParseTime(resp.Header.Get("Date")))(t, "parse the Date header")
		return resp.StatusCode, resp.Header.Get("X-Amzn-Errortype"), date
	}
	target := []string{"X-Amz-Target", "secretsmanager.DescribeSecret"}
	signed := append(slices.Clone(target), "X-Amz-Date", "20260101T000000Z",
		"Authorization", "AWS4-HMAC-SHA256 Credential="+simaws.AccessKeyID+"/20260101/us-east-2/secretsmanager/aws4_request, SignedHeaders=host, Signature=00")
	for _, c := range []struct {
		name    string
		body    io.Reader
		headers []string
		status  int
		code    string
	}{
		{"no operation", strings.NewReader("{}"), nil, 400, "UnknownOperationException"},
		{"not signed", strings.NewReader("{}"), target, 403, "UnrecognizedClientException"},
		{"no JSON", strings.NewReader("<xml>"), signed, 400, "SerializationException"},
		{"too much", bytes.NewReader(make([]byte, 1<<20)), signed, 400, "SerializationException"},
		{"no such secret", strings.NewReader(`{"SecretId": "x"}`), signed, 400, "ResourceNotFoundException"},
	} {
		status, code, date := post(c.body, c.headers...)
		if status != c.status || code != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, code, c.status, c.code)
		}
		if skew := time.Until(date); skew < 50*time.Minute || skew > 70*time.Minute {
			t.Errorf("%s: the Date is %v ahead, want an hour", c.name, skew)
		}
	}
}

func TestMetadata(t *testing.T) {
	metadata, secrets, cfg := node(t)
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

	// Credentials roll, and Secrets Manager accepts the new ones as well.
	secrets.Put("prod/mtls", "one")
	keys := make(map[string]bool)
	for range 2 {
		creds, err := cfg.Credentials.Retrieve(t.Context())
		if err != nil || !creds.CanExpire {
			t.Fatalf("%+v, %v", creds, err)
		}
		keys[creds.AccessKeyID] = true
		if _, err := client(cfg).DescribeSecret(t.Context(), describeInput); err != nil {
			t.Errorf("%s: %v", creds.AccessKeyID, err)
		}
		metadata.RollCredentials(time.Hour)
		cfg = load(t)
	}
	if len(keys) != 2 {
		t.Errorf("access keys %v, want two", keys)
	}

	metadata.RefuseTokens(true)
	if status, _ := do(http.MethodPut, tokenPath, ttl, "60"); status != 403 {
		t.Errorf("a refused token: %d", status)
	}
	metadata.RefuseTokens(false)
	metadata.SetFault(503)
	if status, _ := do(http.MethodPut, tokenPath, ttl, "60"); status != 503 {
		t.Errorf("a service that is down: %d", status)
	}
	metadata.SetFault(0)
	metadata.SetLatency(30 * time.Millisecond)
	began := time.Now()
	do(http.MethodPut, tokenPath, ttl, "60")
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("a slow service answers within %v", took)
	}
}
