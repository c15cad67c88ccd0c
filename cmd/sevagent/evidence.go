package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/evidence"
)

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
					return cli.Usagef("--nonce is %q, which is not hexadecimal: want two digits for each byte", nonceHex)
				}
				if len(nonce) < evidence.MinNonce || len(nonce) > evidence.MaxNonce {
					return cli.Usagef("--nonce has %d bytes, want %d to %d",
						len(nonce), evidence.MinNonce, evidence.MaxNonce)
				}
			}
			switch bind {
			case evidence.BindNone, evidence.BindClient, evidence.BindServer:
			default:
				return cli.Usagef("--bind is %q, want none, client or server", bind)
			}
			answer, err := o.client().Evidence(cmd.Context(), nonce, bind)
			if err != nil {
				return markUnreachable(err)
			}
			return cli.WriteOutput(cmd.Context(), file, cmd.OutOrStdout(), append(answer.Raw, '\n'))
		},
	}
	cmd.Flags().StringVar(&nonceHex, "nonce", "",
		"the relying party's nonce, 16 to 64 bytes in `HEX`\n(default: a random one)")
	cmd.Flags().StringVar(&bind, "bind", evidence.BindNone,
		"bind the evidence to a published certificate: `KIND` is\nnone, client or server")
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to `FILE` instead of standard output")
	return cmd
}

func refreshCommand(o *options) *cobra.Command {
	var renew string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "refresh",
		Short: "Make the agent pull its secrets now",
		Long: "Make the agent pull its secrets now, and show the outcome. Certificates that\n" +
			"are issued for a key of the node (mtls.issue) are renewed only with --renew.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ask := o.client().Refresh
			if cmd.Flags().Changed("renew") {
				ask = func(ctx context.Context) (*client.Refresh, error) { return o.client().Renew(ctx, renew) }
				if renew == "" {
					return cli.Usagef("--renew wants the name of a source in mtls.issue")
				}
			}
			answer, err := ask(cmd.Context())
			if err != nil {
				return markUnreachable(err)
			}
			if asJSON {
				return cli.JSON(cmd.OutOrStdout()).Encode(answer)
			}
			newScreen(cmd.OutOrStdout(), time.Now()).refresh(answer)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&renew, "renew", "",
		"order a new certificate from the source `NAME` of\nmtls.issue, and wait until it is published")
	return cmd
}
