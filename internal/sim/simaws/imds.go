// Package simaws simulates the AWS services around a node, on loopback: the instance metadata service, Secrets Manager,
// AWS Private CA, what a node uses of CloudFormation, and the ECS agent's introspection endpoint. It follows AWS's
// documentation of their protocols, and can be made to fail as they do.
package simaws

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Instance is what the metadata service reports.
type Instance struct {
	ID, Type, Region, AvailabilityZone, ZoneID, AccountID, ImageID, PrivateIP, MAC, VPC, Subnet, Role string
}

// DefaultInstance is an m6a.large in us-east-2.
func DefaultInstance() Instance {
	return Instance{
		ID: "i-0123456789abcdef0", Type: "m6a.large", Region: "us-east-2", AvailabilityZone: "us-east-2a",
		ZoneID: "use2-az1", AccountID: "111122223333", ImageID: "ami-0123456789abcdef0",
		PrivateIP: "10.0.0.10", MAC: "02:00:00:00:00:10", VPC: "vpc-0123456789abcdef0",
		Subnet: "subnet-0123456789abcdef0", Role: "node",
	}
}

// ARN returns that of a resource of the instance's account, in the region's partition.
func (i Instance) ARN(service, resource string) string {
	partition := "aws"
	switch {
	case strings.HasPrefix(i.Region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(i.Region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return fmt.Sprintf("arn:%s:%s:%s:%s:%s", partition, service, i.Region, i.AccountID, resource)
}

// accessKeyID is that of the role's credentials.
const accessKeyID = "ASIASIMULATEDNODE000"

// Hang is the fault of a service that takes requests and never answers.
const Hang = -1

// IMDS is an instance metadata service that speaks version 2 only. The zero value with Instance set is ready to serve.
// A service that is not up at all is a Port that is not open.
type IMDS struct {
	Instance Instance

	mu     sync.Mutex
	tokens map[string]time.Time // when each expires
	extra  map[string]string
	fault  fault
	v1     int
}

type fault struct {
	status int
	below  string    // the paths that fail, by what they begin with
	until  time.Time // then it ends by itself; zero: it does not
}

// Move puts the instance into another region.
func (s *IMDS) Move(region string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Instance.Region = region
}

// Set adds an item that only some instances have, by its path below /latest/, as "user-data" or
// "meta-data/autoscaling/target-lifecycle-state", or changes one. Unset takes it away again.
func (s *IMDS) Set(path, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.extra == nil {
		s.extra = make(map[string]string)
	}
	s.extra[root+path] = value
}

// Unset removes what Set has added.
func (s *IMDS) Unset(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.extra, root+path)
}

// SetFault makes every request fail with an HTTP status, such as 403, which a service that is switched off answers, or
// Hang; 0 ends that.
func (s *IMDS) SetFault(status int) { s.setFault(fault{status: status}) }

// FailFor makes requests fail for a while: all of them, or those whose path below /latest/ begins with below, such as
// "meta-data/iam/", for credentials that come late.
func (s *IMDS) FailFor(d time.Duration, status int, below string) {
	s.setFault(fault{status, root + below, time.Now().Add(d)})
}

func (s *IMDS) setFault(f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// faultOf returns the status that a request for path fails with, or 0.
func (s *IMDS) faultOf(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fault
	if !strings.HasPrefix(path, f.below) || !f.until.IsZero() && !time.Now().Before(f.until) {
		return 0
	}
	return f.status
}

// V1Requests counts the requests without a token.
func (s *IMDS) V1Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v1
}

const (
	root      = "/latest/"
	tokenPath = root + "api/token"
	ttlHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// ServeHTTP implements http.Handler.
func (s *IMDS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch fault := s.faultOf(r.URL.Path); {
	case fault == Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // and no answer even then
	case fault != 0:
		refuse(w, fault)
	case r.URL.Path == tokenPath:
		s.token(w, r)
	case !s.authorized(r.Header.Get("X-Aws-Ec2-Metadata-Token")):
		refuse(w, http.StatusUnauthorized)
	case r.Method != http.MethodGet:
		refuse(w, http.StatusMethodNotAllowed)
	default:
		text, ok := s.item(strings.TrimSuffix(r.URL.Path, "/"))
		if !ok {
			refuse(w, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, text)
	}
}

func refuse(w http.ResponseWriter, status int) {
	http.Error(w, fmt.Sprintf("%d - %s", status, http.StatusText(status)), status)
}

func (s *IMDS) token(w http.ResponseWriter, r *http.Request) {
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	switch {
	case r.Method != http.MethodPut:
		refuse(w, http.StatusMethodNotAllowed)
		return
	case r.Header.Values("X-Forwarded-For") != nil: // a proxy must not get a token for others
		refuse(w, http.StatusForbidden)
		return
	case err != nil || ttl < 1 || ttl > 21600:
		refuse(w, http.StatusBadRequest)
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

// item returns the item at a path, or, for a path above items, the list of what is there.
func (s *IMDS) item(path string) (text string, ok bool) {
	items := s.items()
	if text, ok := items[path]; ok {
		return text, true
	}
	var names []string
	for item := range items {
		below, ok := strings.CutPrefix(item, path+"/")
		if !ok {
			continue
		}
		if dir, _, ok := strings.Cut(below, "/"); ok {
			below = dir + "/"
		}
		names = append(names, below)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), "\n"), len(names) > 0
}

// Hostname is the name that a VPC gives an instance by its address.
func (i Instance) Hostname() string {
	return "ip-" + strings.ReplaceAll(i.PrivateIP, ".", "-") + "." + i.Region + ".compute.internal"
}

func (s *IMDS) items() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.Instance
	document, _ := json.Marshal(map[string]any{ // of text: always marshals
		"accountId": i.AccountID, "architecture": "x86_64", "availabilityZone": i.AvailabilityZone, "imageId": i.ImageID,
		"instanceId": i.ID, "instanceType": i.Type, "pendingTime": "2026-01-01T00:00:00Z", "privateIp": i.PrivateIP,
		"region": i.Region, "version": "2017-09-30",
	})
	const meta = root + "meta-data/"
	nic := meta + "network/interfaces/macs/" + i.MAC
	items := map[string]string{
		meta + "instance-id":                        i.ID,
		meta + "instance-type":                      i.Type,
		meta + "ami-id":                             i.ImageID,
		meta + "mac":                                i.MAC,
		meta + "local-ipv4":                         i.PrivateIP,
		meta + "local-hostname":                     i.Hostname(),
		meta + "placement/region":                   i.Region,
		meta + "placement/availability-zone":        i.AvailabilityZone,
		meta + "placement/availability-zone-id":     i.ZoneID,
		nic + "/mac":                                i.MAC,
		nic + "/local-ipv4s":                        i.PrivateIP,
		nic + "/vpc-id":                             i.VPC,
		nic + "/subnet-id":                          i.Subnet,
		root + "dynamic/instance-identity/document": string(document),
	}
	maps.DeleteFunc(items, func(_, value string) bool { return value == "" })
	if i.Role != "" {
		items[meta+"iam/security-credentials/"+i.Role] = credentials()
	}
	maps.Copy(items, s.extra)
	return items
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
