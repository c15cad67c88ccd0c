package simaws

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
)

// ECSAgent is the part of the ECS agent's introspection endpoint that reports where the node is registered, and that
// there are no tasks (aws/amazon-ecs-agent: ecs-agent/introspection/v1). The zero value is an agent that is not
// registered yet.
type ECSAgent struct {
	mu           sync.Mutex
	cluster, arn string
}

// Register makes the node a container instance of a cluster. With an empty ARN, the agent knows its cluster and is not
// registered yet.
func (a *ECSAgent) Register(cluster, arn string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cluster, a.arn = cluster, arn
}

// ServeHTTP implements http.Handler.
func (a *ECSAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v1/tasks" && r.URL.Query().Has("dockerid"):
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"Arn":"","KnownStatus":"","Family":"","Version":"","Containers":null}`)
		return
	case r.URL.Path != "/v1/metadata":
		http.NotFound(w, r)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := map[string]any{
		"Cluster": a.cluster, "ContainerInstanceArn": nil, "Version": "Amazon ECS Agent - v1.0.0 (simulated)",
	}
	if a.arn != "" {
		answer["ContainerInstanceArn"] = a.arn
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}
