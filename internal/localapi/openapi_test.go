package localapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"maps"
	"math"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// openAPI is what the tests read of docs/openapi.yaml.
type openAPI struct {
	Paths      map[string]pathItem
	Components struct {
		Responses map[string]*response
		Schemas   map[string]*schema
	}
}

type pathItem struct {
	Servers    []any                // set where the file's own servers do not hold: socket only
	Operations map[string]operation `yaml:",inline"` // by method, lower case
}

type operation struct {
	Responses map[string]*response // by status
}

type response struct {
	Ref     string `yaml:"$ref"`
	Headers map[string]any
	Content map[string]struct{ Schema *schema } // by media type
}

type schema struct {
	Ref                  string `yaml:"$ref"`
	Type                 string
	Enum                 []any
	Required             []string
	Properties           map[string]*schema
	AdditionalProperties yaml.Node `yaml:"additionalProperties"` // true, or a schema
	Items                *schema
}

func readOpenAPI(t *testing.T) *openAPI {
	t.Helper()
	text, err := os.ReadFile("../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec := new(openAPI)
	if err := yaml.Unmarshal(text, spec); err != nil {
		t.Fatal(err)
	}
	if len(spec.Paths) == 0 {
		t.Fatal("docs/openapi.yaml describes nothing")
	}
	return spec
}

// response follows a reference.
func (o *openAPI) response(r *response) *response {
	if r != nil && r.Ref != "" {
		return o.Components.Responses[strings.TrimPrefix(r.Ref, "#/components/responses/")]
	}
	return r
}

// check returns how v, decoded JSON, differs from s in type, enum, and required fields. A field that s does not name
// differs too, although clients are to ignore it: the description would have fallen behind.
func (o *openAPI) check(s *schema, at string, v any) (wrong []string) {
	if s == nil {
		return []string{at + ": no such schema"}
	}
	if s.Ref != "" {
		return o.check(o.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")], at, v)
	}
	kind := fmt.Sprintf("%T", v)
	switch v := v.(type) {
	case map[string]any:
		kind = "object"
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				wrong = append(wrong, fmt.Sprintf("%s: required %q is missing", at, name))
			}
		}
		for name, value := range v {
			field := s.Properties[name]
			if field == nil {
				if s.AdditionalProperties.Value == "true" {
					continue
				}
				if s.AdditionalProperties.Kind == yaml.MappingNode && s.AdditionalProperties.Decode(&field) != nil || field == nil {
					wrong = append(wrong, fmt.Sprintf("%s: %q is not described", at, name))
					continue
				}
			}
			wrong = append(wrong, o.check(field, at+"."+name, value)...)
		}
	case []any:
		kind = "array"
		for i, item := range v {
			wrong = append(wrong, o.check(s.Items, fmt.Sprintf("%s[%d]", at, i), item)...)
		}
	case string:
		kind = "string"
	case bool:
		kind = "boolean"
	case float64:
		if kind = "number"; v == math.Trunc(v) && s.Type == "integer" {
			kind = "integer"
		}
	case nil:
		kind = "null"
	}
	if kind != s.Type {
		wrong = append(wrong, fmt.Sprintf("%s is of type %s, want %q", at, kind, s.Type))
	}
	if s.Enum != nil && !slices.Contains(s.Enum, v) {
		wrong = append(wrong, fmt.Sprintf("%s is %v, want one of %v", at, v, s.Enum))
	}
	return wrong
}

// api is a server whose answers have every field set, and can be told to fail.
type api struct {
	*node
	alive, evidence, refresh, gather error
	health                           string
	status                           any
}

