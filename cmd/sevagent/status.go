package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sevagent/client"
	"sevagent/internal/cli"
	"sevagent/internal/config"
)

func statusCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the running agent's state",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := o.client().Status(cmd.Context())
			if err != nil {
				return markUnreachable(err)
			}
			if asJSON {
				enc := cli.JSON(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(s); err != nil {
					return err
				}
			} else {
				printStatus(cmd.OutOrStdout(), s)
			}
			if !s.Health.Ready() {
				return errors.New("read the agent's status: the node is not ready")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printStatus writes the status for people.
func printStatus(w io.Writer, s *client.Status) {
	cli.Fprintf(w, "sevagent %s, started %s\n", s.Version, date(s.StartedAt))
	cli.Fprintf(w, "ready           %s\n", s.Health.Status)
	t := s.Attestation
	cli.Fprintf(w, "attestation     %s, gate passed: %v", t.Mode, t.GatePassed)
	if t.Verdict != "" {
		cli.Fprintf(w, ", verdict %s, policy %s, roots: %s", t.Verdict, t.Policy, t.Roots)
	}
	fmt.Fprintln(w)
	if t.InstanceID != "" {
		cli.Fprintf(w, "instance        %s\n", t.InstanceID)
	}
	if t.ReportVersion != 0 {
		cli.Fprintf(w, "report          version %d by %s %s, TCB %s, firmware %s, over %s\n",
			t.ReportVersion, t.Signer, t.CSPID, t.ReportedTCB, t.Firmware, t.Transport)
		cli.Fprintf(w, "measurement     %s\n", t.Measurement)
	}
	printCertificates(w, &s.MTLS, time.Now())
	for _, e := range s.Endpoints {
		cli.Fprintf(w, "endpoint        %s: %s%s\n", e.Endpoint, e.Result, reason(e.Reason))
	}
	for _, r := range s.Readers.Stale {
		cli.Fprintf(w, "stale reader    %s\n", r)
	}
	fmt.Fprintln(w)
	printHealth(w, &s.Health)
}

func printCertificates(w io.Writer, m *client.Publication, now time.Time) {
	if m.Generation != "" {
		until := "valid until"
		if !m.NotAfter.IsZero() && now.After(m.NotAfter) {
			until = "expired"
		}
		cli.Fprintf(w, "certificates    %s, published %s, %s %s\n",
			m.Path, date(m.PublishedAt), until, date(m.NotAfter))
		for _, c := range m.Certificates {
			cli.Fprintf(w, "                %-12s %s\n", c.File, c.Subject)
		}
		for _, o := range m.CAOverlap {
			cli.Fprintf(w, "                ca.crt keeps %s until %s\n", o.Subject, date(o.Until))
		}
		cli.Fprintf(w, "guard           %s, immutable: %v, repairs: %d%s\n",
			m.Guard.State, m.Guard.Immutable, m.Guard.Repairs, reason(m.Guard.Error))
		for _, f := range m.Guard.Findings {
			cli.Fprintf(w, "                found at %s: %s\n", date(m.Guard.At), f)
		}
	}
	for _, c := range m.Consumers {
		cli.Fprintf(w, "consumer        %s: %s, guard %s%s\n",
			c.Name, strings.Join(c.Files, " "), c.Guard.State, reason(c.Error))
	}
	for _, secret := range m.Secrets {
		cli.Fprintf(w, "secret          %s: %s%s\n", secret.Name, secret.State, reason(secret.Error))
		if p := secret.Preflight; p != nil {
			cli.Fprintf(w, "                pending version %s: %s%s\n", p.Version, p.Result, reason(p.Reason))
		}
		if i := secret.Issue; i != nil {
			cli.Fprintf(w, "                %s by %s, %s%s\n", i.State, i.From, i.Authority, renewal(secret))
		}
	}
	if m.Cost.CallsPerMonth > 0 {
		cli.Fprintf(w, "polling         about %d calls, USD %.2f a month\n", m.Cost.CallsPerMonth, m.Cost.USDPerMonth)
	}
	if m.Clock.Error != "" {
		cli.Fprintf(w, "clock           %s\n", m.Clock.Error)
	}
}

// reason returns the end of a line that gives a reason, if there is one. Several reasons stand on lines of their own.
func reason(text string) string {
	if text == "" {
		return ""
	}
	return ": " + strings.ReplaceAll(text, "\n", "; ")
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func printHealth(w io.Writer, h *client.Health) {
	for _, name := range slices.Sorted(maps.Keys(h.Checks)) {
		for _, c := range h.Checks[name] {
			title := name
			if c.ComponentID != "" {
				title += " " + c.ComponentID
			}
			if c.Next != "" {
				c.Output += "; " + c.Next
			}
			cli.Fprintf(w, "%-4s  %s%s\n", c.Status, title, reason(c.Output))
		}
	}
}

// renewal says when an issued certificate is renewed or, in trouble, when that is tried again, as far as that is known.
// A SPIRE agent decides by itself.
func renewal(secret client.SecretStatus) string {
	i := secret.Issue
	troubled := i.State == client.IssueFailing || i.State == client.IssueRefused
	switch {
	case troubled && i.From != config.FromSPIFFE:
		return ", tried again at " + date(secret.NextCheck)
	case i.RenewAt.IsZero():
		return ""
	}
	return ", next one at " + i.RenewAt.UTC().Format(time.RFC3339)
}
