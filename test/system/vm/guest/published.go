package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"sevagent/internal/sim/simca"
	"sevagent/test/lab"
)

const (
	secretPath = "/srv/lab/secret.json"
	diskPath   = "/var/lib/lab/mtls"
)

// renew makes another version of the secret. Version N has client-N by CA-N, so that a mixed set shows.
func renew() error {
	version := strconv.FormatInt(time.Now().UnixNano(), 36)
	ca, err := simca.New("CA-"+version, time.Now())
	if err != nil {
		return err
	}
	text, err := ca.ClientSecret("client-"+version, time.Now())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(secretPath), 0o755); err != nil {
		return err
	}
	return lab.Replace(secretPath, text)
}

// checkPublished checks that ..data of a published directory leads to one generation, with all its files and no others,
// of one version. It returns the name of the generation.
func checkPublished(dir string) (string, error) {
	generation, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		return "", err
	}
	// From here on by its name: a running agent may switch to the next.
	current := filepath.Join(dir, generation)
	text, err := os.ReadFile(filepath.Join(current, "manifest.json"))
	if err != nil {
		return "", err
	}
	var manifest struct {
		Generation string `json:"generation"`
		Files      []struct {
			File   string `json:"file"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return "", fmt.Errorf("manifest.json of %s: %w", generation, err)
	}
	if manifest.Generation != generation {
		return "", fmt.Errorf("..data leads to %s, whose manifest.json is of %s", generation, manifest.Generation)
	}
	want := []string{"manifest.json"}
	content := make(map[string][]byte)
	for _, f := range manifest.Files {
		want = append(want, f.File)
		if content[f.File], err = os.ReadFile(filepath.Join(current, f.File)); err != nil {
			return "", err
		}
		if target, err := os.Readlink(filepath.Join(dir, f.File)); err != nil || target != "..data/"+f.File {
			return "", fmt.Errorf("%s leads to %q (%v)", f.File, target, err)
		}
		if sum := sha256.Sum256(content[f.File]); hex.EncodeToString(sum[:]) != f.SHA256 {
			return "", fmt.Errorf("%s: %d bytes are not what manifest.json lists", f.File, len(content[f.File]))
		}
	}
	slices.Sort(want)
	entries, err := os.ReadDir(current)
	if err != nil {
		return "", err
	}
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if !slices.Equal(have, want) {
		return "", fmt.Errorf("%s has %q, and its manifest lists %q", generation, have, want)
	}
	for _, name := range []string{"ca.crt", "client.crt", "client.key", "client.pem", "evidence.json"} {
		if content[name] == nil {
			return "", fmt.Errorf("%s has no %s", generation, name)
		}
	}
	return generation, checkVersion(content)
}

// checkVersion reports why the files do not belong together. Each version has a CA of its own.
func checkVersion(content map[string][]byte) error {
	pair, err := lab.Fits(content["client.crt"], content["client.key"], content["ca.crt"], x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	if both, err := tls.X509KeyPair(content["client.pem"], content["client.pem"]); err != nil ||
		!both.Leaf.Equal(pair.Leaf) {
		return fmt.Errorf("client.pem is not of client.crt and client.key (%v)", err)
	}
	return nil
}
