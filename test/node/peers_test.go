//go:build node

package node

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// The tests of this file hold the peers to what the others take for granted, so that a failure there is the product's.

// withoutAWS takes every AWS variable out of the environment until the test ends.
func withoutAWS(t *testing.T) {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // has the variable put back
			os.Unsetenv(name)
		}
	}
}

func TestPeerMetadata(t *testing.T) {
	newMachine(t, false, false)
	withoutAWS(t)
	resp, err := http.Get("http://169.254.169.254/latest/meta-data/instance-id")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %s, want 401", resp.Status)
	}

	client := imds.New(imds.Options{EnableFallback: aws.FalseTernary})
	id, err := client.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: "instance-id"})
	if err != nil {
		t.Fatal(err)
	}
	defer id.Content.Close()
	if got, err := io.ReadAll(id.Content); err != nil || string(got) != "i-0123456789abcdef0" {
		t.Errorf("instance-id is %q (%v), want i-0123456789abcdef0", got, err)
	}
	doc, err := client.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if doc.InstanceType != "m6a.large" || doc.Region != "us-east-2" {
		t.Errorf("identity document: %s in %s, want m6a.large in us-east-2", doc.InstanceType, doc.Region)
	}
}

func TestPeerSecretsManager(t *testing.T) {
	m := newMachine(t, false, false)
	withoutAWS(t)
	m.aws("secretsmanager", "create-secret", "--name", "peer", "--secret-string", "first")
	m.aws("secretsmanager", "put-secret-value", "--secret-id", "peer", "--secret-string", "second")

	// Region and credentials come from the metadata service, as they do on a node.
	cfg, err := config.LoadDefaultConfig(t.Context(), config.WithEC2IMDSRegion())
	if err != nil {
		t.Fatal(err)
	}
	client := secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) { o.BaseEndpoint = aws.String("http://" + m.moto) })
	for stage, want := range map[string]string{"AWSCURRENT": "second", "AWSPREVIOUS": "first"} {
		got, err := client.GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String("peer"), VersionStage: aws.String(stage)})
		if err != nil {
			t.Errorf("%s: %v", stage, err)
		} else if aws.ToString(got.SecretString) != want {
			t.Errorf("%s is %q, want %q", stage, aws.ToString(got.SecretString), want)
		}
	}
}
