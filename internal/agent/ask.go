package agent

import (
	"crypto/rand"
	"encoding/hex"
	"errors"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/atomicfile"
	"sevagent/internal/cli"
	"sevagent/internal/configfile"
	"sevagent/internal/evidence"
)

// options are the flags that all of sevagent's commands share.
type options struct {
	config string // a directory or a file
	socket string // empty: what the configuration says
}

// newRoot returns the command sevagent with the shared flags, and with the commands that only ask the running agent.
func newRoot(o *options) *cobra.Command {
	root := &cobra.Command{Use: "sevagent", Short: "Attest a confidential ECS node and publish its certificates"}
	root.PersistentFlags().StringVar(&o.config, "config", "/etc/sevagent", "configuration: a directory with config.yaml and conf.d, or a file")
	root.PersistentFlags().StringVar(&o.socket, "socket", "", "the agent's socket (default: listen.socket of the configuration)")
	root.AddCommand(evidenceCommand(o), refreshCommand(o))
	return root
}

// client returns a client of the running agent. The configuration need not be right for that.
func (o *options) client() *client.Client {
	socket := o.socket
	if socket == "" {
		socket = configfile.Socket(o.config)
	}
	return client.New(socket)
}

// reached marks the agent's silence as such, for the exit status.
func reached(err error) error {
	if _, silent := errors.AsType[*client.UnreachableError](err); silent {
		return cli.Unreachable(err)
	}
	return err
}

func evidenceCommand(o *options) *cobra.Command {
	var nonceHex, bind, file string
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Get attestation evidence for a relying party",
		RunE: func(cmd *cobra.Command, args []string) error {
			nonce := make([]byte, 32)
			rand.Read(nonce)
			if nonceHex != "" {
				var err error
				if nonce, err = hex.DecodeString(nonceHex); err != nil {
					return cli.Usagef("--nonce is not hexadecimal: %w", err)
				}
				if len(nonce) < evidence.MinNonce || len(nonce) > evidence.MaxNonce {
					return cli.Usagef("--nonce has %d bytes, want %d to %d", len(nonce), evidence.MinNonce, evidence.MaxNonce)
				}
			}
			switch bind {
			case evidence.BindNone, evidence.BindClient, evidence.BindServer:
			default:
				return cli.Usagef("--bind is %q, want none, client or server", bind)
			}
			doc, err := o.client().Evidence(cmd.Context(), nonce, bind)
			if err != nil {
				return reached(err)
			}
			if file == "" {
				_, err = cmd.OutOrStdout().Write(doc)
				return err
			}
			return atomicfile.Write(file, doc, 0o644)
		},
	}
	cmd.Flags().StringVar(&nonceHex, "nonce", "", "the relying party's nonce, 16 to 64 bytes in hex (default: a random one)")
	cmd.Flags().StringVar(&bind, "bind", evidence.BindNone, "bind the evidence to the published client or server certificate")
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to a file instead of standard output")
	return cmd
}

func refreshCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "refresh",
		Short: "Make the agent pull its secrets now",
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := o.client().Refresh(cmd.Context())
			if err != nil {
				return reached(err)
			}
			_, err = cmd.OutOrStdout().Write(answer)
			return err
		},
	}
}
