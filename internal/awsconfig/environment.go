package awsconfig

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go/logging"
)

// environment is what the SDK's clients ask of a source of configuration: each looks for the methods that it knows. Its
// variables are those of the SDK.
type environment struct {
	ignoreEndpoints bool
	fips            aws.FIPSEndpointState
	dualStack       aws.DualStackEndpointState
	metadata        imds.ClientEnableState
	metadataMode    imds.EndpointModeState
}

// fromEnvironment reads all but the credentials and the trust anchors.
func fromEnvironment() (aws.Config, error) {
	cfg := aws.Config{
		Region:                cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
		AppID:                 os.Getenv("AWS_SDK_UA_APP_ID"),
		Logger:                logging.NewStandardLogger(os.Stderr),
		DefaultsMode:          aws.DefaultsModeLegacy,
		AccountIDEndpointMode: aws.AccountIDEndpointModePreferred,
	}
	if err := refuseUnread(); err != nil {
		return cfg, err
	}
	var env environment
	for name, take := range map[string]func(bool){
		"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": func(on bool) { env.ignoreEndpoints = on },
		"AWS_DISABLE_CLOCK_SKEW_CORRECTION":   func(on bool) { cfg.DisableClockSkewCorrection = on },
		"AWS_USE_FIPS_ENDPOINT": func(on bool) {
			env.fips = map[bool]aws.FIPSEndpointState{
				true: aws.FIPSEndpointStateEnabled, false: aws.FIPSEndpointStateDisabled}[on]
		},
		"AWS_USE_DUALSTACK_ENDPOINT": func(on bool) {
			env.dualStack = map[bool]aws.DualStackEndpointState{
				true: aws.DualStackEndpointStateEnabled, false: aws.DualStackEndpointStateDisabled}[on]
		},
		"AWS_EC2_METADATA_DISABLED": func(off bool) {
			env.metadata = map[bool]imds.ClientEnableState{true: imds.ClientDisabled, false: imds.ClientEnabled}[off]
		},
	} {
		value := os.Getenv(name)
		switch {
		case value == "":
		case strings.EqualFold(value, "true"), strings.EqualFold(value, "false"):
			take(strings.EqualFold(value, "true"))
		default:
			return cfg, fmt.Errorf("%s is %q, want true or false", name, value)
		}
	}
	if err := env.metadataMode.SetFromString(os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")); err != nil {
		return cfg, fmt.Errorf("read AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: %w", err)
	}
	var err error
	if value := os.Getenv("AWS_RETRY_MODE"); value != "" {
		if cfg.RetryMode, err = aws.ParseRetryMode(value); err != nil {
			return cfg, fmt.Errorf("read AWS_RETRY_MODE: %w", err)
		}
	}
	if value := os.Getenv("AWS_MAX_ATTEMPTS"); value != "" {
		if cfg.RetryMaxAttempts, err = strconv.Atoi(value); err != nil {
			return cfg, fmt.Errorf("read AWS_MAX_ATTEMPTS: %w", err)
		}
	}
	if value := os.Getenv("AWS_ENDPOINT_URL"); value != "" && !env.ignoreEndpoints {
		cfg.BaseEndpoint = &value
	}
	cfg.ConfigSources = []any{env}
	return cfg, nil
}

// refuseUnread returns an error for a variable that would lead the SDK to other credentials or settings than those that
// are read here: to go on without it would be to use the role of the instance in silence.
func refuseUnread() error {
	for _, name := range []string{"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		if os.Getenv(name) != "" {
			return unread(name)
		}
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		if info, err := os.Stat(os.Getenv(name)); err == nil && info.Size() > 0 {
			return unread(name)
		}
	}
	return nil
}

func unread(name string) error {
	return fmt.Errorf("%s is set, but on a node no profile, shared file or web identity is read: give the instance a "+
		"role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_REGION", name)
}

// GetServiceBaseEndpoint returns the URL of one service, such as AWS_ENDPOINT_URL_SECRETS_MANAGER.
func (environment) GetServiceBaseEndpoint(_ context.Context, service string) (string, bool, error) {
	url := os.Getenv("AWS_ENDPOINT_URL_" + strings.ReplaceAll(strings.ToUpper(service), " ", "_"))
	return url, url != "", nil
}

// GetIgnoreConfiguredEndpoints reports whether URLs in the environment count.
func (e environment) GetIgnoreConfiguredEndpoints(context.Context) (value, found bool, err error) {
	return e.ignoreEndpoints, true, nil
}

// GetUseFIPSEndpoint reports whether services are asked at their FIPS endpoints.
func (e environment) GetUseFIPSEndpoint(context.Context) (aws.FIPSEndpointState, bool, error) {
	return e.fips, e.fips != aws.FIPSEndpointStateUnset, nil
}

// GetUseDualStackEndpoint reports whether services are asked at names that have IPv6 addresses, too.
func (e environment) GetUseDualStackEndpoint(context.Context) (aws.DualStackEndpointState, bool, error) {
	return e.dualStack, e.dualStack != aws.DualStackEndpointStateUnset, nil
}

// GetEC2IMDSClientEnableState reports whether the metadata service may be asked.
func (e environment) GetEC2IMDSClientEnableState() (imds.ClientEnableState, bool, error) {
	return e.metadata, e.metadata != imds.ClientDefaultEnableState, nil
}

// GetEC2IMDSEndpointMode returns whether the metadata service is asked over IPv4 or IPv6.
func (e environment) GetEC2IMDSEndpointMode() (imds.EndpointModeState, bool, error) {
	return e.metadataMode, e.metadataMode != imds.EndpointModeStateUnset, nil
}

// GetEC2IMDSEndpoint returns the URL of the metadata service.
func (environment) GetEC2IMDSEndpoint() (string, bool, error) {
	url := os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
	return url, url != "", nil
}
