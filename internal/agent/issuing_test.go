package agent

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/config"
	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/promtext"
	"sevagent/internal/sim/simaws"
	"sevagent/internal/sim/simca"
)

// testIssuers are issuers on an instance that has a metadata service.
func testIssuers(t *testing.T) (*issuers, simaws.Instance) {
	t.Helper()
	instance := simaws.DefaultInstance()
	imds := httptest.NewServer(&simaws.IMDS{Instance: instance})
	t.Cleanup(imds.Close)
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.URL)
	return newIssuers(new(cloud), nil, slog.New(slog.DiscardHandler), promtext.New()), instance
}

func privateCA(name string) config.Issue {
	return config.Issue{
		Name: name, From: config.FromPrivateCA, Gives: []string{"client"},
		CA: "arn:aws:acm-pca:us-east-2:111122223333:certificate-authority/12345678-1234-1234-1234-123456789012",
	}
}

// Names are those of the instance.
func TestIssuedNames(t *testing.T) {
	issuers, instance := testIssuers(t)
	c := privateCA("node")
	c.DNS = []string{"{private_dns}", "{instance_id}.{region}.example.org"}
	c.URI = []string{"spiffe://example.org/{account}/{instance_id}"}
	got := must.Get(issuers.names(t.Context(), c))(t, "expand the names")
	want := fmt.Sprintf("CN=%[1]s %[2]s %[1]s.%[3]s.example.org spiffe://example.org/%[4]s/%[1]s",
		instance.ID, instance.Hostname(), instance.Region, instance.AccountID)
	if text := fmt.Sprint(got.Subject, " ", strings.Join(got.DNSNames, " "), " ", got.URIs[0]); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}

	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
	nowhere := newIssuers(new(cloud), nil, slog.New(slog.DiscardHandler), promtext.New())
	if _, err := nowhere.names(t.Context(), c); err == nil || !strings.HasPrefix(err.Error(), "{instance_id}: ask the") {
		t.Errorf("without a metadata service: %v", err)
	}
	c.CommonName, c.DNS, c.URI = "fixed", []string{"node.example.org"}, nil
	must.Get(nowhere.names(t.Context(), c))(t, "names that need no metadata service")
}

// A source with its key stays as long as its entry does, and one that cannot be opened changes nothing.
func TestIssuersReconfigure(t *testing.T) {
	issuers, _ := testIssuers(t)
	first := must.Get(issuers.sources([]config.Issue{privateCA("node")}))(t, "open a source")
	if first[0].Name != "issue/node" {
		t.Errorf("it is called %s", first[0].Name)
	}
	same := must.Get(issuers.sources([]config.Issue{privateCA("node")}))(t, "configure again")
	if same[0].Source != first[0].Source {
		t.Error("the same entry gives another source, and the key is lost")
	}
	missing := filepath.Join(t.TempDir(), "no")
	bad := config.Issue{Name: "web", From: config.FromACME, Gives: []string{"server"}, Roots: missing}
	_, err := issuers.sources([]config.Issue{bad})
	if err == nil || !strings.Contains(err.Error(), "mtls.issue web: open ") {
		t.Errorf("roots that are not there: %v", err)
	}
	file := filepath.Join(t.TempDir(), "roots.pem")
	acme := config.Issue{Name: "web", From: config.FromACME, Gives: []string{"server"}, Roots: file}
	rooted := func() source.Source {
		ca := must.Get(simca.New("Root", time.Now()))(t, "make a CA")
		must.Do(t, os.WriteFile(file, []byte(ca.PEM()), 0o600), "write the roots")
		return must.Get(issuers.sources([]config.Issue{acme}))(t, "open a source with roots")[0].Source
	}
	was := rooted()
	if again := must.Get(issuers.sources([]config.Issue{acme}))(t, "configure again"); again[0].Source != was {
		t.Error("the same roots give another source")
	}
	if rooted() == was {
		t.Error("other roots in the same file are not read")
	}
	first = must.Get(issuers.sources([]config.Issue{privateCA("node")}))(t, "configure the first again")
	changed := privateCA("node")
	changed.ValidityDays = 7
	other := must.Get(issuers.sources([]config.Issue{changed}))(t, "configure another validity")
	if other[0].Source == first[0].Source {
		t.Error("another entry gives the same source")
	}
	if a, b := specOf(privateCA("a"), nil), specOf(privateCA("b"), nil); a != b || a == specOf(changed, nil) {
		t.Errorf("the specifications are %q, %q and %q", a, b, specOf(changed, nil))
	}
	roots := must.Get(config.LoadRoots(file))(t, "read the roots")
	if specOf(acme, roots) == specOf(acme, append(roots, roots[0])) {
		t.Error("ca.crt does not follow the roots until the next renewal")
	}
}

func TestReadEAB(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	good := fmt.Sprintf(`{"kid": "k1", "hmac_key": "%s"}`, base64.RawURLEncoding.EncodeToString(key))
	for text, want := range map[string]string{
		good:                               "",
		`{"kid": "k1"}`:                    "missing member hmac_key",
		`{"kid": "k1", "hmac_key": "+/="}`: "want kid, and hmac_key in base64url",
		`{"kid": "k1", "hmac": "AAAA"}`:    "which is JSON with kid and hmac_key",
		"k1:AAAA":                          "which is JSON with kid and hmac_key",
	} {
		file := filepath.Join(t.TempDir(), "eab.json")
		must.Do(t, os.WriteFile(file, []byte(text), 0o600), "write a file")
		kid, mac, err := readEAB(context.Background(), source.File(file))
		if want == "" && (err != nil || kid != "k1" || !slices.Equal(mac, key)) {
			t.Errorf("%s: %q, %q, %v", text, kid, mac, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
