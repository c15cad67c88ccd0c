//go:build aws

package aws_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
	"sevagent/test/lab"
)

// keysNode is a node of a cluster whose keys are made on the node: the real bootstrap has configured it from the
// stack's user data, and what it asks of AWS it asks as the stack's role.
type keysNode struct {
	*cloud
	id     string
	config string   // the agent's directory
	env    []string // with the metadata service, and the role's credentials
}

// bootKeys configures the first node of a cluster. files are in the AMI's /etc/sevagent/conf.d.
func (c *cloud) bootKeys(cluster, socket string, files map[string]string) *keysNode {
	c.t.Helper()
	n := &keysNode{cloud: c, id: c.instances(cluster)[0], config: c.t.TempDir()}
	for name, text := range files {
		lab.Write(c.t, filepath.Join(n.config, "conf.d", name), text)
	}
	instance := simaws.DefaultInstance()
	instance.ID, instance.AccountID = n.id, "123456789012"
	imds := httptest.NewServer(&simaws.IMDS{Instance: instance})
	c.t.Cleanup(imds.Close)
	state := c.t.TempDir()
	cmd := exec.Command(lab.Bin("bootstrap"), "--services", "none", "--socket", socket, "--config-dir", n.config,
		"--state-dir", state, "--ecs-config", filepath.Join(state, "ecs.config"))
	cmd.Env = c.bootstrapEnvironment(imds.URL, c.userData(cluster))
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("bootstrap: %v\n%s", err, out)
	}
	keys := strings.Fields(c.query("Credentials.[AccessKeyId,SecretAccessKey,SessionToken]", "sts", "assume-role",
		"--role-arn", c.query("Role.Arn", "iam", "get-role", "--role-name", c.role(cluster, "NodeRole")),
		"--role-session-name", "node"))
	n.env = append(slices.Clone(c.env), "AWS_EC2_METADATA_SERVICE_ENDPOINT="+imds.URL, "AWS_EC2_METADATA_DISABLED=",
		"AWS_ACCESS_KEY_ID="+keys[0], "AWS_SECRET_ACCESS_KEY="+keys[1], "AWS_SESSION_TOKEN="+keys[2])
	if out, err := n.run("sevagent", "check", "--config-only", "--config", n.config); err != nil {
		c.t.Errorf("the configuration: %v\n%s", err, out)
	}
	return n
}

// run runs a program as the node.
func (n *keysNode) run(name string, args ...string) (out string, err error) {
	cmd := n.command(name, args...)
	cmd.Env = n.env
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// publish runs the real agent until it is ready, and returns the files that it has published.
func (n *keysNode) publish() map[string]string {
	n.t.Helper()
	dir := n.t.TempDir()
	socket := filepath.Join(dir, "s")
	lab.Write(n.t, filepath.Join(n.config, "conf.d/70-test.yaml"), fmt.Sprintf(`
attestation: {mode: "off"}
mtls: {path: %s/mtls, allow_disk: true, owner: "%d:%d"}
listen: {socket: %s, tcp: ""}
`, dir, os.Getuid(), os.Getgid(), socket))
	cmd := n.command("sevagent", "run", "--config", n.config)
	cmd.Env = n.env
	agent := lab.StartAgent(n.t, socket, cmd)
	agent.UntilReady()
	status := must.Get(agent.Client.Status(n.t.Context()))(n.t, "ask for the status")
	for _, s := range status.MTLS.Secrets {
		if s.Issue != nil && s.Issue.Issuances != 1 {
			n.t.Errorf("%s: %d certificates were issued, want 1", s.Name, s.Issue.Issuances)
		}
	}
	files := make(map[string]string)
	for _, path := range must.Get(filepath.Glob(dir+"/mtls/..data/*"))(n.t, "list the files") {
		files[filepath.Base(path)] = lab.Read(n.t, path)
	}
	return files
}

func parseOne(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no certificate: %q", text)
	}
	return must.Get(x509.ParseCertificate(block.Bytes))(t, "parse a certificate")
}

