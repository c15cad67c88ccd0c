package simaws

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// ECSAgent is the ECS agent as its introspection endpoint shows it (aws/amazon-ecs-agent: ecs-agent/introspection,
// agent/handlers/v1). The real one listens on all addresses, and only once the node is registered: until then, and
// while it is down, connections are refused. It restores its tasks when it starts again. The zero value has no port of
// its own, and is served by ServeHTTP alone.
type ECSAgent struct {
	*Port

	mu           sync.Mutex
	cluster, arn string
	tasks        []*ecsTask
}

// ecsTask and ecsContainer have the names of the endpoint's JSON, and are its answer about a task.
type ecsTask struct {
	Arn           string
	DesiredStatus string `json:",omitempty"`
	KnownStatus   string
	Family        string
	Version       string
	Containers    []ecsContainer
}

type ecsContainer struct {
	DockerID   string `json:"DockerId"`
	DockerName string
	Name       string
	Image      string
	ImageID    string
}

// NewECSAgent returns an agent that is not registered. Its address is ":51678" in a network namespace of one's own.
func NewECSAgent(address string) (*ECSAgent, error) {
	port, err := NewPort(address)
	if err != nil {
		return nil, err
	}
	return &ECSAgent{Port: port}, nil
}

// Register makes the node a container instance of a cluster, by its name or its ARN, and has the agent listen.
func (a *ECSAgent) Register(cluster, arn string) error {
	a.mu.Lock()
	a.cluster, a.arn = cluster, arn
	a.mu.Unlock()
	return a.Start()
}

// Start has an agent listen that was registered before it was shut.
func (a *ECSAgent) Start() error {
	if a.Port == nil {
		return nil
	}
	return a.Open(a)
}

// Run puts a container into a task. A task has as many containers as were put into it.
func (a *ECSAgent) Run(containerID, taskARN string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(containerID)
	i := slices.IndexFunc(a.tasks, func(t *ecsTask) bool { return t.Arn == taskARN })
	if i < 0 {
		i = len(a.tasks)
		a.tasks = append(a.tasks, &ecsTask{
			Arn: taskARN, DesiredStatus: "RUNNING", KnownStatus: "RUNNING", Family: "app", Version: "1",
		})
	}
	name := fmt.Sprintf("app-%d", len(a.tasks[i].Containers)+1)
	a.tasks[i].Containers = append(a.tasks[i].Containers, ecsContainer{
		DockerID: containerID, DockerName: "ecs-app-1-" + name, Name: name, Image: "app:1",
		ImageID: "sha256:" + strings.Repeat("0", 64),
	})
}

// Forget makes a container one that the agent does not know.
func (a *ECSAgent) Forget(containerID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(containerID)
}

func (a *ECSAgent) remove(containerID string) {
	for _, t := range a.tasks {
		t.Containers = slices.DeleteFunc(t.Containers, func(c ecsContainer) bool { return c.DockerID == containerID })
	}
	a.tasks = slices.DeleteFunc(a.tasks, func(t *ecsTask) bool { return len(t.Containers) == 0 })
}

// ServeHTTP implements http.Handler. What is at no known path is answered with the list of paths.
func (a *ECSAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var status int
	var answer any
	switch r.URL.Path {
	case "/v1/metadata":
		var arn *string // null: not registered
		if a.arn != "" {
			arn = &a.arn
		}
		status, answer = http.StatusOK, map[string]any{
			"Cluster": a.cluster, "ContainerInstanceArn": arn, "Version": "Amazon ECS Agent - v1.0.0 (simulated)",
		}
	case "/v1/tasks":
		status, answer = a.answer(r.URL.Query())
	default:
		fmt.Fprint(w, `{"AvailableCommands":["/v1/metadata","/v1/tasks","/license"]}`)
		return
	}
	text, _ := json.Marshal(answer) // of text: always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(text)
}

// answer returns all tasks, or the one of the container that is asked for. One that it does not know has no values.
func (a *ECSAgent) answer(query url.Values) (status int, answer any) {
	if !query.Has("dockerid") {
		return http.StatusOK, map[string]any{"Tasks": append([]*ecsTask{}, a.tasks...)}
	}
	for _, t := range a.tasks {
		for _, c := range t.Containers {
			if c.DockerID == query.Get("dockerid") {
				return http.StatusOK, t
			}
		}
	}
	return http.StatusNotFound, ecsTask{}
}
