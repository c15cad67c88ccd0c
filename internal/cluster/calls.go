package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// Calls counts the requests sent to AWS, repetitions included.
type Calls struct {
	Total int            `json:"total"`
	ByAPI map[string]int `json:"by_api"`
}

// counter counts requests where they leave, below the SDK's retries.
type counter struct {
	mu    sync.Mutex
	calls map[string]int // guarded by mu
	total int            // guarded by mu
}

// option hooks the counter into a client.
func (c *counter) option(stack *middleware.Stack) error {
	count := middleware.FinalizeMiddlewareFunc("sevctlCount", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		service := strings.ToLower(strings.ReplaceAll(awsmiddleware.GetServiceID(ctx), " ", ""))
		api := service + ":" + awsmiddleware.GetOperationName(ctx)
		c.add(api)
		return next.HandleFinalize(ctx, in)
	})
	return stack.Finalize.Insert(count, "Retry", middleware.After)
}

func (c *counter) add(api string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[api]++
	c.total++
}

func (c *counter) snapshot() Calls {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Calls{Total: c.total, ByAPI: maps.Clone(c.calls)}
}

// Error codes by which AWS rejects the credentials, or says that the region is not open to the account.
var identityCodes = []string{
	"UnrecognizedClientException", "InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch",
	"InvalidSignatureException", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "IncompleteSignature",
	"MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired",
	"SubscriptionRequiredException",
}

// unreachable reports whether any other call would fail, too: there is no answer, or the credentials are rejected.
func unreachable(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return !ok || slices.Contains(identityCodes, api.ErrorCode())
}

func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// denied reports whether AWS accepts the credentials but does not allow the call.
func denied(err error) bool {
	c := code(err)
	return strings.HasPrefix(c, "AccessDenied") || c == "UnauthorizedOperation" || c == "NotAuthorized"
}
