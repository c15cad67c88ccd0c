package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/sim"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simca"
	"sevagent/internal/sim/simnitro"
)

// demo is a node under a directory of its own, and its surroundings.
type demo struct {
	out     io.Writer
	dir     string // the node's root
	mtls    string // the published directory
	bin     string // where the binaries are
	env     []string
	psp     *sim.PSP
	secrets *simaws.Secrets
	ca      *simca.CA
	step    int
	agent   *exec.Cmd

	authority  *simaws.PrivateCA // by whom ca issues for keys of the node
	withTPM    bool              // if possible
	unmountTPM func() error      // nil: it is not mounted
	nitroCA    *simnitro.CA      // of the NitroTPM; nil: it cannot be simulated here
	// What 'sevsim node' has flags for.
	poll     time.Duration // mtls.poll_interval
	instance simaws.Instance
	stack    string // that bootstrap signals to; empty: none
}

const secretName = "demo/mtls"

func runDemo(ctx context.Context, out io.Writer, keep bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d := &demo{out: out, poll: 5 * time.Minute, instance: simaws.DefaultInstance(), withTPM: true}
	if err := d.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the node: %w", err)
	}
	defer func() { err = errors.Join(err, d.cleanUp(keep)) }()
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Bootstrap the node: metadata, agent, proof, certificates, ecs.config", d.bootstrap},
		{"The node as the agent sees it", d.status},
		{"The published certificates", d.published},
		{"Run bootstrap again: it changes nothing", d.again},
		{"Rotate the secret: the files switch", d.rotate},
		{"Break the secret: the last good set stays", d.breakSecret},
		{"Ask for evidence, and verify it as a relying party", d.evidence},
		{"A second proof, by AWS's NitroTPM, and a relay that it closes", d.secondProof},
		{"A key that is made on the node, certified by a simulated Private CA", d.born},
		{"Stop the agent", d.stop},
	} {
		d.step++
		fmt.Fprintf(out, "\n== %d. %s\n", d.step, step.title)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", d.step, step.title, err)
		}
	}
	fmt.Fprintln(out, "\nEvery step passed. The SNP device was simulated; everything else was the real binaries.")
	return nil
}

// prepare makes the directory, starts the device and AWS, and puts the first secret there.
func (d *demo) prepare(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.bin = filepath.Dir(self)
	// Private keys belong in memory: a tmpfs that every user may write to, where there is one.
	base, onDisk := "/dev/shm", false
	var fs unix.Statfs_t
	if err := unix.Statfs(base, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || unix.Access(base, unix.W_OK) != nil {
		base, onDisk = os.TempDir(), true
	}
	if d.dir, err = os.MkdirTemp(base, "sevagent-demo-"); err != nil {
		return err
	}
	d.mtls = filepath.Join(d.dir, "etc/ecs/mtls")
	for _, sub := range []string{"etc/sevagent/conf.d", "etc/ecs/mtls", "run", "dev", "sim"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o755); err != nil {
			return err
		}
	}

	now := time.Now()
	o := sim.DefaultOptions(now)
	o.Region = d.instance.Region
	if d.psp, err = loadOrNew(filepath.Join(d.dir, "sim"), o); err != nil {
		return err
	}
	// Something that is no plain file, which the agent would not take for a device.
	if err := unix.Mkfifo(filepath.Join(d.dir, "dev/sev-guest"), 0o600); err != nil {
		return err
	}
	device, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.deviceSocket(), Net: "unix"})
	if err != nil {
		return err
	}
	go d.psp.ServeIoctl(ctx, device)

	d.secrets = &simaws.Secrets{Region: d.instance.Region, AccountID: d.instance.AccountID}
	imds, err := serve(ctx, &simaws.IMDS{Instance: d.instance})
	if err != nil {
		return err
	}
	secrets, err := serve(ctx, d.secrets)
	if err != nil {
		return err
	}
	if d.ca, err = simca.New("Demo CA", now); err != nil {
		return err
	}
	if err := d.putSecret("client-1"); err != nil {
		return err
	}
	d.authority = &simaws.PrivateCA{Region: d.instance.Region, AccountID: d.instance.AccountID}
	d.authority.SetCA(d.ca)
	authority, err := serve(ctx, d.authority)
	if err != nil {
		return err
	}
	nitroTPM, err := d.simulateTPM()
	if err != nil {
		return err
	}
	d.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir,
		"AWS_EC2_METADATA_SERVICE_ENDPOINT=" + imds, "AWS_ENDPOINT_URL_SECRETS_MANAGER=" + secrets,
		"AWS_ENDPOINT_URL_ACM_PCA=" + authority,
	}
	config := fmt.Sprintf(`# The operator's part of the demonstration node.
attestation:
  transport: ioctl
  device: %s/dev/sev-guest
  policy: %s/sim/policy.yaml
  rate: 20
  %s
mtls:
  owner: "%d:%d"
  poll_interval: %v
  allow_disk: %v
listen:
  socket: %s
  tcp: ""
`, d.dir, d.dir, nitroTPM, os.Getuid(), os.Getgid(), d.poll, onDisk, d.socket())
	if err := os.WriteFile(filepath.Join(d.dir, "etc/sevagent/config.yaml"), []byte(config), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "A simulated node under %s, run by %s.\n", d.dir, currentUser())
	fmt.Fprintln(d.out, "SIMULATED: the SNP device signs with a root of its own, made for this run. "+
		"Nothing below proves real hardware.")
	if onDisk {
		fmt.Fprintln(d.out,
			"No writable tmpfs was found: this demonstration's private keys are on a disk (allow_disk).")
	}
	return nil
}

