package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"

	"sevagent/internal/pattern"
)

// RegionError says that AWS was not reached because of the region.
type RegionError struct {
	Region string
	// Disabled: it exists, but the account has not enabled it.
	Disabled bool
	// Near is a region with a similar name, if there is one.
	Near string
}

func (e *RegionError) Error() string {
	if e.Disabled {
		return fmt.Sprintf("the account has not enabled the region %s", e.Region)
	}
	return "there is no region " + e.Region
}

// regionShape is what names of regions look like. It is asked only where AWS could not be.
var regionShape = pattern.New(
	`^[a-z]{2,4}(-[a-z]{2,5})?-(north|south)?(east|west|north|south|central)-[1-9][0-9]?$`)

// regionTimeout limits the look at the list of regions.
const regionTimeout = 15 * time.Second

// badRegion reports whether the region is why a call failed with err. At AWS, a region that does not exist is a host
// name that does not exist; a proxy or an emulator answers such a request with a page.
func (in *Inspector) badRegion(ctx context.Context, err error) *RegionError {
	region := in.cfg.AWS.Region
	home := homeRegion(region)
	if region == home || ctx.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, regionTimeout)
	defer cancel()
	out, listErr := askOnce(ctx, in, apiRegions, in.ec2.DescribeRegions,
		&ec2.DescribeRegionsInput{AllRegions: aws.Bool(true)},
		func(o *ec2.Options) { o.Region, o.RetryMaxAttempts = home, 2 })
	if listErr != nil {
		_, answered := errors.AsType[smithy.APIError](listErr)
		dns, named := errors.AsType[*net.DNSError](err)
		if !regionShape.MatchString(region) || answered && named && dns.IsNotFound {
			return &RegionError{Region: region}
		}
		return nil
	}
	var names []string
	for _, r := range out.Regions {
		names = append(names, aws.ToString(r.RegionName))
		if names[len(names)-1] == region {
			if aws.ToString(r.OptInStatus) == "not-opted-in" {
				return &RegionError{Region: region, Disabled: true}
			}
			return nil
		}
	}
	if len(names) == 0 {
		return nil
	}
	near := slices.MinFunc(names, func(a, b string) int { return distance(a, region) - distance(b, region) })
	if distance(near, region) > len(region)/3 {
		near = ""
	}
	return &RegionError{Region: region, Near: near}
}

// homeRegion is the region of a partition that every account of it has.
func homeRegion(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "cn-north-1"
	case strings.HasPrefix(region, "us-gov-"):
		return "us-gov-west-1"
	}
	return "us-east-1"
}
