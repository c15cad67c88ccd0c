package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"sevagent/internal/awsconfig"
	"sevagent/internal/cli"
	"sevagent/internal/pattern"
)

// loadAWS loads the SDK's configuration, without the SDK's retries: they end after three attempts, and on some errors
// at once, such as those of a role's credentials that are late. retry asks again instead, until the deadline.
// An empty region is that of the environment.
func (m machine) loadAWS(region string) (aws.Config, error) {
	return m.aws(func(cfg *aws.Config) {
		cfg.Region = cmp.Or(region, cfg.Region)
		cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	})
}

// off matches the error of a metadata service that is switched off, by the instance's options (it answers 403 to the
// request for a token) or by AWS_EC2_METADATA_DISABLED. The SDK keeps the status of a token's error to itself.
var off = pattern.New(`getToken, http response error StatusCode: 403|access disabled to EC2 IMDS`)

// metadataOff reports whether asking again cannot help. An error that a service of AWS returned is not of that kind.
func metadataOff(err error) bool {
	_, api := errors.AsType[smithy.APIError](err)
	return err != nil && !api && off.MatchString(err.Error())
}

// sdkStatus is in the SDK's errors about the metadata service: what it was asked for, and the HTTP status.
var sdkStatus = pattern.New(`ec2imds: (\w+), http response error StatusCode: (\d+)`)

// inWords says what an error of the SDK means to an operator: the SDK's text lists its own layers. It is
// matched by that text, since the SDK does not wrap what is below the request for a token.
func inWords(err error) error {
	if err == nil {
		return nil
	}
	all := err.Error()
	status := sdkStatus.FindStringSubmatch(all)
	_, network, _ := strings.Cut(all, "request send failed, ")
	api, answered := errors.AsType[smithy.APIError](err)
	var text string
	switch {
	case answered:
		return worded{err, apiError + api.ErrorCode() + ": " + api.ErrorMessage()}
	case strings.Contains(all, "access disabled to EC2 IMDS"):
		text = "AWS_EC2_METADATA_DISABLED is set"
	case status != nil && status[1] == "getToken":
		text = "HTTP status " + status[2] + " of the metadata service, asked for a token"
	case status != nil && status[2] == "404" && strings.Contains(all, "no EC2 IMDS role found"):
		text = "the metadata service knows no role of this instance"
	case status != nil:
		text = "HTTP status " + status[2] + " of the metadata service"
	case network != "":
		text = network
	default:
		return err
	}
	if strings.Contains(all, "get credentials") {
		text = "get credentials: " + text
	}
	return worded{err, text}
}

// apiError comes before what AWS answered.
const apiError = "api error "

// worded is an error in other words.
type worded struct {
	error
	text string
}

func (w worded) Error() string { return w.text }
func (w worded) Unwrap() error { return w.error }

// askMetadata asks the instance metadata service until it answers, for as long as timeout: at boot it may be late, or
// ill in any way. It asks by version 2 only: a service that refuses a token is an error, never a reason to try
// version 1.
func (m machine) askMetadata(
	ctx context.Context, timeout time.Duration, ask func(context.Context, *imds.Client) error,
) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	cfg, err := m.loadAWS("")
	if err != nil {
		return err
	}
	client := awsconfig.Metadata(cfg)
	return retry(ctx, Pauses{250 * time.Millisecond, 5 * time.Second}, func() (again bool, err error) {
		err = ask(ctx, client)
		return err != nil && !metadataOff(err), inWords(err)
	})
}

// identity asks which instance this is.
func (m machine) identity(ctx context.Context, timeout time.Duration) (doc imds.InstanceIdentityDocument, err error) {
	err = m.askMetadata(ctx, timeout, func(ctx context.Context, client *imds.Client) error {
		answer, err := client.GetInstanceIdentityDocument(ctx, nil)
		if err != nil {
			return err
		}
		doc = answer.InstanceIdentityDocument
		if doc.InstanceID == "" || doc.Region == "" {
			return errors.New("it does not name the instance and its region")
		}
		return nil
	})
	if err != nil {
		err = cli.Unreachable(fmt.Errorf("get the instance identity document by IMDSv2: %w", err))
		return doc, advised{err, "is this an EC2 instance, and its metadata service on?"}
	}
	return doc, nil
}

// idTimeout is short: systemd gives the condition of ecs.service 90 s.
const idTimeout = 15 * time.Second

// instanceID asks the metadata service or, where that does not answer, reads what cloud-init recorded.
func (m machine) instanceID(ctx context.Context) (string, error) {
	doc, err := m.identity(ctx, idTimeout)
	if err == nil {
		return doc.InstanceID, nil
	}
	data, readErr := os.ReadFile(m.instanceIDFile)
	if id := strings.TrimSpace(string(data)); readErr == nil && id != "" {
		return id, nil
	}
	return "", err
}

// warmed begins the target lifecycle states of an instance in a warm pool, or on its way there (Amazon EC2 Auto Scaling
// User Guide, "Retrieve the target lifecycle state through instance metadata").
const warmed = "Warmed:"

// maxState is in bytes; the longest state, Warmed:Hibernated, has 17.
const maxState = 64

// warmPool returns the target lifecycle state of an instance that waits in a warm pool, "" if it does not, as far as is
// known: outside of an Auto Scaling group, the metadata service has no such state.
func (m machine) warmPool(ctx context.Context) (state string) {
	_ = m.askMetadata(ctx, idTimeout, func(ctx context.Context, client *imds.Client) error {
		answer, err := client.GetMetadata(ctx, &imds.GetMetadataInput{Path: "autoscaling/target-lifecycle-state"})
		refused, ok := errors.AsType[*smithyhttp.ResponseError](err)
		if ok && refused.HTTPStatusCode() == http.StatusNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		defer answer.Content.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Content, maxState))
		state = strings.TrimSpace(string(text))
		return err
	})
	if !strings.HasPrefix(state, warmed) {
		return ""
	}
	return state
}
