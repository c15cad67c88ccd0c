package bootstrap

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"sevagent/internal/cli"
)

// metadataTimeout bounds a question to the metadata service, with the SDK's retries.
const metadataTimeout = time.Minute

// onlyV2 keeps a client from trying version 1.
func onlyV2(o *imds.Options) { o.EnableFallback = aws.FalseTernary }

// loadAWS loads the SDK's configuration. The role's credentials, too, come by IMDSv2 only.
func loadAWS(ctx context.Context, region string) (aws.Config, error) {
	var cfg aws.Config
	plain, err := config.LoadDefaultConfig(ctx)
	if err == nil {
		credentials := config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) {
			o.Client = imds.NewFromConfig(plain, onlyV2)
		})
		cfg, err = config.LoadDefaultConfig(ctx, config.WithRegion(region), credentials)
	}
	if err != nil {
		return cfg, fmt.Errorf("load the AWS configuration: %w", err)
	}
	return cfg, nil
}

// readMetadata asks the instance metadata service, by version 2 only: a service that refuses a token is an error,
// never a reason to try version 1.
func readMetadata(ctx context.Context) (imds.InstanceIdentityDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	var none imds.InstanceIdentityDocument
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return none, fmt.Errorf("load the AWS configuration: %w", err)
	}
	answer, err := imds.NewFromConfig(cfg, onlyV2).GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return none, advised{cli.Unreachable(fmt.Errorf("get the instance identity document by IMDSv2: %w", err)),
			"is this an EC2 instance, and its metadata service on?"}
	}
	return answer.InstanceIdentityDocument, nil
}
