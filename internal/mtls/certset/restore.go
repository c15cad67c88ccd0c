package certset

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Restore makes a set again from the files that were published of it, at a time. Origins are its versions in the order
// of the configuration, each file names its own; carried says which anchors of ca.crt came from no secret, by digest,
// and until when they stay; warnings are those of the set, some of them about what is in no file. An error means that
// this program would not have published these files then. They may have expired since, or even before: a set is
// published again when another of its files is renewed, or someone has changed one.
func Restore(
	origins []Origin, files []File, carried map[string]time.Time, warnings []string, published time.Time,
) (*Set, error) {
	var bundles []*Bundle
	for _, o := range origins {
		b := &Bundle{Secret: o.Secret, Version: o.Version, Reading: o.Reading, fields: make(map[string]*part)}
		for _, w := range warnings {
			if text, ok := strings.CutPrefix(w, warningOf(b, "")); ok {
				b.warnings = append(b.warnings, text)
			}
		}
		bundles = append(bundles, b)
	}
	var over []Carried
	issuers := slices.ContainsFunc(files, func(f File) bool { return f.Name == issuerFile })
	for _, f := range files {
		p, err := restoreField(bundles, f, issuers)
		if err != nil {
			return nil, err
		}
		if f.Name == anchorFile {
			over = p.split(carried)
		}
		for _, b := range bundles {
			also := slices.Contains(f.Also, b.origin())
			b.joined = b.joined || also || len(f.Also) > 0 && b.origin() == f.Origin
			if also { // with all of them, or a chain of its own might end nowhere
				b.fields[fieldOf(f.Name, issuers)] = p
			}
		}
	}
	s, err := Assemble(bundles, bundles, published, over)
	if err != nil {
		return nil, err
	}
	if len(s.Files) != len(files) {
		return nil, fmt.Errorf("holds %d files, its secrets give %d", len(files), len(s.Files))
	}
	for _, f := range s.Files {
		i := slices.IndexFunc(files, func(was File) bool { return was.Name == f.Name })
		if i < 0 || string(files[i].Content) != string(f.Content) {
			return nil, fmt.Errorf("%s is not what its secret gives", f.Name)
		}
	}
	return s, nil
}

// restoreField puts the content of a file back into the field of the secret that it came from, and returns that. A file
// that is made from others gives nothing.
func restoreField(bundles []*Bundle, f File, issuers bool) (*part, error) {
	for i, b := range bundles {
		if b.origin() != f.Origin {
			continue
		}
		var field string
		switch {
		case f.Name == pairFile(kindClient) || f.Name == pairFile(kindServer):
			return nil, nil
		case f.Name == plainFile(i):
		default:
			if field = fieldOf(f.Name, issuers); field == plain {
				continue // the same secret may be listed again further down
			}
		}
		p, err := parseField(field, string(f.Content), b.Reading.Validate != unverified)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		b.fields[field] = p
		return p, nil
	}
	return nil, fmt.Errorf("%s comes from none of its secrets", f.Name)
}

// split takes the anchors that came from no secret out of p, and returns them.
func (p *part) split(carried map[string]time.Time) (over []Carried) {
	certs := p.certs
	*p = part{}
	for _, c := range certs {
		if until, ok := carried[digest(c.Raw)]; ok {
			over = append(over, Carried{c, until})
		} else {
			p.add(c)
		}
	}
	return over
}
