package simaws

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Secrets is the part of Secrets Manager that a node uses: an http.Handler that speaks AWS JSON 1.1 and knows the
// operations DescribeSecret and GetSecretValue. The zero value with Region and AccountID set is ready to serve; Put
// makes secrets.
type Secrets struct {
	Region, AccountID string

	mu      sync.Mutex
	secrets map[string][]version // by name; the last is AWSCURRENT, the one before AWSPREVIOUS
	fault   string
}

type version struct {
	id, text string
	created  time.Time
}

// Put makes a secret's new current version, and the secret if there is none. It returns the version ID.
func (s *Secrets) Put(name, text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets == nil {
		s.secrets = make(map[string][]version)
	}
	v := version{newUUID(), text, time.Now()}
	s.secrets[name] = append(s.secrets[name], v)
	return v.id
}

// SetFault makes every request fail with an error code such as ThrottlingException, or with an HTTP status such as
// "503"; "": none.
func (s *Secrets) SetFault(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = code
}

// maxRequest bounds a request in bytes.
const maxRequest = 64 << 10

// apiError is an error document.
type apiError struct{ code, message string }

func (e *apiError) Error() string { return e.code + ": " + e.message }

// statuses has the error codes whose status is not 400. Secrets Manager's throttling and missing permissions are a 400.
var statuses = map[string]int{
	"AccessDenied": http.StatusForbidden, "InvalidClientTokenId": http.StatusForbidden,
	"UnrecognizedClientException": http.StatusForbidden,
}

// writeStatus writes the HTTP status of an error code, and reports whether a body follows: not if the code is a status
// itself.
func writeStatus(w http.ResponseWriter, code string) (status int, body bool) {
	status, err := strconv.Atoi(code)
	if err != nil {
		if status = statuses[code]; status == 0 {
			status = http.StatusBadRequest
		}
	}
	w.WriteHeader(status)
	return status, err != nil
}

// input has the members of both operations.
type input struct {
	SecretID     string `json:"SecretId"`
	VersionID    string `json:"VersionId"`
	VersionStage string
}

// ServeHTTP implements http.Handler.
func (s *Secrets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amzn-Requestid", newUUID())
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var in input
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in)
	var answer any
	refusal := &apiError{"SerializationException", "the request is not JSON"}
	if err == nil {
		answer, refusal = s.serve(r.Header, in)
	}
	if refusal == nil {
		json.NewEncoder(w).Encode(answer)
		return
	}
	w.Header().Set("X-Amzn-Errortype", refusal.code)
	if _, body := writeStatus(w, refusal.code); body {
		json.NewEncoder(w).Encode(map[string]string{"__type": refusal.code, "message": refusal.message})
	}
}

// authorized reports whether a request looks signed (AWS Signature Version 4) with the access key of the simulated
// instance's role. It does not recompute the signature.
func authorized(h http.Header, service string) bool {
	credential, ok := strings.CutPrefix(h.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+accessKeyID+"/")
	return ok && strings.Contains(credential, "/"+service+"/aws4_request,") &&
		strings.Contains(credential, "Signature=") && h.Get("X-Amz-Date") != ""
}

func (s *Secrets) serve(header http.Header, in input) (answer any, refusal *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !authorized(header, "secretsmanager") {
		const text = "The security token included in the request is invalid."
		return nil, &apiError{"UnrecognizedClientException", text}
	}
	if s.fault != "" {
		return nil, &apiError{s.fault, "simulated"}
	}
	// An ID is a secret's name, its ARN, or its ARN without the random end.
	arn := Instance{Region: s.Region, AccountID: s.AccountID}.ARN("secretsmanager", "secret:")
	name, isARN := strings.CutPrefix(in.SecretID, arn)
	if isARN {
		name = strings.TrimSuffix(name, "-AbCdEf")
	}
	versions := s.secrets[name]
	if versions == nil {
		return nil, &apiError{"ResourceNotFoundException", "Secrets Manager can't find the specified secret."}
	}
	arn += name + "-AbCdEf"

	switch operation := header.Get("X-Amz-Target"); operation {
	case "secretsmanager.DescribeSecret":
		stages := make(map[string][]string) // a version without a label is not shown
		for i, v := range versions {
			if labels := labelsOf(i, versions); labels != nil {
				stages[v.id] = labels
			}
		}
		return map[string]any{"ARN": arn, "Name": name, "VersionIdsToStages": stages}, nil
	case "secretsmanager.GetSecretValue":
		if in.VersionID == "" && in.VersionStage == "" {
			in.VersionStage = "AWSCURRENT"
		}
		for i, v := range versions { // ID and label must agree where given
			labels := labelsOf(i, versions)
			if in.VersionID != "" && in.VersionID != v.id ||
				in.VersionStage != "" && !slices.Contains(labels, in.VersionStage) {
				continue
			}
			return map[string]any{
				"ARN": arn, "Name": name, "VersionId": v.id, "VersionStages": labels,
				"SecretString": v.text, "CreatedDate": float64(v.created.UnixMilli()) / 1000,
			}, nil
		}
		const text = "Secrets Manager can't find the specified secret value for the version and staging label."
		return nil, &apiError{"ResourceNotFoundException", text}
	default:
		return nil, &apiError{"UnknownOperationException", operation + " is not simulated"}
	}
}

// labelsOf returns the staging labels of the version at i.
func labelsOf(i int, versions []version) []string {
	switch len(versions) - i {
	case 1:
		return []string{"AWSCURRENT"}
	case 2:
		return []string{"AWSPREVIOUS"}
	}
	return nil
}

func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
