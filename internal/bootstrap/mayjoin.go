package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/cli"
)

// progressFile, in the state directory, says how far bootstrap has come. It outlives a boot, and a bootstrap that was killed.
const progressFile = "bootstrapped.json"

// States of a progress.
const (
	begun    = "begun"
	finished = "finished"
)

type progress struct {
	State string `json:"state"`
	// InstanceID is of the machine that it was on: an AMI that is made of a node has the node's files.
	InstanceID string `json:"instance_id,omitempty"`
}

// note writes how far bootstrap has come.
func (n *node) note(state string) error {
	text, err := json.Marshal(progress{State: state, InstanceID: n.target.InstanceID})
	if err != nil {
		panic(err) // of text: always marshals
	}
	_, err = writeIfChanged(filepath.Join(n.stateDir, progressFile), append(text, '\n'), 0o644)
	return err
}

// instanceIDFile is where cloud-init notes which instance it has set up, early at every boot.
const instanceIDFile = "/var/lib/cloud/data/instance-id"

// testOnlyInstanceIDFile takes its place.
var testOnlyInstanceIDFile string

// whoTimeout bounds what is asked of the metadata service by what starts before ecs.service: systemd gives that 90 s.
const whoTimeout = 15 * time.Second

// mayJoinOptions are the flags of 'bootstrap may-join'.
type mayJoinOptions struct{ configDir, stateDir string }

func mayJoinCommand() *cobra.Command {
	var o mayJoinOptions
	cmd := &cobra.Command{
		Use:   "may-join",
		Short: "Say whether the ECS agent may start on this machine",
		Long: `Say whether the ECS agent may start on this machine. ecs.service has this as its condition: what bootstrap has begun
joins the cluster only once bootstrap has come to its end, on this instance, also after a reboot.

Exit status 0 if it may: bootstrap has finished here, or was never used here, because the node is configured in another
way. 1 if it may not, with the reason. --state-dir holds ` + progressFile + `, which says how far bootstrap has come; who
configures in another way a node that bootstrap has begun removes that, and 50-bootstrap.yaml.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd.Flags(), os.LookupEnv); err != nil {
				return cli.Usage(err)
			}
			return mayJoin(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.configDir, "config-dir", defaultConfigDir, "the agent's configuration directory; 50-bootstrap.yaml in its conf.d says that bootstrap was used")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "where it is noted how far bootstrap has come")
	return cmd
}

func mayJoin(ctx context.Context, o mayJoinOptions, out io.Writer) error {
	file := filepath.Join(o.stateDir, progressFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Lstat(filepath.Join(o.configDir, overlay))
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(out, "may-join     yes: bootstrap was never used here")
			return nil
		}
		data = []byte("{}") // of a bootstrap that noted nothing yet, or somebody has removed it
	} else if err != nil {
		return refused("how far bootstrap has come is not known: %v", err)
	}
	var p progress
	if err := json.Unmarshal(data, &p); err != nil {
		return refused("read %s: %v", file, err)
	}
	id, err := whoAmI(ctx)
	if p.State != finished {
		if err != nil {
			id = "this machine"
		}
		return refused("bootstrap has not finished well on %s", id)
	}
	if err != nil {
		return refused("bootstrap has finished on %s, and whether this is it is not known: %v", p.InstanceID, err)
	}
	if p.InstanceID != id {
		return refused("bootstrap has finished on %s, and this is %s: the AMI was made of a node", p.InstanceID, id)
	}
	fmt.Fprintf(out, "may-join     yes: bootstrap has finished on %s\n", id)
	return nil
}

// wasFinished reports whether an earlier run came to its end, on the machine that this is.
func (n *node) wasFinished(ctx context.Context) bool {
	_, err := os.Lstat(filepath.Join(n.stateDir, progressFile))
	return err == nil && mayJoin(ctx, mayJoinOptions{configDir: n.configDir, stateDir: n.stateDir}, io.Discard) == nil
}

// refused says in one line why not, and what to do.
func refused(format string, args ...any) error {
	return advised{fmt.Errorf("the ECS agent may not start: "+format, args...), "see 'journalctl -u cloud-final' and run bootstrap again"}
}

// whoAmI is the instance's ID, by the metadata service or, where that does not answer, by cloud-init.
func whoAmI(ctx context.Context) (string, error) {
	asking, cancel := context.WithTimeout(ctx, whoTimeout)
	defer cancel()
	m, err := readMetadata(asking)
	if err == nil {
		return m.InstanceID, nil
	}
	file := instanceIDFile
	if testOnlyInstanceIDFile != "" {
		file = testOnlyInstanceIDFile
	}
	data, readErr := os.ReadFile(file)
	if id := strings.TrimSpace(string(data)); readErr == nil && id != "" {
		return id, nil
	}
	return "", err
}
