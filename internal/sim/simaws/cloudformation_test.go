package simaws_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation/types"
	"github.com/aws/smithy-go"

	"sevagent/internal/sim/simaws"
)

// TestSignalResource: the real SDK, with the role's credentials, understands the simulated CloudFormation.
func TestSignalResource(t *testing.T) {
	metadata, _, cfg := node(t)
	service := &simaws.CloudFormation{Region: metadata.Instance.Region, AccountID: metadata.Instance.AccountID}
	server := httptest.NewServer(service)
	defer server.Close()
	api := cloudformation.NewFromConfig(cfg, func(o *cloudformation.Options) {
		o.BaseEndpoint, o.RetryMaxAttempts = &server.URL, 1
	})
	signal := func(stack, resource, id string) error {
		_, err := api.SignalResource(context.Background(), &cloudformation.SignalResourceInput{
			StackName: &stack, LogicalResourceId: &resource, UniqueId: &id, Status: types.ResourceSignalStatusSuccess})
		return err
	}
	service.SetStack("prod", "CREATE_IN_PROGRESS")
	service.SetResource("prod", "Ready", "CREATE_IN_PROGRESS", true)
	service.SetResource("prod", "Group", "CREATE_COMPLETE", false)
	service.SetStack("old", "CREATE_COMPLETE")
	for _, c := range []struct{ stack, resource, id, message string }{
		{"prod", "Ready", "i-1", ""},
		{service.StackID("prod"), "Ready", "i-2", ""},
		{"prod", "Ready", "i-1", ""}, // again: changes nothing
		{"prod", "Group", "i-1", "Resource Group is in CREATE_COMPLETE state and cannot be signaled"},
		{"prod", "Other", "i-1", "Resource Other does not exist for stack prod"},
		{"old", "Ready", "i-1", "Stack " + service.StackID("old") + " is in CREATE_COMPLETE state and cannot be signaled"},
		{"none", "Ready", "i-1", "Stack 'none' does not exist"},
		{"prod", "Ready", strings.Repeat("x", 65), "1 validation error detected: Value '" +
			strings.Repeat("x", 65) + "' at 'uniqueId' failed to satisfy constraint: Member must have length between 1 and 64"},
	} {
		err := signal(c.stack, c.resource, c.id)
		if c.message == "" {
			if err != nil {
				t.Errorf("%s of %s: %v", c.resource, c.stack, err)
			}
			continue
		}
		if api, ok := errors.AsType[smithy.APIError](err); !ok || api.ErrorCode() != "ValidationError" ||
			api.ErrorMessage() != c.message {
			t.Errorf("%s of %s: %v, want ValidationError: %s", c.resource, c.stack, err, c.message)
		}
	}
	want := []simaws.Signal{{Stack: "prod", Resource: "Ready", Status: "SUCCESS", UniqueID: "i-1"},
		{Stack: "prod", Resource: "Ready", Status: "SUCCESS", UniqueID: "i-2"}}
	if got := service.Signals(); !slices.Equal(got, want) {
		t.Errorf("signals are %v, want %v", got, want)
	}
	for _, fault := range []string{"Throttling", "AccessDenied"} {
		service.Fail(fault, 1)
		if err := signal("prod", "Ready", "i-3"); code(err) != fault {
			t.Errorf("a signal fails with %v, want %s", err, fault)
		}
	}
	if err := signal("prod", "Ready", "i-3"); err != nil {
		t.Errorf("after the faults: %v", err)
	}
}