func newAPI(t *testing.T) *api {
	t.Helper()
	dir, err := os.MkdirTemp("", "la") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	n := &api{node: &node{t: t, socket: filepath.Join(dir, "s")}}
	n.mend()
	socket, err := net.Listen("unix", n.socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.tcp = tcp.Addr().String()
	now := time.Unix(1780000000, 0).UTC()
	secret := client.SecretStatus{Name: "node", State: client.SecretHeld, Published: "1", Version: "2", Pending: "3", LastChecked: now, NextCheck: now, HeldUntil: now, Error: "held"}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collector(func() error { return n.gather }))
	server := localapi.New(localapi.Config{
		Version: "v1",
		Alive:   func(time.Time) error { return n.alive },
		Health: func(time.Time) *localapi.Health {
			h := new(localapi.Health)
			h.Add("x", localapi.Check{Status: n.health, ComponentID: "y", Time: now, Output: "reason"})
			return h
		},
		Status: func(time.Time) any { return n.status },
		Certificates: func() any {
			return certificates{Path: "/run/sevagent/mtls", Generation: "g1", PublishedAt: now, Certificates: []client.Certificate{
				{File: "client.pem", Subject: "CN=node", SANs: []string{"DNS:node"}, Issuer: "CN=ca", Serial: "1", NotBefore: now, NotAfter: now, SHA256: "00", SPKISHA256: "00", Secret: "node", Version: "1"},
			}}
		},
		Evidence: func(_ context.Context, c evidence.Claims) (*evidence.Document, *appraise.Verdict, error) {
			if n.evidence != nil {
				return nil, nil, n.evidence
			}
			c.Caller.ContainerID, c.Caller.TaskARN = "c0", "arn:aws:ecs:us-east-2:111122223333:task/prod/0"
			v := &appraise.Verdict{Status: appraise.Warned, Code: appraise.CodePolicyRejected, Reason: "r", Policy: "aws-shared", Roots: appraise.RootsCustom, Signer: "VLEK", CSPID: "c", NotAfter: now,
				Rules: []appraise.RuleResult{{Rule: "vmpl", Mode: appraise.Warn, Status: appraise.Warned, Observed: "1", Required: "at most 0"}}}
			doc, err := evidence.Build(c, 0, make([][evidence.Size]byte, 1), make([]byte, 1184), [][]byte{[]byte("certificate")}, v, now)
			return doc, v, err
		},
		BoundKey: func(kind string) ([]byte, bool) { return make([]byte, 32), kind == "client" },
		Refresh: func(context.Context) (any, error) {
			return client.Refresh{Changed: true, Generation: "g2", Previous: "g1", Secrets: []client.SecretStatus{secret}}, n.refresh
		},
		Metrics: metrics,
		Log:     slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, socket, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		os.RemoveAll(dir)
	})
	return n
}

// mend takes back what n was told to fail with.
func (n *api) mend() {
	n.alive, n.evidence, n.refresh, n.gather = nil, nil, nil, nil
	n.health, n.status = localapi.StatusPass, map[string]any{"version": "v1"}
}

// collector has one metric, which cannot be had while it returns an error.
type collector func() error

var metric = prometheus.NewDesc("sevagent_up", "One.", nil, nil)

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- metric }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	if err := c(); err != nil {
		ch <- prometheus.NewInvalidMetric(metric, err)
		return
	}
	ch <- prometheus.MustNewConstMetric(metric, prometheus.GaugeValue, 1)
}

// certificates is the answer of /v1/certificates as package agent makes it.
type certificates struct {
	Path         string               `json:"path"`
	Generation   string               `json:"generation,omitempty"`
	PublishedAt  time.Time            `json:"published_at,omitzero"`
	Certificates []client.Certificate `json:"certificates"`
}

