package awsconfig

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/google/go-cmp/cmp"

	"sevagent/internal/must"
)

// asked is what a configuration leads to.
type asked struct {
	Failed             bool // when it was loaded
	Requests           []string
	Source             string // of the credentials
	Region, App        string
	AccountIDs         aws.AccountIDEndpointMode
	KeepSkew, Disabled bool
}

// ask has a configuration ask Secrets Manager, and the metadata service, by a client that records where it is led to.
func ask(load func(clientFunc) (aws.Config, error)) (a asked) {
	key := regexp.MustCompile(`Credential=[^,]*/aws4_request`)
	cfg, err := load(func(req *http.Request) (*http.Response, error) {
		line := req.URL.String()
		if auth := req.Header.Get("Authorization"); strings.HasPrefix(auth, "AWS4-") {
			line += " " + key.FindString(auth)
		} else {
			line += " " + auth
		}
		a.Requests = append(a.Requests, regexp.MustCompile(`/\d{8}/`).ReplaceAllString(line, "/DATE/"))
		return nil, errors.New("nobody there")
	})
	if err != nil {
		return asked{Failed: true}
	}
	ctx := context.Background()
	id := "prod"
	secretsmanager.NewFromConfig(cfg).DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &id})
	_, err = Metadata(cfg).GetMetadata(ctx, &imds.GetMetadataInput{Path: "x"})
	a.Disabled = err != nil && strings.Contains(err.Error(), "access disabled")
	if c, err := cfg.Credentials.Retrieve(ctx); err == nil {
		a.Source = c.Source
	}
	a.Region, a.App = cfg.Region, cfg.AppID
	a.AccountIDs, a.KeepSkew = cfg.AccountIDEndpointMode, cfg.DisableClockSkewCorrection
	return a
}

// TestAsTheSDK: what the environment says leads where the SDK's own configuration would lead.
func TestAsTheSDK(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	must.Do(t, os.WriteFile(token, []byte("of the file"), 0o600), "write a token")
	const (
		keys     = "AWS_ACCESS_KEY_ID=AKIDEXAMPLE AWS_SECRET_ACCESS_KEY=secret "
		relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/x "
		full     = "AWS_CONTAINER_CREDENTIALS_FULL_URI="
	)
	for _, environment := range []string{
		"",
		"AWS_REGION=us-east-2 " + keys,
		"AWS_DEFAULT_REGION=eu-west-1 AWS_SESSION_TOKEN=t AWS_ACCESS_KEY=AKIDOTHER AWS_SECRET_KEY=secret",
		"AWS_REGION=us-east-2 AWS_DEFAULT_REGION=eu-west-1 " + keys + relative,
		"AWS_REGION=us-east-2 AWS_ACCESS_KEY_ID=AKIDEXAMPLE",
		"AWS_REGION=us-gov-west-1 AWS_USE_FIPS_ENDPOINT=TRUE " + keys,
		"AWS_REGION=us-east-2 AWS_USE_FIPS_ENDPOINT=false AWS_USE_DUALSTACK_ENDPOINT=true " + keys,
		"AWS_REGION=us-east-2 AWS_USE_FIPS_ENDPOINT=yes " + keys,
		"AWS_REGION=us-east-2 AWS_USE_DUALSTACK_ENDPOINT=1 " + keys,
		"AWS_REGION=us-east-2 AWS_ENDPOINT_URL=http://127.0.0.1:1 " + keys,
		"AWS_REGION=us-east-2 AWS_ENDPOINT_URL=http://127.0.0.1:1 " +
			"AWS_ENDPOINT_URL_SECRETS_MANAGER=http://127.0.0.1:2/x " + keys,
		"AWS_REGION=us-east-2 AWS_ENDPOINT_URL=http://127.0.0.1:1 AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true " +
			"AWS_ENDPOINT_URL_SECRETS_MANAGER=http://127.0.0.1:2/x " + keys,
		"AWS_REGION=us-east-2 AWS_EC2_METADATA_DISABLED=true",
		"AWS_REGION=us-east-2 AWS_EC2_METADATA_DISABLED=false",
		"AWS_REGION=us-east-2 AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:3",
		"AWS_REGION=us-east-2 AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=ipv6",
		"AWS_REGION=us-east-2 AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv5",
		"AWS_REGION=us-east-2 AWS_SDK_UA_APP_ID=app " + keys,
		"AWS_REGION=us-east-2 AWS_DISABLE_CLOCK_SKEW_CORRECTION=true " + keys,
		"AWS_REGION=us-east-2 " + relative,
		"AWS_REGION=us-east-2 AWS_CONTAINER_AUTHORIZATION_TOKEN=secret " + relative,
		"AWS_REGION=us-east-2 AWS_CONTAINER_AUTHORIZATION_TOKEN=secret AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + token +
			" " + full + "http://169.254.170.23/v1/credentials",
		"AWS_REGION=us-east-2 " + full + "http://127.0.0.1:9/x",
		"AWS_REGION=us-east-2 " + full + "http://localhost:9/x",
		"AWS_REGION=us-east-2 " + full + "http://[fd00:ec2::23]/x",
		"AWS_REGION=us-east-2 " + full + "http://[::1]/x",
		"AWS_REGION=us-east-2 " + full + "http://192.0.2.1/x",
		"AWS_REGION=us-east-2 " + full + "http://169.254.169.254/x",
		"AWS_REGION=us-east-2 " + full + "https://192.0.2.1/x",
		"AWS_REGION=us-east-2 " + full + "http:///x",
		"AWS_REGION=us-east-2 " + full + "http://%zz/x",
	} {
		t.Run(environment, func(t *testing.T) {
			isolate(t)
			for _, variable := range strings.Fields(environment) {
				name, value, _ := strings.Cut(variable, "=")
				t.Setenv(name, value)
			}
			got := ask(func(client clientFunc) (aws.Config, error) { return Load(by(client)) })
			want := ask(func(client clientFunc) (aws.Config, error) {
				// Without a retryer the SDK would wait between its attempts.
				return config.LoadDefaultConfig(t.Context(), config.WithHTTPClient(client),
					config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
					config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = client }))
			})
			// The SDK falls back to version 1 of the metadata service.
			want.Requests = slices.DeleteFunc(want.Requests, func(r string) bool { return strings.Contains(r, "/meta-data/") })
			got.Requests, want.Requests = slices.Compact(got.Requests), slices.Compact(want.Requests)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the SDK (-) and Load (+):\n%s", diff)
			}
		})
	}
}

