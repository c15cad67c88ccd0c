package main

import (
	"bytes"
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sevagent/internal/bundle"
	"sevagent/internal/cli"
)

func bundleCommand(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Pack an archive for support, without secrets",
		Long: `Pack what somebody who helps from afar needs to know: status, readiness,
metrics, certificates, the configuration, the state of the units and their
journal. Private keys and the content of secrets are not in it, names of
secrets and hosts are. What cannot be had is listed in its README.txt; it
works although no agent runs. To read the journal takes root.`,
		Example: "  sudo sevagent bundle\n  sudo sevagent bundle -o - | tar tz",
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now().UTC()
			host, err := os.Hostname()
			if err != nil {
				host = "node"
			}
			name := "sevagent-" + host + "-" + now.Format("20060102T150405Z")
			if file == "" {
				file = name + ".tar.gz"
			}
			var archive bytes.Buffer
			missing, err := bundle.Pack(cmd.Context(), &archive, bundle.Config{
				Socket: o.socketPath(), Path: o.config, Version: "sevagent " + cli.Version(), Name: name, Now: now,
				Status: func(ctx context.Context) ([]byte, error) {
					s, err := o.client().Status(ctx)
					if err != nil {
						return nil, err
					}
					var b bytes.Buffer
					screen{&b, 0, false, now}.status(s)
					return b.Bytes(), nil
				},
			})
			if err != nil {
				return err
			}
			if err := cli.WritePrivateOutput(cmd.Context(), file, cmd.OutOrStdout(), archive.Bytes()); err != nil {
				return err
			}
			for _, text := range missing {
				cli.Fprintf(cmd.ErrOrStderr(), "missing: %s\n", text)
			}
			if file != "-" {
				cli.Fprintf(cmd.ErrOrStderr(), "%s: %d bytes\n", file, archive.Len())
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "",
		"write to `FILE`; - is standard output\n(default: sevagent-HOST-TIME.tar.gz in this directory)")
	return cmd
}
