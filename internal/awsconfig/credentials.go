package awsconfig

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
)

// credentialsFor returns the keys of the environment, else the credentials of the container that this process is in,
// else those of the instance's role. That is the order of the SDK. Nothing is asked before they are needed.
func credentialsFor(cfg aws.Config) (aws.CredentialsProvider, error) {
	static := aws.Credentials{
		AccessKeyID:     cmp.Or(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_ACCESS_KEY")),
		SecretAccessKey: cmp.Or(os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SECRET_KEY")),
		SessionToken:    os.Getenv("AWS_SESSION_TOKEN"),
		AccountID:       os.Getenv("AWS_ACCOUNT_ID"),
		Source:          "EnvConfigCredentials",
	}
	if static.HasKeys() {
		return aws.NewCredentialsCache(credentials.StaticCredentialsProvider{
			Value: static, Source: []aws.CredentialSource{aws.CredentialSourceEnvVars},
		}), nil
	}
	container, err := containerEndpoint()
	if err != nil {
		return nil, err
	}
	if container == "" {
		return aws.NewCredentialsCache(ec2rolecreds.New(func(o *ec2rolecreds.Options) {
			o.Client = Metadata(cfg) // the SDK's own would neither keep to version 2 nor know of proxy
			o.CredentialSources = []aws.CredentialSource{aws.CredentialSourceIMDS}
		})), nil
	}
	provider := endpointcreds.New(container, func(o *endpointcreds.Options) {
		o.HTTPClient = cfg.HTTPClient
		o.AuthorizationToken = os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
		if path := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); path != "" {
			o.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
				token, err := os.ReadFile(path) // it is replaced from time to time
				if err != nil {
					return "", fmt.Errorf("read AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: %w", err)
				}
				return string(token), nil
			})
		}
		if cfg.Retryer != nil {
			o.Retryer = cfg.Retryer()
		}
		o.CredentialSources = []aws.CredentialSource{aws.CredentialSourceHTTP}
	})
	return aws.NewCredentialsCache(provider, func(o *aws.CredentialsCacheOptions) {
		o.ExpiryWindow = 5 * time.Minute
	}), nil
}

// containerEndpoint returns the URL of the credentials of the container that this process is in; empty: it is in none.
// Without TLS only the addresses are asked that ECS and EKS document, and loopback.
func containerEndpoint() (string, error) {
	if path := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		return "http://169.254.170.2" + path, nil
	}
	text := os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("read AWS_CONTAINER_CREDENTIALS_FULL_URI: %w", err)
	case u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("read AWS_CONTAINER_CREDENTIALS_FULL_URI: %q is no URL of http or https", text)
	case u.Scheme == "https":
		return text, nil
	}
	names := []string{u.Hostname()}
	if _, err := netip.ParseAddr(names[0]); err != nil {
		if names, err = net.LookupHost(names[0]); err != nil {
			return "", fmt.Errorf("look up the host of AWS_CONTAINER_CREDENTIALS_FULL_URI: %w", err)
		}
	}
	for _, name := range names {
		ip, err := netip.ParseAddr(name)
		if err != nil || !ip.IsLoopback() && name != "169.254.170.2" && name != "169.254.170.23" &&
			ip != netip.MustParseAddr("fd00:ec2::23") {
			return "", fmt.Errorf("read AWS_CONTAINER_CREDENTIALS_FULL_URI: %s is none of the addresses that are asked "+
				"without TLS: loopback, 169.254.170.2, 169.254.170.23 and fd00:ec2::23", name)
		}
	}
	return text, nil
}
