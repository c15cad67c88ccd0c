//go:build aws

package aws_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"sevagent/internal/mtls/issue"
	"sevagent/internal/mtls/issue/privateca"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
)

const templates = "arn:aws:acm-pca:::template/"

// privateCA makes a CA with a key of a kind, under the CA above, or a root.
func (c *cloud) privateCA(name, key, above string) (arn string) {
	c.t.Helper()
	pca := func(args ...string) string { return c.aws(append([]string{"acm-pca"}, args...)...) }
	dir := c.t.TempDir()
	file := func(name, text string) string {
		must.Do(c.t, os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600), "write %s", name)
		return "fileb://" + filepath.Join(dir, name)
	}
	arn = pca("create-certificate-authority", "--certificate-authority-type", "ROOT",
		"--certificate-authority-configuration",
		"KeyAlgorithm="+key+",SigningAlgorithm=SHA256WITHRSA,Subject={CommonName="+name+"}",
		"--query", "CertificateAuthorityArn", "--output", "text")
	csr := pca("get-certificate-authority-csr", "--certificate-authority-arn", arn, "--output", "text")
	signer, template, days := arn, "RootCACertificate/V1", "3650"
	if above != "" {
		signer, template, days = above, "SubordinateCACertificate_PathLen0/V1", "365"
	}
	algorithm := "SHA256WITHRSA"
	if above == "" && strings.HasPrefix(key, "EC_") {
		algorithm = "SHA256WITHECDSA"
	}
	made := pca("issue-certificate", "--certificate-authority-arn", signer, "--csr", file("csr", csr),
		"--signing-algorithm", algorithm, "--template-arn", templates+template,
		"--validity", "Type=DAYS,Value="+days, "--output", "text")
	get := []string{"--certificate-authority-arn", signer, "--certificate-arn", made}
	pca(append([]string{"wait", "certificate-issued"}, get...)...)
	var answer struct{ Certificate, CertificateChain string }
	text := pca(append([]string{"get-certificate", "--output", "json"}, get...)...)
	must.Do(c.t, json.Unmarshal([]byte(text), &answer), "decode %s", text)
	args := []string{"import-certificate-authority-certificate", "--certificate-authority-arn", arn,
		"--certificate", file("certificate", answer.Certificate)}
	if answer.CertificateChain != "" {
		args = append(args, "--certificate-chain", file("chain", answer.CertificateChain))
	}
	pca(args...)
	return arn
}

// TestPrivateCA orders certificates as a node does whose role has the rights that the package says it needs.
func TestPrivateCA(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	root := c.privateCA("Root", "RSA_2048", "")
	below := c.privateCA("Below", "EC_prime256v1", root)
	const client = "EndEntityClientAuthCertificate/V1"
	c.aws("iam", "create-role", "--role-name", "node", "--assume-role-policy-document",
		`{"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}`)
	c.aws("iam", "put-role-policy", "--role-name", "node", "--policy-name", "p", "--policy-document",
		`{"Version": "2012-10-17", "Statement": [
			{"Effect": "Allow", "Action": "acm-pca:IssueCertificate", "Resource": ["`+root+`", "`+below+`"],
			 "Condition": {"StringEquals": {"acm-pca:TemplateArn": "`+templates+client+`"}}},
			{"Effect": "Allow", "Action": ["acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"],
			 "Resource": ["`+root+`", "`+below+`"]}]}`)
	keys := strings.Fields(c.aws("sts", "assume-role", "--role-arn", "arn:aws:iam::123456789012:role/node",
		"--role-session-name", "node", "--output", "text",
		"--query", "Credentials.[AccessKeyId,SecretAccessKey,SessionToken]"))
	order := func(ca, template string, days int) (issue.Certificate, *ecdsa.PrivateKey, error) {
		a := must.Get(privateca.New(privateca.Config{CA: ca, Template: template, Days: days,
			Access: func(context.Context) (aws.Config, error) {
				return aws.Config{Region: region, BaseEndpoint: &c.url,
					Credentials: credentials.NewStaticCredentialsProvider(keys[0], keys[1], keys[2])}, nil
			}}))(t, "make an authority")
		key := must.Get(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t, "make a key")
		csr := must.Get(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "node-1"}, DNSNames: []string{"node-1"}}, key))(t, "make a request")
		o, err := a.Order(t.Context(), issue.Request{CSR: csr, Token: rand.Text()})
		if err != nil {
			return issue.Certificate{}, nil, err
		}
		if _, err := o.Collect(t.Context()); !errors.Is(err, issue.ErrPending) {
			t.Errorf("collected at once: %v, want that it is pending", err)
		}
		got, err := o.Collect(t.Context())
		return got, key, err
	}
	for ca, length := range map[string]int{root: 1, below: 2} {
		got, key, err := order(ca, client, 7)
		if err != nil || len(got.Chain) != length || len(got.Anchors) != 1 {
			t.Fatalf("order from %s: %v, %d certificates, %d anchors", ca, err, len(got.Chain), len(got.Anchors))
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(got.Anchors[0])
		for _, i := range got.Chain[1:] {
			between.AddCert(i)
		}
		leaf := got.Chain[0]
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "node-1",
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil || !key.PublicKey.Equal(leaf.PublicKey) || got.Anchors[0].Subject.CommonName != "Root" {
			t.Errorf("the certificate of %s does not verify: %v", ca, err)
		}
		if got, want := leaf.NotAfter.Sub(leaf.NotBefore).Hours(), 7*24+1.0; got != want {
			t.Errorf("valid for %v hours, want %v", got, want)
		}
	}
	for _, k := range []struct {
		template string
		days     int
		want     string
	}{
		{"EndEntityCertificate/V1", 1, "where acm-pca:TemplateArn is " + templates + "EndEntityCertificate/V1"},
		{client, 366, "would not outlive the CA's"},
	} {
		_, _, err := order(below, k.template, k.days)
		if source.KindOf(err) != source.Persistent || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s for %d days: %v, want a persistent error with %q", k.template, k.days, err, k.want)
		}
	}
	c.aws("acm-pca", "update-certificate-authority", "--certificate-authority-arn", below, "--status", "DISABLED")
	if _, _, err := order(below, client, 1); source.KindOf(err) != source.Persistent ||
		!strings.Contains(err.Error(), "InvalidStateException") {
		t.Errorf("a CA that is disabled: %v, want a persistent error with its state", err)
	}
}
