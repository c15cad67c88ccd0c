package agent

import (
	"net/http/httptest"
	"strings"
	"testing"

	"sevagent/internal/mtls/source"
	"sevagent/internal/must"
	"sevagent/internal/sim/simaws"
)

// The limit of Secrets Manager is that of its secrets alone.
func TestLargeSecret(t *testing.T) {
	i := simaws.DefaultInstance()
	metadata(t, &simaws.IMDS{Instance: i}, "")
	secrets := &simaws.Secrets{Region: i.Region, AccountID: i.AccountID}
	server := httptest.NewServer(secrets)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.URL)
	s := secretSource{cloud: new(cloud), id: "prod/mtls"}
	fetch := func(size int) (source.Secret, error) {
		secrets.Put(s.id, strings.Repeat("x", size))
		v := must.Get(s.Describe(t.Context()))(t, "describe a secret of %d bytes", size)
		return s.Fetch(t.Context(), v.Current, source.Current)
	}
	if got, err := fetch(65536); err != nil || len(got()) != 65536 {
		t.Errorf("65,536 bytes: %v", err)
	}
	_, err := fetch(65537)
	if want := "get secret prod/mtls: larger than 65536 bytes"; err == nil || err.Error() != want ||
		source.KindOf(err) != source.Persistent {
		t.Errorf("65,537 bytes: %v, want %s", err, want)
	}
}
