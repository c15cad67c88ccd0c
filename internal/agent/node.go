package agent

import (
	"os"
	"strings"

	"sevagent/internal/ecsconfig"
	"sevagent/internal/evidence"
	"sevagent/internal/localapi"
)

// ecsConfigFile has the settings of the ECS agent.
const ecsConfigFile = "/etc/ecs/ecs.config"

// node returns where the node is, for the tasks that can run on it: where instance is, and in the cluster that file
// names, in ecs.config's format. What these do not say, the ECS agent is asked for.
func node(instance evidence.Instance, file string) localapi.Node {
	n := localapi.Node{Region: instance.Region, AccountID: instance.AccountID}
	text, err := os.ReadFile(file)
	if err != nil {
		return n
	}
	cluster := ecsconfig.ReadECSInit(text)["ECS_CLUSTER"]
	n.Cluster = cluster[strings.LastIndexByte(cluster, '/')+1:] // of a name or an ARN
	return n
}
