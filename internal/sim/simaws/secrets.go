package simaws

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Secrets is a Secrets Manager: an http.Handler that speaks AWS JSON 1.1. Its methods make and change secrets, and so
// do the operations CreateSecret, PutSecretValue and UpdateSecretVersionStage. The zero value with Region and AccountID
// set is ready to serve.
type Secrets struct {
	Region, AccountID string

	mu      sync.Mutex
	secrets map[string]*secret // by name
	faults  []Fault
	calls   map[string]int
	latency time.Duration
	skew    time.Duration
}

// Staging labels that the service moves by itself.
const (
	labelCurrent  = "AWSCURRENT"
	labelPrevious = "AWSPREVIOUS"
)

type secret struct {
	values       map[string]value  // by version ID
	labels       map[string]string // version ID by staging label: a label is on one version
	nextRotation time.Time
	deleted      time.Time
}

// value is text or binary.
type value struct {
	text    *string
	binary  []byte
	created time.Time
}

func (v value) equal(w value) bool {
	return (v.text == nil) == (w.text == nil) && (v.text == nil || *v.text == *w.text) && slices.Equal(v.binary, w.binary)
}

// move puts a label on a version. AWSPREVIOUS follows AWSCURRENT.
func (sec *secret) move(label, id string) {
	if current := sec.labels[labelCurrent]; label == labelCurrent && current != "" && current != id {
		sec.labels[labelPrevious] = current
	}
	sec.labels[label] = id
	if label == labelCurrent && sec.labels[labelPrevious] == id {
		delete(sec.labels, labelPrevious)
	}
}

// version finds a version by ID and label, both of which must agree where given; without either, AWSCURRENT.
func (sec *secret) version(id, label string) string {
	if id == "" && label == "" {
		label = labelCurrent
	}
	if label == "" {
		if _, ok := sec.values[id]; !ok {
			return ""
		}
		return id
	}
	if labelled := sec.labels[label]; id == "" || id == labelled {
		return labelled
	}
	return ""
}

// stages are a version's labels, sorted.
func (sec *secret) stages(id string) (labels []string) {
	for _, label := range slices.Sorted(maps.Keys(sec.labels)) {
		if sec.labels[label] == id {
			labels = append(labels, label)
		}
	}
	return labels
}

// Put makes a secret's new current version, and the secret if there is none. It returns the version ID.
func (s *Secrets) Put(name, text string) string { return s.PutLabelled(name, text, labelCurrent) }

// PutLabelled makes a version with the given labels, such as AWSPENDING, and the secret if there is none.
func (s *Secrets) PutLabelled(name, text string, labels ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.secrets[name]
	if sec == nil {
		sec = s.create(name)
	}
	id := newUUID()
	sec.add(id, value{text: &text}, labels)
	return id
}

func (s *Secrets) create(name string) *secret {
	if s.secrets == nil {
		s.secrets = make(map[string]*secret)
	}
	s.secrets[name] = &secret{values: make(map[string]value), labels: make(map[string]string)}
	return s.secrets[name]
}

func (sec *secret) add(id string, v value, labels []string) {
	v.created = time.Now()
	sec.values[id] = v
	for _, label := range labels {
		sec.move(label, id)
	}
}

// Label puts a label on a version, as UpdateSecretVersionStage does.
func (s *Secrets) Label(name, label, versionID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name].move(label, versionID)
}

// Rollback labels an older version AWSCURRENT.
func (s *Secrets) Rollback(name, versionID string) { s.Label(name, labelCurrent, versionID) }

// SetNextRotation sets when a secret's next scheduled rotation is due; zero: it has none.
func (s *Secrets) SetNextRotation(name string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name].nextRotation = at
}

// Delete schedules a secret for deletion.
func (s *Secrets) Delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name].deleted = time.Now().Add(7 * 24 * time.Hour)
}

// ARN returns a secret's ARN.
func (s *Secrets) ARN(name string) string { return s.partialARN(name) + "-AbCdEf" }

func (s *Secrets) partialARN(name string) string {
	return fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s", s.Region, s.AccountID, name)
}

// find accepts what the service does as a secret's ID: its name, its ARN, and its ARN without the random end.
func (s *Secrets) find(id string) (string, *secret) {
	name := strings.TrimPrefix(id, s.partialARN(""))
	if strings.HasPrefix(id, "arn:") && s.secrets[name] == nil {
		name = strings.TrimSuffix(name, "-AbCdEf")
	}
	return name, s.secrets[name]
}

func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
