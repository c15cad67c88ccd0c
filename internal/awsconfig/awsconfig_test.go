package awsconfig

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// proxied counts the requests that reach the proxy of this process's environment, which net/http reads once.
var proxied atomic.Int32

func TestMain(m *testing.M) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		proxied.Add(1)
		io.WriteString(w, "made up by the proxy")
	}))
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Setenv(name, proxy.URL)
	}
	os.Unsetenv("NO_PROXY")
	os.Unsetenv("no_proxy")
	os.Exit(m.Run())
}

func TestProxy(t *testing.T) {
	for host, want := range map[string]bool{
		"169.254.169.254": false, "169.254.170.2": false, "169.254.170.23": false, "[fd00:ec2::254]": false,
		"[fd00:ec2::23]": false, "127.0.0.1:51678": false, "127.9.9.9": false, "[::1]": false, "localhost:80": false,
		"[::ffff:169.254.169.254]": false, "[fe80::1%25eth0]": false,
		"169.253.169.254": true, "10.0.0.1": true, "[fd00:ec3::254]": true,
		"secretsmanager.us-east-2.amazonaws.com": true,
	} {
		for _, scheme := range []string{"http", "https"} {
			req := must.Get(http.NewRequest(http.MethodGet, scheme+"://"+host+"/", nil))(t, "make a request")
			if got := must.Get(proxy(req))(t, "find a proxy for %s", host); (got != nil) != want {
				t.Errorf("%s://%s goes through the proxy %v, want a proxy: %v", scheme, host, got, want)
			}
		}
	}
}

// TestMetadataGoesDirect asks a metadata service at 0.0.0.0, which Linux connects to loopback, and Go sends through a
// proxy: for its identity, and for the role's credentials.
func TestMetadataGoesDirect(t *testing.T) {
	service := &simaws.IMDS{Instance: simaws.DefaultInstance()}
	server := httptest.NewServer(service)
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	isolate(t)
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://0.0.0.0:"+port)
	before := proxied.Load()

	cfg := must.Get(Load())(t, "load the configuration")
	answer := must.Get(Metadata(cfg).GetInstanceIdentityDocument(t.Context(), nil))(t, "ask the metadata service")
	if answer.InstanceID != service.Instance.ID {
		t.Errorf("the instance is %q, want %q", answer.InstanceID, service.Instance.ID)
	}
	credentials := must.Get(cfg.Credentials.Retrieve(t.Context()))(t, "get the role's credentials")
	if credentials.Source != "EC2RoleProvider" {
		t.Errorf("the credentials are of %s, want the role's", credentials.Source)
	}
	if got := proxied.Load() - before; got != 0 || service.V1Requests() != 0 {
		t.Errorf("%d requests went to the proxy, %d came without a token, want none", got, service.V1Requests())
	}

	// The proxy does work: AWS's own names go there.
	const secrets = "http://secretsmanager.us-east-2.amazonaws.com/"
	req := must.Get(http.NewRequest(http.MethodGet, secrets, nil))(t, "make a request")
	resp := must.Get(cfg.HTTPClient.Do(req))(t, "ask AWS")
	resp.Body.Close()
	if got := proxied.Load() - before; got != 1 {
		t.Errorf("%d requests to AWS went to the proxy, want 1", got)
	}
}

// TestContainerCredentials: those, too, come by the configuration's client, and so by its rule for proxies.
func TestContainerCredentials(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials")
	asked := ""
	client := clientFunc(func(req *http.Request) (*http.Response, error) {
		asked = req.URL.String()
		return nil, errors.New("nobody there")
	})
	cfg := must.Get(Load(by(client)))(t, "load the configuration")
	if c, err := cfg.Credentials.Retrieve(t.Context()); err == nil || asked != "http://169.254.170.2/v2/credentials" {
		t.Errorf("the configuration's client was asked for %q; credentials of %q, error %v", asked, c.Source, err)
	}
}

// TestIPv6 asks where a node in a subnet without IPv4 has its metadata service.
func TestIPv6(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")
	asked := ""
	client := clientFunc(func(req *http.Request) (*http.Response, error) {
		asked = req.URL.Host
		return nil, errors.New("nobody there")
	})
	cfg := must.Get(Load(by(client)))(t, "load the configuration")
	_, err := Metadata(cfg).GetInstanceIdentityDocument(t.Context(), nil)
	if want := "[fd00:ec2::254]"; err == nil || asked != want {
		t.Errorf("%q was asked (%v), want %s", asked, err, want)
	}
}

// TestHugeAnswers: what the metadata service sends is not read for as long as it sends.
func TestHugeAnswers(t *testing.T) {
	isolate(t)
	const sent = 10 << 20
	huge := &counted{Reader: io.LimitReader(endless{}, sent)}
	client := clientFunc(func(req *http.Request) (*http.Response, error) {
		header := http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"21600"}}
		return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(huge), Request: req}, nil
	})
	cfg := must.Get(Load(by(client)))(t, "load the configuration")
	if _, err := Metadata(cfg).GetInstanceIdentityDocument(t.Context(), nil); err == nil || huge.n > 2*maxMetadata {
		t.Errorf("%d bytes were read of %d, want %d for each of two requests at most; error %v", huge.n, sent,
			maxMetadata, err)
	}
	huge.n = 0
	if _, err := cfg.Credentials.Retrieve(t.Context()); err == nil || huge.n > 3*maxMetadata {
		t.Errorf("%d bytes were read of %d for the role's credentials; error %v", huge.n, sent, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type counted struct {
	io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

// by has client send each request, and once.
func by(client clientFunc) func(*aws.Config) {
	return func(cfg *aws.Config) {
		cfg.HTTPClient, cfg.Retryer = client, func() aws.Retryer { return aws.NopRetryer{} }
	}
}

type clientFunc func(*http.Request) (*http.Response, error)

func (f clientFunc) Do(req *http.Request) (*http.Response, error) { return f(req) }

// isolate keeps the user's configuration and credentials out of the tests.
func isolate(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
}
