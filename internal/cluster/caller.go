package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"sevagent/internal/pattern"
)

// callerARN finds in an AccessDenied message who was denied.
var callerARN = pattern.New(`arn:aws[a-z-]*:(?:sts|iam)::[0-9]{12}:(?:assumed-role|role|user)/[\w+=,.@/-]+`)

// caller finds out who makes the calls, if one was denied and AWS did not say to whom. It needs no permission, and its
// failures do not count.
func (g *gathering) caller(ctx context.Context) {
	ask := false
	for _, err := range g.s.Failures {
		if !denied(err) {
			continue
		}
		if arn := callerARN.FindString(err.Error()); arn != "" {
			g.s.Caller = arn
			return
		}
		ask = true
	}
	if !ask {
		return
	}
	out, err := askOnce(ctx, g.in, apiCaller, g.in.sts.GetCallerIdentity, &sts.GetCallerIdentityInput{})
	if err == nil {
		g.s.Caller = aws.ToString(out.Arn)
	}
}

// who names the caller for people: "the role viewer".
func (s *Snapshot) who() string {
	parts := strings.Split(s.Caller[strings.LastIndexByte(s.Caller, ':')+1:], "/")
	switch {
	case len(parts) > 1 && parts[0] == "assumed-role":
		return "the role " + parts[1]
	case len(parts) > 1 && parts[0] == "user":
		return "the user " + parts[len(parts)-1]
	case s.Caller != "":
		return s.Caller
	}
	return "the caller"
}

// reason says why a call failed.
func (s *Snapshot) reason(api string, err error) string {
	if denied(err) {
		return fmt.Sprintf("%s is denied to %s (%s)", api, s.who(), code(err))
	}
	return api + ": " + brief(err)
}

// remedy is the advice for a call that failed.
func (s *Snapshot) remedy(api string, err error) string {
	switch {
	case denied(err) && s.Caller != "":
		return fmt.Sprintf("Grant %s to the caller, %s.", api, s.who())
	case denied(err):
		return fmt.Sprintf("Grant %s to the caller; see 'aws sts get-caller-identity'.", api)
	}
	return fmt.Sprintf("Run again; if %s keeps failing, see the AWS Health Dashboard and the account's request limits.",
		api)
}

// brief says why a call failed, without the SDK's account of its layers.
func brief(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if api.ErrorMessage() == "" {
			return api.ErrorCode()
		}
		return fmt.Sprintf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	}
	if sent, ok := errors.AsType[*url.Error](err); ok {
		return sent.Err.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Error()
	}
	if _, ok := errors.AsType[*smithy.DeserializationError](err); ok {
		return "the answer is not one of AWS's; is a proxy in between?"
	}
	if operation, ok := errors.AsType[*smithy.OperationError](err); ok {
		return operation.Err.Error()
	}
	return err.Error()
}