// TestOpenAPIAnswers: what the server answers is described, and what is described can be had from the server.
func TestOpenAPIAnswers(t *testing.T) {
	spec := readOpenAPI(t)
	n := newAPI(t)
	foreign := []string{"Host", "evil.example.com"}
	body := "{" + nonce + "}"
	broken := errors.New("broken")
	provoked := make(map[string]bool)
	for _, c := range []struct {
		network, method, path, body string
		header                      []string
		tell                        func()
		status                      int
	}{
		{"unix", "GET", "/", "", nil, nil, 200},
		{"tcp", "GET", "/", "", nil, nil, 200},
		{"tcp", "GET", "/", "", foreign, nil, 403},
		{"unix", "GET", "/", "", nil, func() { n.status = make(chan int) }, 500},
		{"unix", "GET", "/healthz", "", nil, nil, 200},
		{"tcp", "GET", "/healthz", "", foreign, nil, 403},
		{"tcp", "GET", "/healthz", "", nil, func() { n.alive = broken }, 503},
		{"unix", "GET", "/readyz", "", nil, nil, 200},
		{"tcp", "GET", "/readyz", "", nil, func() { n.health = localapi.StatusWarn }, 200},
		{"tcp", "GET", "/readyz", "", foreign, nil, 403},
		{"tcp", "GET", "/readyz", "", nil, func() { n.health = localapi.StatusFail }, 503},
		{"unix", "GET", "/metrics", "", nil, nil, 200},
		{"tcp", "GET", "/metrics", "", []string{"Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}, nil, 200},
		{"tcp", "GET", "/metrics", "", []string{"Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"}, nil, 200},
		{"tcp", "GET", "/metrics", "", foreign, nil, 403},
		{"tcp", "GET", "/metrics", "", nil, func() { n.gather = broken }, 500},
		{"unix", "GET", "/v1/status", "", nil, nil, 200},
		{"tcp", "GET", "/v1/status", "", []string{"Origin", "http://evil.example.com"}, nil, 403},
		{"unix", "GET", "/v1/certificates", "", nil, nil, 200},
		{"tcp", "GET", "/v1/certificates", "", foreign, nil, 403},

		{"unix", "POST", "/v1/evidence", body, nil, nil, 200},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "client"}`, nil, nil, 200},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "none"}`, nil, nil, 200},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": ""}`, nil, nil, 200},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "server"}`, nil, nil, 409},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "peer"}`, nil, nil, 400},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "more": ""}`, nil, nil, 400},
		{"unix", "POST", "/v1/evidence", `{"nonce": "` + strings.Repeat("A", 87) + `"}`, nil, nil, 400},
		{"unix", "POST", "/v1/evidence", `{}`, nil, nil, 400},
		{"unix", "POST", "/v1/evidence", strings.Repeat(" ", 5000), nil, nil, 413},
		{"tcp", "POST", "/v1/evidence", body, nil, nil, 403},
		{"tcp", "POST", "/v1/evidence", body, foreign, nil, 403},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = attest.ErrQueueFull }, 429},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = attest.ErrVMPCKDisabled }, 503},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = &attest.FirmwareError{Status: 0x16} }, 503},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = broken }, 503},
		{"unix", "POST", "/v1/refresh", "", nil, nil, 200},
		{"tcp", "POST", "/v1/refresh", "", nil, nil, 403},
		{"unix", "POST", "/v1/refresh", "", nil, func() { n.refresh = broken }, 503},

		{"unix", "GET", "/v1", "", nil, nil, 404},
		{"tcp", "POST", "/v1/evidence/", body, nil, nil, 404},
		{"unix", "GET", "/v1/refresh", "", nil, nil, 405},
		{"tcp", "POST", "/v1/status", "", nil, nil, 405},
	} {
		if n.mend(); c.tell != nil {
			c.tell()
		}
		got := n.do(c.network, c.method, c.path, c.body, c.header...)
		name := fmt.Sprintf("%s %s %d", c.method, c.path, got.status)
		media, _, err := mime.ParseMediaType(got.header.Get("Content-Type"))
		if err != nil || got.status != c.status {
			t.Errorf("%s (want %d): %v, %q", name, c.status, err, got.body)
			continue
		}
		op, isOperation := spec.Paths[c.path].Operations[strings.ToLower(c.method)]
		described := spec.response(op.Responses[strconv.Itoa(got.status)])
		if !isOperation {
			described = map[int]*response{404: spec.Components.Responses["NotFound"], 405: spec.Components.Responses["MethodNotAllowed"]}[got.status]
		}
		if described == nil {
			t.Errorf("%s is not described", name)
			continue
		}
		content, ok := described.Content[media]
		if !ok {
			t.Errorf("%s: %s is not described", name, media)
			continue
		}
		provoked[name+" "+media] = true
		for _, header := range []string{"Retry-After", "Allow"} {
			if _, want := described.Headers[header]; want != (got.header.Get(header) != "") {
				t.Errorf("%s: %s is %q, described: %v", name, header, got.header.Get(header), want)
			}
		}
		if strings.HasSuffix(media, "json") {
			var v any
			if err := json.Unmarshal([]byte(got.body), &v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, wrong := range spec.check(content.Schema, name, v) {
				t.Error(wrong)
			}
		}
	}
	for path, item := range spec.Paths {
		for method, op := range item.Operations {
			for status, r := range op.Responses {
				r = spec.response(r)
				if r == nil || len(r.Content) == 0 {
					t.Errorf("%s %s %s: no content is described", method, path, status)
					continue
				}
				for media := range r.Content {
					if name := fmt.Sprintf("%s %s %s %s", strings.ToUpper(method), path, status, media); !provoked[name] {
						t.Errorf("%s is described, and no request here is answered so", name)
					}
				}
			}
		}
	}
}

// TestOpenAPIRoutes: the routes of the source are those of the file, and the server takes these and no others.
func TestOpenAPIRoutes(t *testing.T) {
	spec := readOpenAPI(t)
	var described []string
	n := newAPI(t)
	for path, item := range spec.Paths {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
			_, ok := item.Operations[strings.ToLower(method)]
			if ok {
				described = append(described, method+" "+path)
			}
			if method == "HEAD" {
				_, ok = item.Operations["get"]
			}
			for _, network := range []string{"unix", "tcp"} {
				got := n.do(network, method, path, "{"+nonce+"}").status
				want := http.StatusMethodNotAllowed
				if ok {
					want = http.StatusOK
				}
				if network == "tcp" && item.Servers != nil {
					want = http.StatusForbidden
				}
				if got != want {
					t.Errorf("%s %s %s: %d, want %d", network, method, path, got, want)
				}
			}
		}
	}
	slices.Sort(described)
	var served []string
	for _, file := range sources(t, ".") {
		ast.Inspect(file, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && len(call.Args) == 2 {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Handle" || f.Sel.Name == "HandleFunc") {
					served = append(served, strings.TrimSuffix(text(t, call.Args[0]), "{$}"))
				}
			}
			return true
		})
	}
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("docs/openapi.yaml describes %q, the source serves %q", described, served)
	}
}

