package directory

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"sevagent/internal/mtls/certset"
)

// The files of a generation that come from no secret.
const (
	manifestFile = "manifest.json"
	evidenceFile = "evidence.json"
)

// manifest is manifest.json: what a generation should be, for readers, for the start after a crash, and for the guard.
// It holds no secrets, and everyone may read it.
type manifest struct {
	Generation string           `json:"generation"`
	Consumer   string           `json:"consumer,omitempty"` // whose directory it is in
	Published  time.Time        `json:"published"`
	NotAfter   time.Time        `json:"not_after,omitzero"`
	Owner      string           `json:"owner"`     // uid:gid, also of manifest.json
	KeyMode    string           `json:"key_mode"`  // octal
	CertMode   string           `json:"cert_mode"` // octal, also of manifest.json
	Secrets    []certset.Origin `json:"secrets"`   // in the order of the configuration
	Files      []manifestEntry  `json:"files"`
	// CAOverlap are the certificates of ca.crt that come from no secret any more.
	CAOverlap []manifestOverlap `json:"ca_overlap,omitempty"`
	// Warnings are about what its secrets have and its files have not, which cannot be found again in these.
	Warnings []string `json:"warnings,omitempty"`
}

// manifestOverlap is an anchor that stays in ca.crt for a while.
type manifestOverlap struct {
	SHA256 string    `json:"sha256"` // of the certificate
	Until  time.Time `json:"until"`
}

// manifestEntry is one file beside manifest.json.
type manifestEntry struct {
	File     string    `json:"file"`
	SHA256   string    `json:"sha256"`
	Size     int       `json:"size"`
	Mode     string    `json:"mode"` // octal
	Secret   string    `json:"secret,omitempty"`
	Version  string    `json:"version,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	// Also are other secrets that have given some of its anchors.
	Also []certset.Origin `json:"also,omitempty"`
}

// Owner is the numeric owner of published files.
type Owner struct {
	UID, GID int
}

func (o Owner) String() string { return fmt.Sprintf("%d:%d", o.UID, o.GID) }

// Access is who may read what is published. KeyMode is for every file that holds, or may hold, a private key.
type Access struct {
	Owner             Owner
	KeyMode, CertMode fs.FileMode
}

func (a Access) mode(f certset.File) fs.FileMode {
	if f.Private {
		return a.KeyMode
	}
	return a.CertMode
}

func modeString(m fs.FileMode) string { return fmt.Sprintf("%04o", m.Perm()) }

func newManifest(generation string, s *certset.Set, files []certset.File, a Access, now time.Time) *manifest {
	m := &manifest{
		Generation: generation, Published: now.UTC(), NotAfter: s.NotAfter(),
		Secrets: s.Origins(), CAOverlap: overlap(s), Warnings: s.Warnings,
		Owner: a.Owner.String(), KeyMode: modeString(a.KeyMode), CertMode: modeString(a.CertMode),
	}
	for _, f := range files {
		m.Files = append(m.Files, a.entry(f))
	}
	return m
}

func overlap(s *certset.Set) (list []manifestOverlap) {
	for _, c := range s.Carried {
		list = append(list, manifestOverlap{c.Digest(), c.Until.UTC()})
	}
	return list
}

// access recovers the settings that a generation was published with.
func (m *manifest) access() (a Access, err error) {
	key, errKey := strconv.ParseUint(m.KeyMode, 8, 9)
	cert, errCert := strconv.ParseUint(m.CertMode, 8, 9)
	_, errOwner := fmt.Sscanf(m.Owner, "%d:%d", &a.Owner.UID, &a.Owner.GID)
	a.KeyMode, a.CertMode = fs.FileMode(key), fs.FileMode(cert)
	if err := errors.Join(errKey, errCert, errOwner); err != nil {
		return a, fmt.Errorf("owner and modes in %s: %w", manifestFile, err)
	}
	return a, nil
}

func (a Access) entry(f certset.File) manifestEntry {
	e := manifestEntry{
		File:    f.Name,
		SHA256:  f.Digest(),
		Size:    len(f.Content),
		Mode:    modeString(a.mode(f)),
		Secret:  f.Origin.Secret,
		Version: f.Origin.Version,
		Also:    f.Also,
	}
	if f.Ends != nil {
		e.NotAfter = f.Ends.NotAfter
	}
	return e
}

// describes reports whether these are the files of s, published under a. Which versions they come from does not matter:
// the same bytes under another version ID are no reason to disturb readers.
func (m *manifest) describes(s *certset.Set, a Access) bool {
	same := func(a, b manifestOverlap) bool { return a.SHA256 == b.SHA256 && a.Until.Equal(b.Until) }
	if !slices.EqualFunc(m.CAOverlap, overlap(s), same) {
		return false // the next start would go by the wrong time
	}
	if was, err := m.access(); err != nil || was != a {
		return false
	}
	entries := slices.DeleteFunc(slices.Clone(m.Files), func(e manifestEntry) bool { return e.File == evidenceFile })
	return slices.EqualFunc(entries, s.Files, func(e manifestEntry, f certset.File) bool {
		want := a.entry(f)
		return e.File == want.File && e.SHA256 == want.SHA256 && e.Mode == want.Mode
	})
}

func (m *manifest) encode() []byte {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic(err) // it is made of strings, numbers and times
	}
	return append(b, '\n')
}

// links names the files of the generation, each of which has a link for users.
func (m *manifest) links() []string {
	names := []string{manifestFile}
	for _, e := range m.Files {
		names = append(names, e.File)
	}
	return names
}

// maxManifestBytes is generous: 20 secrets give about 30 KiB.
const maxManifestBytes = 1 << 20

// readManifest reads manifest.json of a generation. Fields it does not know are for a newer agent, and ignored.
func readManifest(gen *os.Root, name string) (m *manifest, encoded []byte, err error) {
	encoded, _, err = readBounded(gen, manifestFile, maxManifestBytes)
	if err != nil {
		return nil, nil, err
	}
	m = new(manifest)
	if err := json.Unmarshal(encoded, m); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	if m.Generation != name {
		return nil, nil, fmt.Errorf("%s is that of another generation", manifestFile)
	}
	return m, encoded, nil
}

func readManifestOf(root *os.Root, name string) (*manifest, error) {
	gen, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer gen.Close()
	m, _, err := readManifest(gen, name)
	return m, err
}

// checkContent compares a file with its entry.
func (e manifestEntry) checkContent(content []byte) error {
	want, err := hex.DecodeString(e.SHA256)
	sum := sha256.Sum256(content)
	if err != nil || !bytes.Equal(sum[:], want) {
		return fmt.Errorf("%s is not what was published", e.File)
	}
	return nil
}