// TestRetries: the SDK's variables for retries count where no option replaces its retryer.
func TestRetries(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_RETRY_MODE", "adaptive")
	t.Setenv("AWS_MAX_ATTEMPTS", "7")
	if cfg := must.Get(Load())(t, "load"); cfg.RetryMode != aws.RetryModeAdaptive || cfg.RetryMaxAttempts != 7 {
		t.Errorf("mode %q, %d attempts, want adaptive and 7", cfg.RetryMode, cfg.RetryMaxAttempts)
	}
}

// TestRefuses: what is not read, or not understood, is an error that names the variable.
func TestRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must.Do(t, os.WriteFile(file, []byte("[default]\n"), 0o600), "write a file")
	for name, value := range map[string]string{
		"AWS_PROFILE": "staging", "AWS_DEFAULT_PROFILE": "staging", "AWS_WEB_IDENTITY_TOKEN_FILE": file,
		"AWS_CONFIG_FILE": file, "AWS_SHARED_CREDENTIALS_FILE": file,
		"AWS_CA_BUNDLE": file, "AWS_RETRY_MODE": "never", "AWS_MAX_ATTEMPTS": "many",
	} {
		t.Run(name, func(t *testing.T) {
			isolate(t)
			t.Setenv(name, value)
			if _, err := Load(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v, want an error that names %s", err, name)
			}
		})
	}
	isolate(t)
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	must.Get(Load())(t, "load with files that say nothing")
}

// TestOwnAnchors: AWS_CA_BUNDLE replaces the system's trust anchors.
func TestOwnAnchors(t *testing.T) {
	isolate(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	file := filepath.Join(t.TempDir(), "anchors.pem")
	anchor := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	must.Do(t, os.WriteFile(file, anchor, 0o600), "write the anchors")
	for bundle, trusted := range map[string]bool{"": false, file: true} {
		t.Setenv("AWS_CA_BUNDLE", bundle)
		cfg := must.Get(Load())(t, "load")
		req := must.Get(http.NewRequest(http.MethodGet, server.URL, nil))(t, "make a request")
		resp, err := cfg.HTTPClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != trusted {
			t.Errorf("with the bundle %q: %v, want that the server is trusted: %v", bundle, err, trusted)
		}
	}
}