// mayIssue reports whether the node's role may have a certificate by a template.
func (n *keysNode) mayIssue(ca, template string) bool {
	n.t.Helper()
	out, err := n.run("aws", "acm-pca", "issue-certificate", "--certificate-authority-arn", ca, "--csr",
		"fileb://"+filepath.Join(n.dir, "ca.csr"), "--signing-algorithm", "SHA256WITHECDSA", "--template-arn",
		templates+template, "--validity", "Type=DAYS,Value=1")
	if err != nil && !strings.Contains(out, "AccessDenied") {
		n.t.Errorf("%s: %s", template, out)
	}
	return err == nil
}

// TestKeysGuide runs docs/keys.md from the first block to the last. The nodes' certificates are issued for real: by
// bootstrap, agent and role of the stack, and the emulated CA.
func TestKeysGuide(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	names, blocks := recipes(t, "docs/keys.md")
	socket := c.simulatedNode()
	const cluster = "confidential-cluster"
	c.set("AMI", c.query("Parameter.Value", "ssm", "get-parameter", "--name",
		"/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"))
	c.set("ENCLAVE_SG", c.query("GroupId", "ec2", "create-security-group", "--group-name", "enclave", "--description",
		"enclave", "--vpc-id", c.get("VPC")))
	c.certificates() // ca.crt among them
	must.Do(t, lab.Replace(filepath.Join(c.dir, "enclave-ca.pem"), lab.Read(t, filepath.Join(c.dir, "ca.crt"))), "copy")
	lab.Write(t, filepath.Join(c.dir, "eab.json"), `{"kid": "one", "hmac_key": "c2VjcmV0"}`)

	// The files of the AMI, which a reader copies from the page.
	page := lab.Read(t, filepath.Join(lab.Repository(), "docs/keys.md"))
	files := make(map[string]string)
	for _, m := range regexp.MustCompile("(?ms)^```yaml file=(\\S+)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		files[m[1]] = strings.ReplaceAll(m[2], "/etc/sevagent/ca.pem", filepath.Join(c.dir, "enclave-ca.pem"))
	}
	if fences := strings.Count(page, "\n```yaml"); fences != len(files) || fences < 3 {
		t.Errorf("the page has %d blocks of configuration, and %d of them have names", fences, len(files))
	}
	for name, text := range files {
		path := filepath.Join(t.TempDir(), name)
		lab.Write(t, path, text)
		if out, status := c.run("sevagent", "check", "--config-only", "--config", path); status != 0 {
			t.Errorf("%s: %s", name, out)
		}
	}
	inAMI := func(name string) map[string]string { return map[string]string{name: files[name]} }

	before := map[string]func(){
		"peers-deploy": func() {
			c.set("PEERS", c.query("ARN", "secretsmanager", "describe-secret", "--secret-id", cluster+"-peers"))
		},
	}
	after := map[string]func(out string){
		"ca": func(out string) {
			lines := strings.Fields(out)
			c.set("CA", lines[len(lines)-1])
			var ca struct {
				CertificateAuthority struct{ Status, UsageMode string }
			}
			text := c.aws("acm-pca", "describe-certificate-authority", "--certificate-authority-arn", c.get("CA"))
			must.Do(t, json.Unmarshal([]byte(text), &ca), "decode %s", text)
			if got := ca.CertificateAuthority; got.Status != "ACTIVE" || got.UsageMode != "SHORT_LIVED_CERTIFICATE" {
				t.Errorf("the CA is %+v", got)
			}
		},
		"private-ca": func(string) {
			c.stands(cluster, "CREATE_COMPLETE", 1)
			n := c.bootKeys(cluster, socket, nil)
			got := n.publish()
			root, leaf := parseOne(t, got["ca.crt"]), parseOne(t, got["client.crt"])
			if want := lab.Read(t, filepath.Join(c.dir, "ca.pem")); strings.TrimSpace(got["ca.crt"]) != strings.TrimSpace(want) {
				t.Errorf("ca.crt is %s, want the CA's root", root.Subject)
			}
			name := n.id + ".nodes.example.com"
			if err := leaf.CheckSignatureFrom(root); err != nil || leaf.Subject.CommonName != n.id ||
				!slices.Equal(leaf.DNSNames, []string{name}) {
				t.Errorf("the certificate is %s with %q, want %s with %s; %v", leaf.Subject, leaf.DNSNames, n.id, name, err)
			}
			if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
				t.Errorf("the certificate is for %v, want clients alone", leaf.ExtKeyUsage)
			}
			if hours := leaf.NotAfter.Sub(leaf.NotBefore).Hours(); hours != 25 {
				t.Errorf("the certificate is valid for %v hours, want 25", hours)
			}
			if got["server.crt"] != "" || got["client.key"] == "" {
				t.Errorf("published: %q", slices.Sorted(maps.Keys(got)))
			}
			// The role may do this, and no more.
			other := c.privateCA("other", "EC_prime256v1", "")
			for _, k := range []struct {
				ca, template string
				want         bool
			}{
				{c.get("CA"), "EndEntityClientAuthCertificate/V1", true},
				{c.get("CA"), "EndEntityServerAuthCertificate/V1", false},
				{c.get("CA"), "EndEntityCertificate/V1", false},
				{c.get("CA"), "SubordinateCACertificate_PathLen0/V1", false},
				{other, "EndEntityClientAuthCertificate/V1", false},
			} {
				if got := n.mayIssue(k.ca, k.template); got != k.want {
					t.Errorf("the role may issue by %s from %s: %v, want %v", k.template, k.ca, got, k.want)
				}
			}
		},
		"peers-deploy": func(string) {
			c.stands(cluster, "UPDATE_COMPLETE", 1)
			got := c.bootKeys(cluster, socket, nil).publish()
			if got["ca.crt"] != lab.Read(t, filepath.Join(c.dir, "enclave-ca.pem")) {
				t.Errorf("ca.crt is not the enclave's CA: %s", got["ca.crt"])
			}
			if err := parseOne(t, got["client.crt"]).CheckSignatureFrom(parseOne(t, got["issuer.crt"])); err != nil {
				t.Errorf("issuer.crt: %v", err)
			}
		},
		"evidence": func(string) {
			c.stands(cluster, "UPDATE_COMPLETE", 1)
			n := c.bootKeys(cluster, socket, nil)
			if !n.mayIssue(c.get("CA"), "EndEntityClientAuthCertificate_APIPassthrough/V1") ||
				n.mayIssue(c.get("CA"), "EndEntityClientAuthCertificate/V1") {
				t.Error("the role may not issue by the template with evidence, or by the other one")
			}
		},
		"acme": func(string) {
			c.stands("confidential-acme", "CREATE_COMPLETE", 1)
			c.bootKeys("confidential-acme", socket, inAMI("60-acme.yaml"))
			if got := c.query("AttachedPolicies[].PolicyName", "iam", "list-attached-role-policies", "--role-name",
				c.role("confidential-acme", "NodeRole")); !strings.Contains(got, "confidential-acme-eab") {
				t.Errorf("the role has the policies %s", got)
			}
		},
		"spiffe": func(string) {
			c.stands("confidential-spiffe", "CREATE_COMPLETE", 1)
			c.bootKeys("confidential-spiffe", socket, inAMI("60-spiffe.yaml"))
		},
		"delete": func(string) {
			if got := c.query("CertificateAuthority.Status", "acm-pca", "describe-certificate-authority",
				"--certificate-authority-arn", c.get("CA")); got != "DELETED" {
				t.Errorf("the CA is %s", got)
			}
		},
	}
	c.follow(names, blocks, before, after)
}
