package simaws_test

import (
	"errors"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// The answers are those of the real agent, byte by byte where it knows nothing.
func TestECSAgent(t *testing.T) {
	agent := must.Get(simaws.NewECSAgent("127.0.0.1:0"))(t, "make an ECS agent")
	defer agent.Close()
	ask := func(path string) (int, string) { return answer(t.Context(), agent, http.MethodGet, path) }
	const unknown = `{"Arn":"","KnownStatus":"","Family":"","Version":"","Containers":null}`
	const instance = "arn:aws:ecs:us-east-2:111122223333:container-instance/prod/1"
	const task = "arn:aws:ecs:us-east-2:111122223333:task/prod/2"
	expect := func(path string, wantStatus int, want string) {
		t.Helper()
		if status, got := ask(path); status != wantStatus || !strings.Contains(got, want) {
			t.Errorf("%s: %d %s, want %d %s", path, status, got, wantStatus, want)
		}
	}
	id := strings.Repeat("a", 64)
	expect("/v1/tasks?dockerid="+id, 404, unknown)
	expect("/v1/tasks", 200, `{"Tasks":[]}`)
	expect("/v1/tasks/", 200, `{"AvailableCommands":["/v1/metadata",`)
	must.Do(t, agent.Register("prod", instance), "register")
	expect("/v1/metadata", 200, `{"Cluster":"prod","ContainerInstanceArn":"`+instance+`","Version":"Amazon ECS Agent - v`)
	agent.Run(id, task)
	agent.Run(strings.Repeat("b", 64), task)
	expect("/v1/tasks?dockerid="+id, 200, `{"Arn":"`+task+`","DesiredStatus":"RUNNING","KnownStatus":"RUNNING","Family":`)
	expect("/v1/tasks?dockerid="+id, 200, `"Containers":[{"DockerId":"`+id+`","DockerName":"ecs-app-1-app-1","Name":`)
	expect("/v1/tasks", 200, `{"Tasks":[{"Arn":"`+task+`"`)
	agent.Forget(id)
	expect("/v1/tasks?dockerid="+id, 404, unknown)
	expect("/v1/tasks?dockerid="+strings.Repeat("b", 64), 200, task)
}

// Nothing listens until the node is registered, nor while the agent is down; its port stays its own.
func TestECSAgentListensOnceRegistered(t *testing.T) {
	agent := must.Get(simaws.NewECSAgent("127.0.0.1:0"))(t, "make an ECS agent")
	defer agent.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	expect := func(when string, up bool) {
		t.Helper()
		resp, err := client.Get(agent.URL() + "/v1/metadata")
		if err == nil {
			resp.Body.Close()
		}
		if up && err != nil || !up && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want that it listens: %v", when, err, up)
		}
	}
	expect("before it is registered", false)
	must.Do(t, agent.Register("prod", "arn:aws:ecs:us-east-2:111122223333:container-instance/prod/1"), "register")
	expect("once it is registered", true)
	for range 3 {
		agent.Shut()
		expect("while it is down", false)
		must.Do(t, agent.Start(), "start it again")
		expect("when it is back", true)
	}
	agent.Close()
	expect("at the end", false)
}
