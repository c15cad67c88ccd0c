package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Stack is the CloudFormation stack that the cluster belongs to, by the tags that CloudFormation gives its resources.
type Stack struct {
	Name string `json:"name"`
	// Status is "" if it could not be asked.
	Status string `json:"status,omitempty"`
}

// tagStack is the tag with which CloudFormation marks the resources of a stack.
const tagStack = "aws:cloudformation:stack-name"

// stack asks what state the cluster's stack is in, for advice that the stack can follow. It is a courtesy: no failure
// of it counts.
func (g *gathering) stack(ctx context.Context) {
	if g.s.Stack.Name == "" || g.in.cfg.AWS.Credentials == nil {
		return
	}
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if status, err := g.in.stackStatus(ctx, g.s.Stack.Name); err == nil {
		g.s.Stack.Status = status
	}
}

// stackStatus sends cloudformation:DescribeStacks by hand. CloudFormation's client is not for this program, which only
// reads: it would link the operations that change stacks, for one field.
func (in *Inspector) stackStatus(ctx context.Context, name string) (string, error) {
	form := url.Values{"Action": {"DescribeStacks"}, "Version": {"2010-05-15"}, "StackName": {name}}.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, in.stackEndpoint(), strings.NewReader(form))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	credentials, err := in.cfg.AWS.Credentials.Retrieve(ctx)
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256([]byte(form))
	err = v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(hash[:]), "cloudformation",
		in.cfg.AWS.Region, time.Now())
	if err != nil {
		return "", err
	}
	in.counter.add("cloudformation:DescribeStacks")
	var client aws.HTTPClient = http.DefaultClient
	if in.cfg.AWS.HTTPClient != nil {
		client = in.cfg.AWS.HTTPClient
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("cloudformation:DescribeStacks: %s", response.Status)
	}
	var answer struct {
		Status string `xml:"DescribeStacksResult>Stacks>member>StackStatus"`
	}
	err = xml.NewDecoder(bytes.NewReader(body)).Decode(&answer)
	return answer.Status, err
}

// stackEndpoint follows the SDK's variables for other endpoints.
func (in *Inspector) stackEndpoint() string {
	if other := cmp.Or(os.Getenv("AWS_ENDPOINT_URL_CLOUDFORMATION"), aws.ToString(in.cfg.AWS.BaseEndpoint)); other != "" {
		return strings.TrimSuffix(other, "/") + "/"
	}
	domain := "amazonaws.com"
	if strings.HasPrefix(in.cfg.AWS.Region, "cn-") {
		domain = "amazonaws.com.cn"
	}
	return fmt.Sprintf("https://cloudformation.%s.%s/", in.cfg.AWS.Region, domain)
}

// deploy advises to deploy the stack again, as sentences, or says what has to come before that.
func (s *Snapshot) deploy() string {
	name, status := s.Stack.Name, s.Stack.Status
	command := func(operation string) string {
		return fmt.Sprintf("'aws cloudformation %s --stack-name %s --region %s'", operation, shell(name), s.Region)
	}
	is := fmt.Sprintf("The stack %s is %s", name, status)
	switch {
	case name == "":
		return "Deploy the stack again."
	case status == "DELETE_FAILED":
		return is + ", and cannot be updated. Remove what its deletion waits for, such as a service that uses its " +
			"capacity provider, delete it again: " + command("delete-stack") + " and deploy it anew."
	case status == "UPDATE_ROLLBACK_FAILED":
		return is + ", and cannot be updated. Continue its rollback: " + command("continue-update-rollback") +
			" and then deploy it again."
	case status == "UPDATE_FAILED":
		return is + ". Roll it back: " + command("rollback-stack") + " and then deploy it again."
	case strings.HasPrefix(status, "ROLLBACK_") && !strings.HasSuffix(status, "_IN_PROGRESS"), status == "CREATE_FAILED":
		return is + ", and can only be deleted: " + command("delete-stack") + " Then deploy it anew."
	case status == "DELETE_COMPLETE":
		return is + ". Deploy it anew."
	case strings.HasSuffix(status, "_IN_PROGRESS"):
		return is + ". Wait until that has ended, then deploy it again if this stays."
	}
	return fmt.Sprintf("Deploy the stack %s again.", name)
}
