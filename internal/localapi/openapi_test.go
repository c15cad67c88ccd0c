package localapi

import (
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
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

	"go.yaml.in/yaml/v3"

	"sevagent/client"
	"sevagent/internal/appraise"
	"sevagent/internal/attest"
	"sevagent/internal/must"
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
	text := must.Get(os.ReadFile("../../docs/openapi.yaml"))(t, "read the API's description")
	spec := new(openAPI)
	must.Do(t, yaml.Unmarshal(text, spec), "parse docs/openapi.yaml")
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

// TestRequests: every request gets the response that docs/openapi.yaml describes, and the server can give every
// response that is described there.
func TestRequests(t *testing.T) {
	spec := readOpenAPI(t)
	n := newNode(t, nil)
	foreign := []string{"Host", "evil.example.com"}
	body := "{" + nonce + "}"
	broken := errors.New("broken")
	provoked := make(map[string]bool)
	for _, c := range []struct {
		network, method, path, body string
		header                      []string
		prepare                     func()
		status                      int
		code                        string
	}{
		{"unix", "GET", "/", "", nil, nil, 200, ""},
		{"tcp", "GET", "/", "", nil, nil, 200, ""},
		{"tcp", "GET", "/", "", foreign, nil, 403, "foreign_host"},
		{"unix", "GET", "/healthz", "", nil, nil, 200, ""},
		{"tcp", "GET", "/healthz", "", nil, nil, 200, ""},
		{"tcp", "GET", "/healthz", "", foreign, nil, 403, "foreign_host"},
		{"tcp", "GET", "/healthz", "", nil, func() { n.alive = broken }, 503, "stuck"},
		{"unix", "GET", "/readyz", "", nil, nil, 200, ""},
		{"tcp", "GET", "/readyz", "", nil, func() { n.health = client.Warn }, 200, ""},
		{"tcp", "GET", "/readyz", "", foreign, nil, 403, "foreign_host"},
		{"tcp", "GET", "/readyz", "", nil, func() { n.health = client.Fail }, 503, ""},
		{"unix", "GET", "/metrics", "", nil, nil, 200, ""},
		{"tcp", "GET", "/metrics", "", []string{"Accept",
			"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}, nil, 200, ""},
		{"tcp", "GET", "/metrics", "", []string{"Accept",
			"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain;q=0.1"},
			nil, 200, ""},
		{"tcp", "GET", "/metrics", "", foreign, nil, 403, "foreign_host"},
		{"unix", "GET", "/v1/status", "", nil, nil, 200, ""},
		{"tcp", "GET", "/v1/status", "", []string{"Origin", "http://localhost:9180"}, nil, 200, ""},
		{"tcp", "GET", "/v1/status", "", foreign, nil, 403, "foreign_host"},
		{"tcp", "GET", "/v1/status", "", []string{"Origin", "http://evil.example.com"}, nil, 403, "foreign_host"},
		{"tcp", "GET", "/v1/status", "", []string{"Origin", "null"}, nil, 403, "foreign_host"},
		{"unix", "GET", "/v1/events", "", nil, nil, 200, ""},
		{"tcp", "GET", "/v1/events", "", nil, nil, 200, ""},
		{"tcp", "GET", "/v1/events", "", foreign, nil, 403, "foreign_host"},
		{"tcp", "GET", "/v1/events", "", nil, n.fill, 503, "too_many_connections"},
		{"unix", "GET", "/v1/certificates", "", nil, nil, 200, ""},
		{"tcp", "GET", "/v1/certificates", "", foreign, nil, 403, "foreign_host"},

		{"unix", "POST", "/v1/evidence", body, nil, nil, 200, ""},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "client"}`, nil, nil, 200, ""},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "none"}`, nil, nil, 200, ""},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": ""}`, nil, nil, 200, ""},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "server"}`, nil, nil, 409, "no_certificate"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "peer"}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "report_data": "00"}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + "}{}", nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "NONCE": "` + strings.Repeat("A", 22) + `"}`,
			nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + strings.Replace(nonce, "nonce", "Nonce", 1) + "}",
			nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + "," + nonce + "}", nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": "none", "bind": "client"}`,
			nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + nonce + `, "bind": null}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + strings.Replace(nonce, "AAEC", `AAEC\n`, 1) + "}",
			nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "{" + strings.Replace(nonce, `Dw"`, `Dx"`, 1) + "}",
			nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", `{"nonce": "AAECAwQFBgcICQoLDA0O"}`, nil, nil, 400, "bad_request"}, // 15 bytes
		{"unix", "POST", "/v1/evidence", `{"nonce": "` + strings.Repeat("A", 87) + `"}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", `{"nonce": "+++++++++++++++++++++w=="}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", `{}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", "", nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/evidence", strings.Repeat(" ", 5000), nil, nil, 413, "bad_request"},
		{"tcp", "POST", "/v1/evidence", body, nil, nil, 403, "socket_only"},
		{"tcp", "POST", "/v1/evidence", body, foreign, nil, 403, "foreign_host"},
		{"unix", "POST", "/v1/evidence", body, nil,
			func() { n.evidence = fmt.Errorf("ask: %w", attest.ErrQueueFull) }, 429, "queue_full"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = attest.ErrNoDevice }, 503, "device_missing"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = attest.ErrThrottled }, 503, "throttled"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = attest.ErrVMPCKDisabled },
			503, "vmpck_disabled"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = &attest.FirmwareError{Status: 0x27} },
			503, "firmware_error"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = context.DeadlineExceeded }, 503, "deadline"},
		{"unix", "POST", "/v1/evidence", body, nil,
			func() { n.evidence = &appraise.Rejection{Code: "policy_rejected"} }, 503, "policy_rejected"},
		{"unix", "POST", "/v1/evidence", body, nil, func() { n.evidence = broken }, 503, "attestation_failed"},
		{"unix", "POST", "/v1/refresh", "", nil, nil, 200, ""},
		{"unix", "POST", "/v1/refresh", "{}", nil, nil, 200, ""},
		{"unix", "POST", "/v1/refresh", `{"renew": "node"}`, nil, nil, 200, ""},
		{"unix", "POST", "/v1/refresh", `{"renew": "other"}`, nil, nil, 400, "bad_request"},
		{"unix", "POST", "/v1/refresh", `{"name": "node"}`, nil, nil, 400, "bad_request"},
		{"tcp", "POST", "/v1/refresh", "", nil, nil, 403, "socket_only"},
		{"unix", "POST", "/v1/refresh", "", nil, func() { n.refresh = broken }, 503, "refresh_failed"},

		{"unix", "GET", "/v1", "", nil, nil, 404, "not_found"},
		{"unix", "GET", "/v1/../../etc/passwd", "", nil, nil, 404, "not_found"},
		{"tcp", "POST", "/v1/evidence/", body, nil, nil, 404, "not_found"},
		{"unix", "GET", "/v1/refresh", "", nil, nil, 405, "method_not_allowed"},
		{"tcp", "POST", "/v1/status", "", nil, nil, 405, "method_not_allowed"},
		{"tcp", "DELETE", "/v1/status", "", nil, nil, 405, "method_not_allowed"},
	} {
		if n.repair(); c.prepare != nil {
			c.prepare()
		}
		got := n.do(c.network, c.method, c.path, c.body, c.header...)
		name := fmt.Sprintf("%s %s %d", c.method, c.path, got.status)
		media, _, err := mime.ParseMediaType(got.header.Get("Content-Type"))
		if err != nil || got.status != c.status || c.code != "" && got.code() != c.code {
			t.Errorf("%s %.100q: %d %q (%v), want %d %q", name, c.body, got.status, got.body, err, c.status, c.code)
			continue
		}
		op, isOperation := spec.Paths[c.path].Operations[strings.ToLower(c.method)]
		described := spec.response(op.Responses[strconv.Itoa(got.status)])
		if !isOperation {
			name := map[int]string{404: "NotFound", 405: "MethodNotAllowed"}[got.status]
			described = spec.Components.Responses[name]
		}
		if described == nil {
			t.Errorf("%s is not described", name)
			continue
		}
		if _, ok := described.Content[media]; !ok {
			t.Errorf("%s: %s is not described", name, media)
			continue
		}
		if c.code != "" && media != "application/problem+json" {
			t.Errorf("%s: an error as %s", name, media)
		}
		provoked[name+" "+media] = true
		for _, header := range []string{"Retry-After", "Allow"} {
			if _, want := described.Headers[header]; want != (got.header.Get(header) != "") {
				t.Errorf("%s: %s is %q, described: %v", name, header, got.header.Get(header), want)
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
					name := fmt.Sprintf("%s %s %s %s", strings.ToUpper(method), path, status, media)
					if !provoked[name] {
						t.Errorf("%s is described, but no request here provokes it", name)
					}
				}
			}
		}
	}
}

// TestOpenAPIRoutes: the source has the routes of the file, and the server accepts these and no others.
func TestOpenAPIRoutes(t *testing.T) {
	spec := readOpenAPI(t)
	var described []string
	n := newNode(t, nil)
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
				body := "{" + nonce + "}"
				if path == "/v1/refresh" {
					body = ""
				}
				got := n.do(network, method, path, body).status
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
	for _, pattern := range found(t, "*.go", `\.Handle(?:Func)?\("([^"]+)"`) {
		served = append(served, strings.TrimSuffix(pattern, "{$}"))
	}
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("docs/openapi.yaml describes %q, the source serves %q", described, served)
	}
}

