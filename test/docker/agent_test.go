//go:build node

package docker

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"sevagent/client"
	"sevagent/internal/must"
	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

// agent is a real sevagent that publishes one secret to a tmpfs of its own.
type agent struct {
	*lab.Agent
	t       *testing.T
	secret  string // file
	version int
}

// startAgent runs the agent without attestation until the test ends. It has published when startAgent returns.
func startAgent(t *testing.T, settings string) *agent {
	t.Helper()
	return configureAgent(t, `mode: "off"`, settings)
}

// configureAgent is startAgent with the settings of attestation and of mtls.
func configureAgent(t *testing.T, attestation, settings string) *agent {
	t.Helper()
	lab.Mount(t, lab.Published)
	a := &agent{t: t, secret: filepath.Join(t.TempDir(), "secret.json")}
	lab.Write(t, lab.ConfigDir+"/config.yaml",
		fmt.Sprintf("attestation: {%s}\nmtls: {secrets: [%q], poll_interval: 24h, %s}\n", attestation,
			"file://"+a.secret, settings))
	must.Do(t, a.renew(), "make the secret")
	a.start()
	return a
}

// start returns when the agent is ready.
func (a *agent) start() {
	a.t.Helper()
	cmd := exec.Command(lab.Bin("sevagent"), "run")
	cmd.Env = lab.Environment("AWS_REGION=" + region)
	a.Agent = lab.StartAgent(a.t, "", cmd)
	a.UntilReady()
}

// renew makes another version of the secret, of another authority, so that nothing of it fits to another version.
func (a *agent) renew() error {
	a.version++
	ca, err := simca.New(fmt.Sprintf("CA %d", a.version), time.Now())
	if err != nil {
		return err
	}
	text, err := ca.ClientSecret(a.subject(), time.Now())
	if err != nil {
		return err
	}
	return lab.Replace(a.secret, text)
}

// subject is that of the client's certificate in the newest version.
func (a *agent) subject() string { return fmt.Sprintf("client-%d", a.version) }

// publish has another version published, and returns its generation.
func (a *agent) publish() (generation string, err error) {
	if err := a.renew(); err != nil {
		return "", err
	}
	return a.Refresh()
}

// rotate is publish, for a test that goes on with what is published.
func (a *agent) rotate() (generation string) {
	a.t.Helper()
	return must.Get(a.publish())(a.t, "publish version %d", a.version)
}

// status asks with the command.
func (a *agent) status() (s client.Status) {
	a.t.Helper()
	text := lab.MustRun(a.t, exec.Command(lab.Bin("sevagent"), "status", "--json"))
	must.Do(a.t, json.Unmarshal([]byte(text), &s), "decode %s", text)
	return s
}

// metric returns what a sample, a name with its labels, has on the default address.
func (a *agent) metric(sample string) float64 {
	a.t.Helper()
	resp := must.Get(http.Get("http://127.0.0.1:9180/metrics"))(a.t, "ask for the metrics")
	defer resp.Body.Close()
	text := must.Get(io.ReadAll(resp.Body))(a.t, "read the metrics")
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		a.t.Fatalf("there is no sample %s", sample)
	}
	return must.Get(strconv.ParseFloat(string(found[1]), 64))(a.t, "read the sample %s", sample)
}
