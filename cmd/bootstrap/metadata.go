package main

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"sevagent/internal/cli"
)

// metadataTimeout bounds all that is asked of the metadata service, with the SDK's retries.
const metadataTimeout = time.Minute

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
	client := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	answer, err := client.GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return none, cli.Unreachable(fmt.Errorf("get the instance identity document by IMDSv2: %w; is this an EC2 instance, and its metadata service on?", err))
	}
	return answer.InstanceIdentityDocument, nil
}
