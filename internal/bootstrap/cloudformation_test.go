package bootstrap

import (
	"fmt"
	"testing"

	"github.com/aws/smithy-go"
)

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		message           string
		notWaiting, final bool
	}{
		{"Stack arn:aws:cloudformation:us-east-1:1:stack/p/1 is in CREATE_COMPLETE state and cannot be signaled", true, true},
		{"Stack arn:aws:cloudformation:us-east-1:1:stack/p/1 is in UPDATE_COMPLETE_CLEANUP_IN_PROGRESS state and cannot be signaled", true, true},
		{"Resource Group is in CREATE_COMPLETE state and cannot be signaled", true, true},
		{"Resource Group is in UPDATE_IN_PROGRESS state and cannot be signaled", true, false},
		{"Resource NodesReady is in CREATE_PENDING state and cannot be signaled.", true, false},
		{"Resource NodesReady is in CREATE_FAILED state and can not be signaled", true, true},
		{"Resource NodesReady is not in CREATE_IN_PROGRESS", true, false},
		{"something that nobody has seen", true, false},
		{"Resource NodesReady does not exist for stack prod", true, false},
		{"Stack 'prod' does not exist", false, false},
	} {
		refused := &smithy.GenericAPIError{Code: "ValidationError", Message: c.message}
		if message, final := refusalOf(fmt.Errorf("signal: %w", refused)); (message != "") != c.notWaiting || final != c.final {
			t.Errorf("%q: not waiting %v, final %v; want %v, %v", c.message, message != "", final, c.notWaiting, c.final)
		}
		denied := &smithy.GenericAPIError{Code: "AccessDenied", Message: c.message}
		if message, _ := refusalOf(denied); message != "" {
			t.Errorf("AccessDenied %q counts as a resource that does not wait", c.message)
		}
	}
}
