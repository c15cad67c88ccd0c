// Package simaws simulates the AWS services around a node, on loopback: the instance metadata service, Secrets Manager,
// what a node uses of CloudFormation, and the ECS agent's introspection endpoint. It follows AWS's documentation of
// their protocols, and can be made to fail as they do.
package simaws

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Instance is what the metadata service reports.
type Instance struct {
	ID, Type, Region, AvailabilityZone, AccountID, ImageID, PrivateIP, MAC, Role string
}

// DefaultInstance is an m6a.large in us-east-2.
func DefaultInstance() Instance {
	return Instance{
		ID: "i-0123456789abcdef0", Type: "m6a.large", Region: "us-east-2", AvailabilityZone: "us-east-2a",
		AccountID: "111122223333", ImageID: "ami-0123456789abcdef0",
		PrivateIP: "10.0.0.10", MAC: "02:00:00:00:00:10", Role: "node",
	}
}

// accessKeyID is that of the role's credentials.
const accessKeyID = "ASIASIMULATEDNODE000"

// IMDS is an instance metadata service that speaks version 2 only. The zero value with Instance set is ready to serve.
type IMDS struct {
	Instance Instance

	mu     sync.Mutex
	tokens map[string]time.Time // when each expires
	fault  int
	v1     int
}

// SetFault makes every request fail with an HTTP status; 0: none.
func (s *IMDS) SetFault(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = status
}

// V1Requests counts the requests without a token.
func (s *IMDS) V1Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v1
}

const (
	tokenPath = "/latest/api/token"
	ttlHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// ServeHTTP implements http.Handler.
func (s *IMDS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault != 0 {
		http.Error(w, http.StatusText(fault), fault)
		return
	}
	if r.URL.Path == tokenPath {
		s.token(w, r)
		return
	}
	if !s.authorized(r.Header.Get("X-Aws-Ec2-Metadata-Token")) {
		http.Error(w, "401 - Unauthorized", http.StatusUnauthorized)
		return
	}
	text, ok := s.values()[strings.TrimSuffix(r.URL.Path, "/")]
	if !ok || r.Method != http.MethodGet {
		http.Error(w, "404 - Not Found", http.StatusNotFound)
		return
	}
	fmt.Fprint(w, text)
}

func (s *IMDS) token(w http.ResponseWriter, r *http.Request) {
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if r.Method != http.MethodPut || err != nil || ttl < 1 || ttl > 21600 {
		http.Error(w, "400 - Bad Request", http.StatusBadRequest)
		return
	}
	now, token := time.Now(), rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = make(map[string]time.Time)
	}
	maps.DeleteFunc(s.tokens, func(_ string, until time.Time) bool { return until.Before(now) })
	s.tokens[token] = now.Add(time.Duration(ttl) * time.Second)
	w.Header().Set(ttlHeader, strconv.Itoa(ttl))
	fmt.Fprint(w, token)
}

func (s *IMDS) authorized(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token == "" {
		s.v1++
		return false
	}
	return time.Now().Before(s.tokens[token])
}

func (s *IMDS) values() map[string]string {
	i := s.Instance
	document, _ := json.Marshal(map[string]any{ // of text and one list: always marshals
		"accountId": i.AccountID, "architecture": "x86_64", "availabilityZone": i.AvailabilityZone, "imageId": i.ImageID,
		"instanceId": i.ID, "instanceType": i.Type, "pendingTime": "2026-01-01T00:00:00Z", "privateIp": i.PrivateIP,
		"region": i.Region, "version": "2017-09-30",
	})
	const meta = "/latest/meta-data/"
	return map[string]string{
		meta + "instance-id":                         i.ID,
		meta + "instance-type":                       i.Type,
		meta + "ami-id":                              i.ImageID,
		meta + "mac":                                 i.MAC,
		meta + "local-ipv4":                          i.PrivateIP,
		meta + "placement/region":                    i.Region,
		meta + "placement/availability-zone":         i.AvailabilityZone,
		meta + "iam/security-credentials":            i.Role,
		meta + "iam/security-credentials/" + i.Role:  credentials(),
		"/latest/dynamic/instance-identity/document": string(document),
	}
}

func credentials() string {
	now := time.Now().UTC()
	text, _ := json.Marshal(map[string]any{ // of text: always marshals
		"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": accessKeyID, "SecretAccessKey": "simulated",
		"Token": "simulated", "LastUpdated": now.Format(time.RFC3339),
		"Expiration": now.Add(6 * time.Hour).Format(time.RFC3339),
	})
	return string(text)
}