// TestOpenAPISchemas: the schemas have the fields of the Go types, and require those that are never left out.
func TestOpenAPISchemas(t *testing.T) {
	spec := readOpenAPI(t)
	for name, v := range map[string]any{
		"Problem": localapi.Problem{}, "Health": localapi.Health{}, "Check": localapi.Check{},
		"Evidence": evidence.Document{}, "Binding": evidence.Binding{}, "Caller": evidence.Caller{}, "Batch": evidence.Batch{},
		"Verdict": appraise.Verdict{}, "RuleResult": appraise.RuleResult{},
		"Certificates": certificates{}, "Certificate": client.Certificate{}, "Refresh": client.Refresh{}, "SecretStatus": client.SecretStatus{},
	} {
		s := spec.Components.Schemas[name]
		if s == nil {
			t.Errorf("no schema %s", name)
			continue
		}
		var fields, required []string
		for f := range reflect.TypeOf(v).Fields() {
			field, option, _ := strings.Cut(f.Tag.Get("json"), ",")
			if field == "" || field == "-" {
				continue
			}
			fields = append(fields, field)
			if option == "" {
				required = append(required, field)
			}
		}
		slices.Sort(fields)
		if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, fields) {
			t.Errorf("schema %s has %q, %T has %q", name, got, v, fields)
		}
		slices.Sort(required)
		if got := slices.Sorted(slices.Values(s.Required)); !slices.Equal(got, required) {
			t.Errorf("schema %s requires %q, %T always has %q", name, got, v, required)
		}
	}
}

// TestProblemCodes: the codes of the source, of docs/openapi.yaml and of docs/api.md are the same.
func TestProblemCodes(t *testing.T) {
	codes := make(map[string]bool)
	for _, file := range sources(t, ".") {
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.Ident); ok && f.Name == "problem" {
				if _, ok := call.Args[1].(*ast.CallExpr); !ok { // attest.Code: below
					codes[text(t, call.Args[1])] = true
				}
			}
			return true
		})
	}
	attestCodes(t, codes)
	verdictCodes(t, codes)
	// Never a problem: such evidence is served, with that as its verdict.
	if delete(codes, appraise.CodeUnsupportedVersion); len(codes) < 20 {
		t.Fatalf("the source has %d codes: this test does not understand it any more", len(codes))
	}
	want := slices.Sorted(maps.Keys(codes))

	var enum []string
	for _, v := range readOpenAPI(t).Components.Schemas["ProblemCode"].Enum {
		enum = append(enum, fmt.Sprint(v))
	}
	if slices.Sort(enum); !slices.Equal(enum, want) {
		t.Errorf("docs/openapi.yaml lists %q, the source has %q", enum, want)
	}

	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "## Errors\n")
	if !ok {
		t.Fatal("docs/api.md has no section on errors")
	}
	var table []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[1], -1) {
				table = append(table, m[1])
			}
		}
	}
	if slices.Sort(table); !slices.Equal(table, want) {
		t.Errorf("docs/api.md lists %q, the source has %q", table, want)
	}
}

// attestCodes adds what attest.Code can return: the second field of each of kinds, and its own literals.
func attestCodes(t *testing.T, codes map[string]bool) {
	t.Helper()
	ast.Inspect(source(t, "../attest/errors.go"), func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.ValueSpec:
			if node.Names[0].Name == "kinds" {
				for _, e := range node.Values[0].(*ast.CompositeLit).Elts {
					codes[text(t, e.(*ast.CompositeLit).Elts[1])] = true
				}
			}
		case *ast.FuncDecl:
			if node.Name.Name != "Code" {
				return false
			}
		case *ast.ReturnStmt:
			if lit, ok := node.Results[0].(*ast.BasicLit); ok {
				codes[text(t, lit)] = true
			}
		}
		return true
	})
}

// verdictCodes adds the constants of a verdict's codes; one may be string(another constant).
func verdictCodes(t *testing.T, codes map[string]bool) {
	t.Helper()
	constants := make(map[string]ast.Expr)
	ast.Inspect(source(t, "../appraise/verdict.go"), func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			constants[spec.Names[0].Name] = spec.Values[0]
		}
		return true
	})
	for name, value := range constants {
		if strings.HasPrefix(name, "Code") {
			if conversion, ok := value.(*ast.CallExpr); ok {
				value = constants[conversion.Args[0].(*ast.Ident).Name]
			}
			codes[text(t, value)] = true
		}
	}
}

func source(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// sources returns the files of a package without its tests.
func sources(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if !strings.HasSuffix(path, "_test.go") {
			files = append(files, source(t, path))
		}
	}
	return files
}

// text returns the value of a string literal; anything else is more than these tests understand.
func text(t *testing.T, e ast.Expr) string {
	t.Helper()
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		t.Fatalf("%T where the test expects a string literal", e)
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