func serve(ctx context.Context, h http.Handler) (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	go srv.Serve(l)
	return "http://" + l.Addr().String(), nil
}

func (d *demo) socket() string       { return filepath.Join(d.dir, "run/sevagent.sock") }
func (d *demo) deviceSocket() string { return filepath.Join(d.dir, "sim/device.sock") }
func (d *demo) configDir() string    { return filepath.Join(d.dir, "etc/sevagent") }
func (d *demo) ecsConfig() string    { return filepath.Join(d.dir, "etc/ecs/ecs.config") }

func (d *demo) putSecret(name string) error {
	secret, err := d.ca.ClientSecret(name, time.Now())
	if err != nil {
		return err
	}
	d.secrets.Put(secretName, secret)
	return nil
}

// command prepares one of the product's binaries.
func (d *demo) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, name), args...)
	cmd.Env = d.env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// runCommand runs a binary, and prints and returns its output.
func (d *demo) runCommand(ctx context.Context, name string, args ...string) (string, error) {
	fmt.Fprintf(d.out, "   $ %s %s\n", name, strings.Join(args, " "))
	output, err := d.command(ctx, name, args...).CombinedOutput()
	d.printIndented(output)
	return string(output), err
}

func (d *demo) printIndented(text []byte) {
	for line := range strings.Lines(string(text)) {
		if len(line) > 220 {
			line = line[:220] + "…\n"
		}
		fmt.Fprintf(d.out, "     %s\n", strings.TrimSuffix(line, "\n"))
	}
}

func (d *demo) bootstrapArgs() []string {
	args := []string{
		"--cluster", "demo", "--mtls-secret", secretName, "--mtls-path", d.mtls, "--config-dir", d.configDir(),
		"--state-dir", filepath.Join(d.dir, "var/lib/sevagent"),
		"--ecs-config", d.ecsConfig(), "--socket", d.socket(), "--services", "none", "--timeout", "30s",
	}
	if d.stack != "" {
		args = append(args, "--stack", d.stack, "--ready-resource", readyResource)
	}
	return args
}

// bootstrap runs the real bootstrap, and in systemd's place starts the agent once it is configured.
func (d *demo) bootstrap(ctx context.Context) error {
	began := time.Now()
	boot := d.command(ctx, "bootstrap", d.bootstrapArgs()...)
	var output bytes.Buffer
	boot.Stdout, boot.Stderr = &output, &output
	fmt.Fprintf(d.out, "   $ bootstrap %s\n", strings.Join(d.bootstrapArgs(), " "))
	if err := boot.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- boot.Wait() }()
	configured := filepath.Join(d.configDir(), "conf.d/50-bootstrap.yaml")
	for {
		if _, err := os.Stat(configured); err == nil {
			break
		}
		select {
		case err := <-done:
			d.printIndented(output.Bytes())
			return errors.Join(errors.New("bootstrap ended before it configured the agent"), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := d.startAgent(ctx); err != nil {
		return err
	}
	err := <-done
	d.printIndented(output.Bytes())
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "   The node was up %v after bootstrap began. %s:\n",
		time.Since(began).Round(time.Millisecond), d.ecsConfig())
	text, err := os.ReadFile(d.ecsConfig())
	d.printIndented(text)
	if err == nil && !strings.Contains(string(text), `"sevagent.attested":"simulated"`) {
		err = errors.New("ecs.config does not say that the node is attested by a simulator")
	}
	return err
}

func (d *demo) startAgent(ctx context.Context) error {
	args := []string{"exec", "--device", d.deviceSocket(), "--", filepath.Join(d.bin, "sevagent"), "run",
		"--config", d.configDir()}
	d.agent = d.command(ctx, "sevsim", args...)
	log, err := os.Create(filepath.Join(d.dir, "sevagent.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.agent.Stderr = log
	return d.agent.Start()
}

func (d *demo) status(ctx context.Context) error {
	text, err := d.runCommand(ctx, "sevagent", "status", "--socket", d.socket())
	if err == nil && !strings.Contains(text, "roots: custom") {
		err = errors.New("the status does not mark the report as simulated")
	}
	return err
}

// client reads the certificate that a container would load from the published directory.
func (d *demo) client() (*x509.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(d.mtls, "client.pem"))
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("client.pem holds no certificate")
}

func (d *demo) published(context.Context) error {
	entries, err := os.ReadDir(d.mtls)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(d.mtls, e.Name()))
		fmt.Fprintf(d.out, "     %-14s -> %s\n", e.Name(), target)
	}
	return d.expect("client-1")
}

