package simaws

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Secrets is a Secrets Manager. It speaks AWS JSON 1.1 and knows DescribeSecret and GetSecretValue; secrets are
// made and changed through its methods.
type Secrets struct {
	Region, AccountID string

	mu      sync.Mutex
	secrets map[string]*secret // by name
	fault   string
	calls   map[string]int
}

type secret struct {
	values  map[string]string   // by version ID
	labels  map[string][]string // by version ID
	deleted time.Time
}

// Put makes a secret's new current version, and the secret if there is none. It returns the version ID.
func (s *Secrets) Put(name, value string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secrets == nil {
		s.secrets = make(map[string]*secret)
	}
	sec := s.secrets[name]
	if sec == nil {
		sec = &secret{values: make(map[string]string), labels: make(map[string][]string)}
		s.secrets[name] = sec
	}
	id := versionID()
	sec.values[id] = value
	sec.moveCurrent(id)
	return id
}

// moveCurrent labels a version AWSCURRENT, and the one before AWSPREVIOUS.
func (sec *secret) moveCurrent(id string) {
	for other, labels := range sec.labels {
		switch {
		case slices.Contains(labels, "AWSCURRENT"):
			sec.labels[other] = []string{"AWSPREVIOUS"}
		case slices.Contains(labels, "AWSPREVIOUS"):
			delete(sec.labels, other)
		}
	}
	sec.labels[id] = []string{"AWSCURRENT"}
}

// Rollback labels an older version AWSCURRENT.
func (s *Secrets) Rollback(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name].moveCurrent(id)
}

// Delete schedules a secret for deletion.
func (s *Secrets) Delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name].deleted = time.Now().Add(7 * 24 * time.Hour)
}

// SetFault makes every request fail with an error code such as ThrottlingException, or with an HTTP status such as
// "503"; "": none.
func (s *Secrets) SetFault(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = code
}

// Calls is how often an operation was asked for.
func (s *Secrets) Calls(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[operation]
}

// ARN is a secret's ARN.
func (s *Secrets) ARN(name string) string {
	return fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-AbCdEf", s.Region, s.AccountID, name)
}

func versionID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// maxRequest bounds a request in bytes.
const maxRequest = 64 << 10

// ServeHTTP implements http.Handler.
func (s *Secrets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	operation, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "secretsmanager.")
	if !ok || r.Method != http.MethodPost {
		refuse(w, http.StatusBadRequest, "UnknownOperationException", "not a request to Secrets Manager")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = make(map[string]int)
	}
	s.calls[operation]++
	if !strings.Contains(r.Header.Get("Authorization"), "Credential="+AccessKeyID+"/") {
		refuse(w, http.StatusBadRequest, "UnrecognizedClientException", "The security token included in the request is invalid.")
		return
	}
	switch {
	case strings.HasPrefix(s.fault, "5"):
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case s.fault != "":
		refuse(w, http.StatusBadRequest, s.fault, "simulated")
		return
	}
	var in struct{ SecretID, VersionID, VersionStage string }
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "SerializationException", err.Error())
		return
	}
	name, sec := s.find(in.SecretID)
	if sec == nil {
		refuse(w, http.StatusBadRequest, "ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
		return
	}
	answer := map[string]any{"ARN": s.ARN(name), "Name": name}
	switch operation {
	case "DescribeSecret":
		answer["VersionIdsToStages"] = sec.labels
		if !sec.deleted.IsZero() {
			answer["DeletedDate"] = sec.deleted.Unix()
		}
	case "GetSecretValue":
		if !sec.deleted.IsZero() {
			refuse(w, http.StatusBadRequest, "InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
			return
		}
		id := sec.version(in.VersionID, in.VersionStage)
		if id == "" {
			refuse(w, http.StatusBadRequest, "ResourceNotFoundException", "Secrets Manager can't find the specified secret value for the version and staging label.")
			return
		}
		answer["VersionId"], answer["VersionStages"], answer["SecretString"] = id, sec.labels[id], sec.values[id]
	default:
		refuse(w, http.StatusBadRequest, "UnknownOperationException", operation+" is not simulated")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	json.NewEncoder(w).Encode(answer)
}

func (s *Secrets) find(id string) (string, *secret) {
	for name, sec := range s.secrets {
		if id == name || id == s.ARN(name) {
			return name, sec
		}
	}
	return "", nil
}

// version finds a version by ID and label, both of which must agree where given; without either, AWSCURRENT.
func (sec *secret) version(id, label string) string {
	if label == "" && id == "" {
		label = "AWSCURRENT"
	}
	for candidate := range sec.values {
		if (id == "" || id == candidate) && (label == "" || slices.Contains(sec.labels[candidate], label)) {
			return candidate
		}
	}
	return ""
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Errortype", code)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": message})
}
