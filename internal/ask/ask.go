// Package ask holds the commands that ask the running agent and need nothing else to do so.
package ask

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

// Options are the flags that all of sevagent's commands share.
type Options struct {
	Config string // a directory or a file
	Socket string // empty: what the configuration says
}

// Root returns the command sevagent with the shared flags, and with the commands of this package.
func Root(o *Options) *cobra.Command {
	root := &cobra.Command{Use: "sevagent", Short: "Attest a confidential ECS node and publish its certificates"}
	root.PersistentFlags().StringVar(&o.Config, "config", "/etc/sevagent", "configuration: a directory with config.yaml and conf.d, or a file")
	root.PersistentFlags().StringVar(&o.Socket, "socket", "", "the agent's socket (default: listen.socket of the configuration)")
	root.AddCommand(evidenceCommand(o), refreshCommand(o))
	return root
}

// Client returns a client of the running agent. The configuration need not be right for that.
func (o *Options) Client() *client.Client {
	socket := o.Socket
	if socket == "" {
		socket = configfile.Socket(o.Config)
	}
	return client.New(socket)
}

// Reached marks the agent's silence as such, for the exit status.
func Reached(err error) error {
	if _, silent := errors.AsType[*client.UnreachableError](err); silent {
		return cli.Unreachable(err)
	}
	return err
}

func evidenceCommand(o *Options) *cobra.Command {
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
			doc, err := o.Client().Evidence(cmd.Context(), nonce, bind)
			if err != nil {
				return Reached(err)
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

func refreshCommand(o *Options) *cobra.Command {
	return &cobra.Command{
		Use:   "refresh",
		Short: "Make the agent pull its secrets now",
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := o.Client().Refresh(cmd.Context())
			if err != nil {
				return Reached(err)
			}
			_, err = cmd.OutOrStdout().Write(answer)
			return err
		},
	}
}
