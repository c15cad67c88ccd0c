package bootstrap

import (
	"fmt"
	"testing"

	"github.com/aws/smithy-go"
)

func TestRefusals(t *testing.T) {
	const stack, resource = "Stack arn:aws:cloudformation:us-east-1:1:stack/prod/1 is in ", "Resource NodesReady is in "
	for _, c := range []struct {
		message           string
		notWaiting, final bool
	}{
		{stack + "CREATE_COMPLETE state and cannot be signaled", true, true},
		{stack + "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS state and cannot be signaled", true, true},
		{resource + "CREATE_COMPLETE state and cannot be signaled", true, true},
		{resource + "UPDATE_IN_PROGRESS state and cannot be signaled", true, false},
		{resource + "CREATE_PENDING state and cannot be signaled.", true, false},
		{resource + "CREATE_FAILED state and can not be signaled", true, true},
		{"Resource NodesReady is not in CREATE_IN_PROGRESS", true, false},
		{"something that nobody has seen", true, false},
		{"Resource NodesReady does not exist for stack prod", true, false},
		{"Stack 'prod' does not exist", false, false},
	} {
		refused := &smithy.GenericAPIError{Code: "ValidationError", Message: c.message}
		message, final := refusalOf(fmt.Errorf("signal: %w", refused))
		if (message != "") != c.notWaiting || final != c.final {
			t.Errorf("%q: not waiting %v, final %v; want %v, %v",
				c.message, message != "", final, c.notWaiting, c.final)
		}
		denied := &smithy.GenericAPIError{Code: "AccessDenied", Message: c.message}
		if message, _ := refusalOf(denied); message != "" {
			t.Errorf("AccessDenied %q counts as a resource that does not wait", c.message)
		}
	}
}
