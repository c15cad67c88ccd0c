package simaws

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Clusters is the part of the ECS API that lists which capacity providers a cluster has: DescribeClusters, of one
// cluster, by name or ARN. The zero value has no clusters.
type Clusters struct {
	Region, AccountID string

	mu       sync.Mutex
	clusters map[string][]string // name: capacity providers
	faults   []string            // codes for the next calls
	calls    int
}

// Set makes a cluster, or changes the capacity providers that it lists.
func (c *Clusters) Set(name string, providers ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clusters == nil {
		c.clusters = make(map[string][]string)
	}
	c.clusters[name] = slices.Clone(providers)
}

// Fail makes so many of the next calls fail with an error code.
func (c *Clusters) Fail(code string, calls int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = slices.Repeat([]string{code}, calls)
}

// Calls returns how often the API was called.
func (c *Clusters) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

// ServeHTTP implements http.Handler.
func (c *Clusters) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	var in struct{ Clusters []string }
	answer, refusal := any(nil), &apiError{"SerializationException", "the request is not JSON"}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in) == nil {
		answer, refusal = c.serve(r.Header, in.Clusters)
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

func (c *Clusters) serve(header http.Header, names []string) (answer any, refusal *apiError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	switch {
	case !authorized(header, "ecs"):
		return nil, &apiError{"UnrecognizedClientException", "The security token included in the request is invalid."}
	case len(c.faults) > 0:
		code := c.faults[0]
		c.faults = c.faults[1:]
		return nil, &apiError{code, "simulated"}
	case header.Get("X-Amz-Target") != "AmazonEC2ContainerServiceV20141113.DescribeClusters" || len(names) != 1:
		return nil, &apiError{"InvalidParameterException", "simulated: only DescribeClusters of one cluster"}
	}
	prefix := fmt.Sprintf("arn:aws:ecs:%s:%s:cluster/", c.Region, c.AccountID)
	name := strings.TrimPrefix(names[0], prefix)
	providers, ok := c.clusters[name]
	if !ok {
		return map[string]any{"failures": []map[string]string{{"arn": prefix + name, "reason": "MISSING"}}}, nil
	}
	return map[string]any{"clusters": []map[string]any{{
		"clusterArn": prefix + name, "clusterName": name, "status": "ACTIVE", "capacityProviders": providers,
	}}}, nil
}
