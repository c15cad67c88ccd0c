package agent

import (
	"net/http"
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

// Repetition is the Rotator's: three attempts of the SDK at each of its tries would triple what a fleet asks in an
// outage.
func TestFailureIsOneRequest(t *testing.T) {
	i := simaws.DefaultInstance()
	metadata(t, &simaws.IMDS{Instance: i}, "")
	for status, body := range map[int]string{
		http.StatusServiceUnavailable: `{"__type": "InternalServiceError"}`,
		http.StatusBadRequest:         `{"__type": "ThrottlingException", "message": "Rate exceeded"}`,
	} {
		requests := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			requests++
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(server.Close)
		t.Setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.URL)
		_, err := secretSource{cloud: new(cloud), id: "prod/mtls"}.Describe(t.Context())
		if source.KindOf(err) != source.Transient || requests != 1 {
			t.Errorf("status %d: %d requests, %v; want one, and an error that passes", status, requests, err)
		}
	}
}