// TestOpenAPISchemas: the schemas have the fields of the Go types that package client gives to callers, all the way
// down, and require those that are never left out.
func TestOpenAPISchemas(t *testing.T) {
	spec := readOpenAPI(t)
	seen := make(map[string]bool)
	var check func(at string, s *schema, typ reflect.Type)
	check = func(at string, s *schema, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if s == nil {
			t.Errorf("%s: no schema for %v", at, typ)
			return
		}
		if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
			if seen[name+typ.String()] {
				return
			}
			seen[name+typ.String()] = true
			check(name, spec.Components.Schemas[name], typ)
			return
		}
		want := ""
		switch {
		case typ == reflect.TypeFor[json.RawMessage]():
			want = "object"
		case typ == reflect.TypeFor[time.Time](), typ == reflect.TypeFor[[]byte](),
			typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
			want = "string"
		case typ.Kind() == reflect.Struct:
			want = "object"
			checkFields(t, at, s, typ, check)
		case typ.Kind() == reflect.Slice:
			want = "array"
			check(at+"[]", s.Items, typ.Elem())
		case typ.Kind() == reflect.Map:
			want = "object"
			each := new(schema)
			if err := s.AdditionalProperties.Decode(each); err != nil {
				t.Errorf("%s: the schema of its values: %v", at, err)
				return
			}
			check(at+"{}", each, typ.Elem())
		default:
			kinds := map[reflect.Kind]string{reflect.String: "string",
				reflect.Bool: "boolean", reflect.Float64: "number"}
			if want = kinds[typ.Kind()]; want == "" && typ.ConvertibleTo(reflect.TypeFor[int]()) {
				want = "integer"
			}
		}
		if s.Type != want {
			t.Errorf("%s has type %q, %v is %q", at, s.Type, typ, want)
		}
	}
	for name, v := range map[string]any{
		"Problem": client.Problem{}, "EvidenceRequest": client.EvidenceRequest{},
		"Evidence": client.Evidence{}.Document,
		"Verdict":  appraise.Verdict{}, "Status": client.Status{}, "Health": client.Health{},
		"Certificates": client.Certificates{}, "Refresh": client.Refresh{},
		"RefreshRequest": client.RefreshRequest{},
	} {
		check(name, &schema{Ref: "#/components/schemas/" + name}, reflect.TypeOf(v))
	}
	for name := range spec.Components.Schemas {
		used := func(s string) bool { return strings.HasPrefix(s, name) }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), used) {
			t.Errorf("no type of the API uses the schema %s", name)
		}
	}
}