func (d *demo) expect(name string) error {
	cert, err := d.client()
	if err != nil {
		return err
	}
	if cert.Subject.CommonName != name {
		return fmt.Errorf("the published certificate is for %s, want %s", cert.Subject.CommonName, name)
	}
	fmt.Fprintf(d.out, "   client.pem is the certificate of %s, valid until %s\n",
		name, cert.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

func (d *demo) again(ctx context.Context) error {
	text, err := d.runCommand(ctx, "bootstrap", d.bootstrapArgs()...)
	if err == nil && (strings.Contains(text, "written") || strings.Count(text, "unchanged") != 2) {
		err = errors.New("bootstrap changed something")
	}
	return err
}

func (d *demo) rotate(ctx context.Context) error {
	before, err := os.Readlink(filepath.Join(d.mtls, "..data"))
	if err != nil {
		return err
	}
	if err := d.putSecret("client-2"); err != nil {
		return err
	}
	began := time.Now()
	switched := make(chan time.Duration, 1)
	watch, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func() {
		for watch.Err() == nil {
			if now, err := os.Readlink(filepath.Join(d.mtls, "..data")); err == nil && now != before {
				switched <- time.Since(began)
				return
			}
			time.Sleep(200 * time.Microsecond)
		}
	}()
	if _, err := d.runCommand(ctx, "sevagent", "refresh", "--socket", d.socket()); err != nil {
		return err
	}
	select {
	case took := <-switched:
		fmt.Fprintf(d.out, "   The files switched %v after the refresh was typed, new report included.\n",
			took.Round(100*time.Microsecond))
	case <-watch.Done():
		return errors.New("the files did not switch")
	}
	return d.expect("client-2")
}

func (d *demo) breakSecret(ctx context.Context) error {
	d.secrets.Put(secretName, `{"client_cert": "-----BEGIN CERTIFICATE-----\nMIIB", "client_key": "", "ca_cert": ""}`)
	if _, err := d.runCommand(ctx, "sevagent", "refresh", "--socket", d.socket()); err == nil {
		return errors.New("the agent accepted a broken secret")
	}
	if err := d.expect("client-2"); err != nil {
		return err
	}
	text, err := d.runCommand(ctx, "sevagent", "check", "--config", d.configDir())
	if err == nil && !strings.Contains(text, "warn  mtls:secret") {
		err = errors.New("health does not warn of the broken secret")
	}
	return err
}

func (d *demo) evidence(ctx context.Context) error {
	b := make([]byte, 32)
	rand.Read(b)
	nonce, file := hex.EncodeToString(b), filepath.Join(d.dir, "evidence.json")
	ask := []string{"evidence", "--socket", d.socket(), "--nonce", nonce, "--bind", "client", "-o", file}
	if _, err := d.runCommand(ctx, "sevagent", ask...); err != nil {
		return err
	}
	policy := filepath.Join(d.dir, "sim/policy.yaml")
	verify := []string{"evidence", "verify", file, "--policy", policy, "--allow-custom-roots",
		"--region", d.instance.Region}
	if _, err := d.runCommand(ctx, "sevctl", append(verify, "--nonce", nonce)...); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "   The same evidence is rejected for another nonce, and by AMD's roots:")
	_, err := d.runCommand(ctx, "sevctl", append(verify, "--nonce", strings.Repeat("00", 32))...)
	if exitCode(err) != 1 {
		return fmt.Errorf("sevctl with another nonce: %v, want exit status 1", err)
	}
	text, err := d.runCommand(ctx, "sevctl", "evidence", "verify", file, "--nonce", nonce,
		"--region", d.instance.Region, "--format", "json")
	if exitCode(err) != 1 {
		return fmt.Errorf("sevctl with AMD's roots: %v, want exit status 1", err)
	}
	var result struct{ Verdict struct{ Code string } }
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&result); err != nil ||
		result.Verdict.Code != "chain_invalid" {
		return fmt.Errorf("sevctl with AMD's roots says %q (%v), want chain_invalid", result.Verdict.Code, err)
	}
	return nil
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

func (d *demo) stop(context.Context) error {
	began := time.Now()
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := d.agent.Wait()
	d.agent = nil
	fmt.Fprintf(d.out, "   The agent stopped within %v.\n", time.Since(began).Round(time.Millisecond))
	return err
}

// cleanUp removes the directory. If a step has failed, it first stops the agent and prints its log.
func (d *demo) cleanUp(keep bool) error {
	if d.agent != nil && d.agent.Process != nil {
		d.agent.Process.Signal(syscall.SIGTERM)
		d.agent.Wait()
		log, _ := os.ReadFile(filepath.Join(d.dir, "sevagent.log"))
		fmt.Fprintln(d.out, "\nThe agent's log:")
		d.printIndented(log)
	}
	if d.unmountTPM != nil {
		if err := d.unmountTPM(); err != nil {
			return err
		}
	}
	if keep {
		fmt.Fprintf(d.out, "The node's directory is kept: %s\n", d.dir)
		return nil
	}
	return sim.RemoveAll(d.dir)
}
