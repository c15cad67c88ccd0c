package simaws

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxRequest bounds a request in bytes; a secret may have 65,536.
const maxRequest = 256 << 10

// input has the members of all operations.
type input struct {
	Name                string   `json:"Name"`
	SecretID            string   `json:"SecretId"`
	VersionID           string   `json:"VersionId"`
	VersionStage        string   `json:"VersionStage"`
	VersionStages       []string `json:"VersionStages"`
	ClientRequestToken  string   `json:"ClientRequestToken"` // becomes the version ID
	SecretString        *string  `json:"SecretString"`
	SecretBinary        []byte   `json:"SecretBinary"`
	MoveToVersionID     string   `json:"MoveToVersionId"`
	RemoveFromVersionID string   `json:"RemoveFromVersionId"`
}

// apiError is an error document.
type apiError struct{ code, message string }

func (e *apiError) Error() string { return e.code + ": " + e.message }

// operations of a secret that exists.
var operations = map[string]func(*secret, input) (map[string]any, error){
	"DescribeSecret":           (*secret).describe,
	"GetSecretValue":           (*secret).get,
	"PutSecretValue":           (*secret).putValue,
	"UpdateSecretVersionStage": (*secret).updateStage,
}

// ServeHTTP implements http.Handler.
func (s *Secrets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	operation, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "secretsmanager.")
	s.mu.Lock()
	latency, skew := s.latency, s.skew
	s.mu.Unlock()
	if wait(r.Context(), latency) != nil {
		return // the client has left
	}
	w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
	w.Header().Set("X-Amzn-Requestid", newUUID())
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var answer map[string]any
	var err error
	switch {
	case !ok || r.Method != http.MethodPost:
		err = &apiError{"UnknownOperationException", "not a request to Secrets Manager"}
	case readErr != nil:
		err = &apiError{"SerializationException", readErr.Error()}
	default:
		answer, err = s.serve(operation, authorized(r.Header, "secretsmanager"), body)
	}
	if err == nil {
		json.NewEncoder(w).Encode(answer)
		return
	}
	refusal, ok := errors.AsType[*apiError](err)
	if !ok {
		refusal = &apiError{"SerializationException", err.Error()}
	}
	status, bare := status(refusal.code)
	if bare {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("X-Amzn-Errortype", refusal.code)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"__type": refusal.code, "message": refusal.message})
}

// authorized reports whether a request looks signed (AWS Signature Version 4) with an access key of the simulated
// instance's role. It does not recompute the signature.
func authorized(h http.Header, service string) bool {
	credential, ok := strings.CutPrefix(h.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="+accessKeyPrefix)
	return ok && strings.Contains(credential, "/"+service+"/aws4_request,") &&
		strings.Contains(credential, "Signature=") &&
		h.Get("X-Amz-Date") != ""
}

func (s *Secrets) serve(operation string, authorized bool, body []byte) (map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault := s.count(operation)
	if !authorized {
		return nil, &apiError{"UnrecognizedClientException", "The security token included in the request is invalid."}
	}
	if fault != "" {
		return nil, &apiError{fault, "simulated"}
	}
	var in input
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, err
	}
	if operation == "CreateSecret" {
		return s.createSecret(in)
	}
	do := operations[operation]
	if do == nil {
		return nil, &apiError{"UnknownOperationException", operation + " is not simulated"}
	}
	name, sec := s.find(in.SecretID)
	if sec == nil {
		return nil, &apiError{"ResourceNotFoundException", "Secrets Manager can't find the specified secret."}
	}
	if !sec.deleted.IsZero() && operation != "DescribeSecret" {
		return nil, &apiError{"InvalidRequestException",
			"You can't perform this operation on the secret because it was marked for deletion."}
	}
	answer, err := do(sec, in)
	if err != nil {
		return nil, err
	}
	answer["ARN"], answer["Name"] = s.ARN(name), name
	return answer, nil
}

func (s *Secrets) createSecret(in input) (map[string]any, error) {
	if in.Name == "" {
		return nil, &apiError{"InvalidParameterException", "Name is missing."}
	}
	if s.secrets[in.Name] != nil {
		return nil, &apiError{"ResourceExistsException",
			"The operation failed because the secret " + in.Name + " already exists."}
	}
	answer, err := s.create(in.Name).putValue(in)
	if err != nil {
		delete(s.secrets, in.Name)
		return nil, err
	}
	answer["ARN"], answer["Name"] = s.ARN(in.Name), in.Name
	return answer, nil
}

func (sec *secret) describe(input) (map[string]any, error) {
	versions := make(map[string][]string) // a version without a label is not shown
	for _, id := range sec.labels {
		versions[id] = sec.stages(id)
	}
	answer := map[string]any{"VersionIdsToStages": versions}
	if !sec.nextRotation.IsZero() {
		answer["RotationEnabled"], answer["NextRotationDate"] = true, epoch(sec.nextRotation)
	}
	if !sec.deleted.IsZero() {
		answer["DeletedDate"] = epoch(sec.deleted)
	}
	return answer, nil
}

func epoch(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (sec *secret) get(in input) (map[string]any, error) {
	id := sec.version(in.VersionID, in.VersionStage)
	if id == "" {
		return nil, &apiError{"ResourceNotFoundException",
			"Secrets Manager can't find the specified secret value for the version and staging label."}
	}
	v := sec.values[id]
	answer := map[string]any{"VersionId": id, "VersionStages": sec.stages(id), "CreatedDate": epoch(v.created)}
	if v.text != nil {
		answer["SecretString"] = *v.text
	} else {
		answer["SecretBinary"] = v.binary
	}
	return answer, nil
}

// putValue changes nothing if it is repeated with the same token and value.
func (sec *secret) putValue(in input) (map[string]any, error) {
	if (in.SecretString == nil) == (in.SecretBinary == nil) {
		return nil, &apiError{"InvalidParameterException", "You must provide either SecretString or SecretBinary."}
	}
	id, labels := in.ClientRequestToken, in.VersionStages
	if id == "" {
		id = newUUID()
	}
	if len(labels) == 0 {
		labels = []string{labelCurrent}
	}
	v := value{text: in.SecretString, binary: in.SecretBinary}
	if existing, ok := sec.values[id]; !ok {
		sec.add(id, v, labels)
	} else if !existing.equal(v) {
		return nil, &apiError{"ResourceExistsException",
			"You can't use ClientRequestToken " + id + ": a version with it has another value."}
	}
	return map[string]any{"VersionId": id, "VersionStages": sec.stages(id)}, nil
}

func (sec *secret) updateStage(in input) (map[string]any, error) {
	label, from, to := in.VersionStage, in.RemoveFromVersionID, in.MoveToVersionID
	switch _, known := sec.values[to]; {
	case label == "" || from == "" && to == "":
		return nil, &apiError{"InvalidParameterException", "VersionStage and a version are needed."}
	case to != "" && !known:
		return nil, &apiError{"ResourceNotFoundException", "Secrets Manager can't find the specified secret version."}
	case sec.labels[label] != from && !slices.Contains([]string{"", to}, sec.labels[label]):
		return nil, &apiError{"InvalidParameterException",
			"The staging label " + label + " is attached to another version: " + sec.labels[label] + "."}
	case to == "" && label == labelCurrent:
		return nil, &apiError{"InvalidParameterException",
			"You can only move " + labelCurrent + " to another version, not remove it."}
	}
	if to == "" {
		delete(sec.labels, label)
	} else {
		sec.move(label, to)
	}
	return map[string]any{}, nil
}
