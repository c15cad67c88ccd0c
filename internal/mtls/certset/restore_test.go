package certset

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sevagent/internal/mtls/mtlstest"
)

func TestRestore(t *testing.T) {
	ca, old := mtlstest.NewCA(t, "ca", nil), mtlstest.NewCA(t, "old", nil)
	was, err := Assemble(mustBundles(t, ca.ClientSecret(t, "node"), []byte(mtlstest.CertPEM(ca.Cert))), nil, time.Now(),
		[]Carried{{old.Cert, time.Now().Add(time.Hour)}})
	if err != nil {
		t.Fatalf("assemble a good set: %v", err)
	}
	carried := map[string]time.Time{digest(old.Cert.Raw): was.Carried[0].Until}
	for name, c := range map[string]struct {
		change func(files []File) []File
		want   string // in the error
	}{
		"as it was":   {func(files []File) []File { return files }, ""},
		"a file less": {func(files []File) []File { return files[1:] }, "comes without ca_cert"},
		"a file more": {func(files []File) []File {
			return append(files,
				File{Name: "server.pem", Origin: files[0].Origin})
		}, "holds"},
		"a foreign file": {func(files []File) []File { return append(files, File{Name: "x", Origin: files[0].Origin}) },
			"none of its"},
		"other content": {func(files []File) []File {
			i := slices.IndexFunc(files, func(f File) bool { return f.Name == "client.pem" })
			files[i].Content = nil
			return files
		}, "client.pem is not what its secret gives"},
		"another origin": {func(files []File) []File { files[0].Origin.Version = "2"; return files },
			"none of its secrets"},
	} {
		s, err := Restore(was.Origins(), c.change(slices.Clone(was.Files)), carried, nil, time.Now())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		if err == nil && (dump(s) != dump(was) || len(s.Carried) != 1 ||
			!s.Carried[0].Until.Equal(was.Carried[0].Until)) {
			t.Errorf("%s: restored\n%s\nwant\n%s", name, dump(s), dump(was))
		}
	}
}
