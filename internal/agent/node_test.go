package agent

import (
	"os"
	"path/filepath"
	"testing"

	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
	"sevagent/internal/must"
)

func TestNode(t *testing.T) {
	for _, c := range []struct{ name, text, cluster string }{
		{"name", "# of bootstrap\nECS_CLUSTER=prod\nECS_AWSVPC_BLOCK_IMDS=true\n", "prod"},
		{"ARN", "ECS_CLUSTER=arn:aws:ecs:us-east-2:111122223333:cluster/prod\n", "prod"},
		{"no cluster", "ECS_AWSVPC_BLOCK_IMDS=true\n", ""},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ecs.config")
			must.Do(t, os.WriteFile(file, []byte(c.text), 0o600), "write ecs.config")
			want := localapi.Node{Region: "us-east-2", AccountID: "111122223333", Cluster: c.cluster}
			if got := node(instance, file); got != want {
				t.Errorf("node is %+v, want %+v", got, want)
			}
		})
	}
	if got := node(evidence.Instance{}, filepath.Join(t.TempDir(), "none")); got != (localapi.Node{}) {
		t.Errorf("without a file and an instance, node is %+v, want that nothing is known", got)
	}
}