func checkFields(t *testing.T, at string, s *schema, typ reflect.Type, check func(string, *schema, reflect.Type)) {
	t.Helper()
	var fields, required []string
	for f := range typ.Fields() {
		field, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		if field == "" || field == "-" {
			continue
		}
		fields = append(fields, field)
		if option == "" && field != "bind" { // which has a default
			required = append(required, field)
		}
		if s.Properties[field] != nil && !(at == "Evidence" && field == "verdict") { // which is checked by itself
			check(at+"."+field, s.Properties[field], f.Type)
		}
	}
	slices.Sort(fields)
	if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, fields) {
		t.Errorf("schema %s has %q, %v has %q", at, got, typ, fields)
	}
	slices.Sort(required)
	if got := slices.Sorted(slices.Values(s.Required)); !slices.Equal(got, required) {
		t.Errorf("schema %s requires %q, %v always has %q", at, got, typ, required)
	}
}

// TestProblemCodes: the codes of the source, of docs/openapi.yaml and of docs/api.md are the same.
func TestProblemCodes(t *testing.T) {
	codes := make(map[string]bool)
	for _, call := range found(t, "*.go", `\bproblem\(((?:http\.|status,)[^)]*)`) {
		code := strings.TrimSpace(strings.Split(call+",", ",")[1])
		if text, err := strconv.Unquote(code); err == nil {
			codes[text] = true
		} else if code != "attest.Code(err" {
			t.Errorf("the code of problem(%s) is %s: this test understands only a string", call, code)
		}
	}
	// What attest.Code can return: the codes of its kinds, its own literals, and those of a verdict. The constant
	// CodeUnsupportedVersion is no string there, and never a problem: such evidence is served, with this verdict.
	for _, code := range slices.Concat(
		found(t, "../attest/errors.go", `(?m)^\t\{[\w.]+, "([a-z_]+)",`),
		found(t, "../attest/errors.go", `return "([a-z_]+)"`),
		found(t, "../appraise/verdict.go", `\tCode\w+ += "([a-z_]+)"`),
	) {
		codes[code] = true
	}
	if len(codes) < 20 {
		t.Fatalf("the source has %d codes: this test no longer understands it", len(codes))
	}
	want := slices.Sorted(maps.Keys(codes))

	var enum []string
	for _, v := range readOpenAPI(t).Components.Schemas["ProblemCode"].Enum {
		enum = append(enum, fmt.Sprint(v))
	}
	if slices.Sort(enum); !slices.Equal(enum, want) {
		t.Errorf("docs/openapi.yaml lists %q, the source has %q", enum, want)
	}

	page := must.Get(os.ReadFile("../../docs/api.md"))(t, "read the page about the API")
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

// found returns the matches of a pattern's group in sources, without those of tests.
func found(t *testing.T, files, pattern string) (list []string) {
	t.Helper()
	for _, path := range must.Get(filepath.Glob(files))(t, "find %s", files) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text := must.Get(os.ReadFile(path))(t, "read %s", path)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			list = append(list, m[1])
		}
	}
	return list
}
