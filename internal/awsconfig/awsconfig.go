// Package awsconfig is how the programs on a node reach AWS: by the environment, the instance's role, and the proxies of
// the environment, except for what answers on the node itself. That is the metadata service above all: by version 2
// only, and never through a proxy, whose answer would be believed.
//
// It is the part of the SDK's package config that a node needs. All of that package links the clients of four more
// services, for single sign-on and for roles to assume, which takes a quarter of a small program's memory.
package awsconfig

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// Timeouts of one HTTP request. The metadata service answers within milliseconds, unless it does not answer at all.
const (
	requestTimeout  = 10 * time.Second
	metadataTimeout = 2 * time.Second
)

// Load returns the SDK's configuration from the environment. The options change it before the credentials are set up.
func Load(options ...func(*aws.Config)) (aws.Config, error) {
	cfg, err := load(options)
	if err != nil {
		return aws.Config{}, fmt.Errorf("load the AWS configuration: %w", err)
	}
	return cfg, nil
}

func load(options []func(*aws.Config)) (aws.Config, error) {
	cfg, err := fromEnvironment()
	if err != nil {
		return cfg, err
	}
	anchors, err := customAnchors()
	if err != nil {
		return cfg, err
	}
	cfg.HTTPClient = awshttp.NewBuildableClient().WithTimeout(requestTimeout).
		WithTransportOptions(func(t *http.Transport) {
			t.Proxy = proxy
			if anchors != nil {
				if t.TLSClientConfig == nil {
					t.TLSClientConfig = new(tls.Config)
				}
				t.TLSClientConfig.RootCAs = anchors
			}
		})
	for _, option := range options {
		option(&cfg)
	}
	cfg.Credentials, err = credentialsFor(cfg)
	return cfg, err
}

// customAnchors reads AWS_CA_BUNDLE, which replaces the system's trust anchors. Without it there are none.
func customAnchors() (*x509.CertPool, error) {
	path := os.Getenv("AWS_CA_BUNDLE")
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read AWS_CA_BUNDLE: %w", err)
	}
	anchors := x509.NewCertPool()
	if !anchors.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read AWS_CA_BUNDLE: %s has no PEM certificate", path)
	}
	return anchors, nil
}

// Retryer leaves retries to the caller, which has a backoff of its own. The nodes of an account share its quotas, and a
// fleet that comes back after an outage would exceed them with the SDK's three attempts at each try. The exception
// costs nothing: a request that was refused because of this node's clock is sent again with the service's time.
func Retryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts, o.RateLimiter = 2, ratelimit.None
		o.Retryables = []retry.IsErrorRetryable{retry.RetryableError{}}
	})
}

// Metadata returns a client of the instance metadata service.
func Metadata(cfg aws.Config) *imds.Client {
	return imds.NewFromConfig(cfg, func(o *imds.Options) {
		o.EnableFallback = aws.FalseTernary
		client := cfg.HTTPClient
		if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
			// No proxy, whatever the address. Frozen, since the SDK would give up within half a second, also on a
			// service that is only slow.
			client = c.WithTimeout(metadataTimeout).
				WithTransportOptions(func(t *http.Transport) { t.Proxy = nil }).Freeze()
		}
		o.HTTPClient = bounded{client}
	})
}

// maxMetadata is in bytes: items of the metadata service have some hundreds, user data up to 16 KiB.
const maxMetadata = 64 << 10

// bounded cuts answers off at maxMetadata: the host answers, and the SDK would read all that it sends into memory.
type bounded struct{ client aws.HTTPClient }

// Do implements aws.HTTPClient.
func (b bounded) Do(req *http.Request) (*http.Response, error) {
	resp, err := b.client.Do(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxMetadata), resp.Body}
	}
	return resp, err
}

// proxy is http.ProxyFromEnvironment, but for addresses of the node.
func proxy(req *http.Request) (*url.URL, error) {
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && onNode(ip) {
		return nil, nil
	}
	return http.ProxyFromEnvironment(req)
}

// ec2Local is where EC2's local services have their IPv6 addresses: the metadata service ::254, and container
// credentials ::23.
var ec2Local = netip.MustParsePrefix("fd00:ec2::/32")

func onNode(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || ec2Local.Contains(ip)
}
