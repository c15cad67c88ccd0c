package simaws

import (
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// CloudFormation is the part of the service that a node uses: an http.Handler that speaks AWS Query and knows the
// operation SignalResource. The zero value with Region and AccountID set is ready to serve; SetStack makes stacks.
type CloudFormation struct {
	Region, AccountID string

	place   sync.Mutex // guards Region once it serves
	mu      sync.Mutex
	stacks  map[string]*stack // by name
	signals []Signal
	fault   string
	failing int // calls that still fail; 0: all
}

// Signal is one that was accepted.
type Signal struct{ Stack, Resource, Status, UniqueID string }

type stack struct {
	state     string
	resources map[string]string // state by logical ID
	waiting   map[string]bool   // for signals, by logical ID
}

// SetStack makes a stack, or gives it a state such as CREATE_IN_PROGRESS.
func (s *CloudFormation) SetStack(name, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stacks == nil {
		s.stacks = make(map[string]*stack)
	}
	if s.stacks[name] == nil {
		s.stacks[name] = &stack{resources: make(map[string]string), waiting: make(map[string]bool)}
	}
	s.stacks[name].state = state
}

// SetResource sets the state of a stack's resource, and whether it waits for signals.
func (s *CloudFormation) SetResource(stack, logicalID, state string, waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stacks[stack].resources[logicalID] = state
	s.stacks[stack].waiting[logicalID] = waits
}

// Signals returns the accepted ones, in order. One that repeats another's resource and unique ID changes nothing.
func (s *CloudFormation) Signals() []Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.signals)
}

// Fail makes the next calls fail, all of them if calls is 0, with an error code such as Throttling or AccessDenied, or
// with an HTTP status such as "503"; code "": none.
func (s *CloudFormation) Fail(code string, calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.failing = code, calls
}

// Move puts all stacks into another region.
func (s *CloudFormation) Move(region string) {
	s.place.Lock()
	defer s.place.Unlock()
	s.Region = region
}

// StackID returns the ID of a stack.
func (s *CloudFormation) StackID(name string) string {
	s.place.Lock()
	defer s.place.Unlock()
	const suffix = "11111111-2222-3333-4444-555555555555"
	return Instance{Region: s.Region, AccountID: s.AccountID}.ARN("cloudformation", "stack/"+name+"/"+suffix)
}

// ServeHTTP implements http.Handler.
func (s *CloudFormation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	err := r.ParseForm()
	if err == nil {
		err = s.serve(r.PostForm, authorized(r.Header, "cloudformation"))
	}
	w.Header().Set("Content-Type", "text/xml")
	id := newUUID()
	if err == nil {
		fmt.Fprintf(w, `<SignalResourceResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/">`+
			`<ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></SignalResourceResponse>`, id)
		return
	}
	refusal, ok := err.(*apiError)
	if !ok {
		refusal = &apiError{"MalformedQueryString", err.Error()}
	}
	status, body := writeStatus(w, refusal.code)
	if !body {
		return
	}
	kind := "Sender"
	if status >= 500 {
		kind = "Receiver"
	}
	var message strings.Builder
	xml.EscapeText(&message, []byte(refusal.message))
	fmt.Fprintf(w, `<ErrorResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><Error>`+
		`<Type>%s</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`,
		kind, refusal.code, message.String(), id)
}

func (s *CloudFormation) serve(form url.Values, authorized bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := Signal{form.Get("StackName"), form.Get("LogicalResourceId"), form.Get("Status"), form.Get("UniqueId")}
	if !authorized {
		return &apiError{"InvalidClientTokenId", "The security token included in the request is invalid."}
	}
	if code := s.fault; code != "" {
		if s.failing--; s.failing == 0 {
			s.fault = ""
		}
		switch code {
		case "Throttling":
			return &apiError{code, "Rate exceeded"}
		case "AccessDenied":
			return &apiError{code, fmt.Sprintf("User: arn:aws:sts::%s:assumed-role/node/i-0123456789abcdef0 is not "+
				"authorized to perform: cloudformation:SignalResource on resource: %s", s.AccountID, in.Stack)}
		}
		return &apiError{code, "simulated"}
	}
	if action := form.Get("Action"); action != "SignalResource" {
		return &apiError{"InvalidAction", action + " is not simulated"}
	}
	return s.signal(in)
}

func (s *CloudFormation) signal(in Signal) error {
	refuse := func(format string, args ...any) error {
		return &apiError{"ValidationError", fmt.Sprintf(format, args...)}
	}
	if n := utf8.RuneCountInString(in.UniqueID); n < 1 || n > 64 {
		return refuse("1 validation error detected: Value '%s' at 'uniqueId' failed to satisfy constraint: "+
			"Member must have length between 1 and 64", in.UniqueID)
	}
	if in.Status != "SUCCESS" && in.Status != "FAILURE" {
		return refuse("1 validation error detected: Value '%s' at 'status' failed to satisfy constraint: "+
			"Member must satisfy enum value set: [SUCCESS, FAILURE]", in.Status)
	}
	for name := range maps.Keys(s.stacks) {
		if in.Stack == s.StackID(name) {
			in.Stack = name
		}
	}
	st := s.stacks[in.Stack]
	if st == nil {
		return refuse("Stack '%s' does not exist", in.Stack)
	}
	if !strings.HasSuffix(st.state, "_IN_PROGRESS") {
		return refuse("Stack %s is in %s state and cannot be signaled", s.StackID(in.Stack), st.state)
	}
	state, ok := st.resources[in.Resource]
	if !ok {
		return refuse("Resource %s does not exist for stack %s", in.Resource, in.Stack)
	}
	if !st.waiting[in.Resource] {
		return refuse("Resource %s is in %s state and cannot be signaled", in.Resource, state)
	}
	same := func(t Signal) bool { return t.Resource == in.Resource && t.UniqueID == in.UniqueID }
	if !slices.ContainsFunc(s.signals, same) {
		s.signals = append(s.signals, in)
	}
	return nil
}
