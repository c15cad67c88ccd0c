package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sevagent/internal/nitro"
	"sevagent/internal/sim/nitrotpm"
	"sevagent/internal/sim/simnitro"
)

// simulateTPM mounts a simulated NitroTPM, where that is possible, and returns what the configuration says of it. Its
// root joins those of the simulated processor.
func (d *demo) simulateTPM() (config string, err error) {
	const off = "nitrotpm: \"off\""
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 || !d.withTPM {
		return off, nil
	}
	dir := filepath.Join(d.dir, "dev/tpm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	ca, err := simnitro.New()
	if err != nil {
		return "", err
	}
	tpm := nitrotpm.New(ca)
	tpm.Fields = simnitro.Fields{Instance: d.instance.ID, Region: d.instance.Region}
	server, err := nitrotpm.Mount(dir, tpm)
	if err != nil {
		return off, nil // a machine that lets nobody mount
	}
	d.unmountTPM, d.nitroCA = server.Unmount, ca
	roots, err := os.OpenFile(filepath.Join(d.dir, "sim/roots.pem"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer roots.Close()
	_, err = roots.Write(ca.PEM())
	return fmt.Sprintf("nitrotpm: require\n  tpm: [%s/tpmrm0, %s/tpm0]", dir, dir), err
}

// secondProof shows the document that evidence has beside its report, and that the one of another node is refused.
func (d *demo) secondProof(ctx context.Context) error {
	if d.nitroCA == nil {
		fmt.Fprintln(d.out, "   Left out: to simulate a NitroTPM needs root and /dev/fuse.")
		return nil
	}
	nonce, file := strings.Repeat("5a", 32), filepath.Join(d.dir, "both.json")
	ask := []string{"evidence", "--socket", d.socket(), "--nonce", nonce, "-o", file}
	if _, err := d.runCommand(ctx, "sevagent", ask...); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var document map[string]json.RawMessage
	var report, second []byte
	if err := errors.Join(json.Unmarshal(text, &document), json.Unmarshal(document["report"], &report),
		json.Unmarshal(document["nitrotpm"], &second)); err != nil {
		return err
	}
	verify := []string{"evidence", "verify", file, "--nonce", nonce, "--policy", filepath.Join(d.dir, "sim/policy.yaml"),
		"--allow-custom-roots", "--region", d.instance.Region}
	if _, err := d.runCommand(ctx, "sevctl", verify...); err != nil {
		return err
	}

	// An attacker's own guest has made the report; an honest node's NitroTPM names the report of that node alone.
	userData, reportData := nitro.Binding(append([]byte{report[0] + 1}, report[1:]...))
	foreign, err := d.nitroCA.Sign(simnitro.Fields{
		Instance: "i-0fedcba9876543210", Region: d.instance.Region, Time: time.Now(),
		UserData: userData[:], Nonce: reportData[:],
	})
	if err != nil {
		return err
	}
	relayed := strings.NewReplacer(
		base64.StdEncoding.EncodeToString(second), base64.StdEncoding.EncodeToString(foreign),
		base64.RawURLEncoding.EncodeToString(second), base64.RawURLEncoding.EncodeToString(foreign),
	).Replace(string(text))
	if err := os.WriteFile(file, []byte(relayed), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   With the document of another node in its place, which names another report:")
	output, err := d.runCommand(ctx, "sevctl", verify...)
	if exitCode(err) != 1 || !strings.Contains(output, "nitrotpm_binding") {
		return fmt.Errorf("sevctl on a relayed document: %v, want exit status 1 and nitrotpm_binding", err)
	}
	return nil
}
