package certset

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"sevagent/internal/pattern"
)

// isSequence reports whether der is one ASN.1 SEQUENCE and nothing else, as every form of private key is. A plain
// secret may hold kinds of key that this program does not know.
func isSequence(der []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(der, &v)
	return err == nil && len(rest) == 0 && v.Tag == asn1.TagSequence && v.IsCompound
}

// isEncrypted reports whether a key is encrypted, in the way of PKCS #8 or of old versions of OpenSSL.
func isEncrypted(block *pem.Block) bool {
	return block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers[procType] != ""
}

// The headers that an encrypted key cannot do without (RFC 1421). All others are dropped.
const (
	procType = "Proc-Type"
	dekInfo  = "DEK-Info"
)

// unicodeEscape is how encoders of JSON write a character: some of them +, = and line breaks, too.
var unicodeEscape = pattern.New(`\\+u00[0-9A-Fa-f]{2}`)

// normalise repairs what was escaped once or twice too often, and line ends. PEM has no use for a backslash.
func normalise(text string) string {
	text = unicodeEscape.ReplaceAllStringFunc(text, func(escape string) string {
		n, err := strconv.ParseUint(escape[len(escape)-2:], 16, 8)
		if err != nil {
			return escape
		}
		return string(rune(n))
	})
	return strings.NewReplacer(`\\r\\n`, "\n", `\\n`, "\n", `\r\n`, "\n", `\n`, "\n", `\r`, "\n", `\t`, "\t",
		"\\\r\n", "\n", "\\\n", "\n", "\r\n", "\n", "\r", "\n", `\\/`, "/", `\/`, "/").Replace(text)
}

// The five dashes on both sides of a label, as in -----BEGIN CERTIFICATE-----.
const (
	dashes = "-----"
	begin  = dashes + "BEGIN"
	end    = dashes + "END"
)

// decodePEM returns the blocks in text, and whether encoding/pem would have missed some for their layout: consoles,
// shells and templates turn line breaks into blanks, drop them, join lines and indent them. None of that loses
// anything, so only what stands between the labels counts. Other text is allowed around blocks (RFC 7468, section 2).
// A block that is damaged is an error, as is half a one; encoding/pem skips both silently.
func decodePEM(text string) (blocks []*pem.Block, repaired bool, err error) {
	if isBlank(text) {
		return nil, false, errors.New("is empty")
	}
	if !strings.Contains(text, begin) && !strings.Contains(text, end) {
		return nil, false, errors.New("is not PEM" + describe(text))
	}
	var inValue, surely bool
	for rest := text; ; {
		between, after, found := strings.Cut(rest, begin)
		if strings.Contains(between, end) && strings.Contains(between, "BEGIN") {
			return nil, false, errors.New("is not PEM" + oddDashes)
		}
		if strings.Contains(between, end) {
			return nil, false, damaged(len(blocks), "", "has an END line and no BEGIN line")
		}
		if !found {
			break
		}
		inValue = inValue || endsInValue(between)
		surely = surely || opensValue.MatchString(between)
		var block *pem.Block
		if block, rest, err = cutBlock(len(blocks), after); err != nil {
			return nil, false, err
		}
		blocks = append(blocks, block)
	}
	repaired = countStrict(text) != len(blocks)
	if surely || repaired && inValue {
		return nil, false, errors.New("holds PEM inside of something else that is not understood, such as JSON or YAML")
	}
	return blocks, repaired, nil
}

// endsInValue reports whether what stands before a block makes it look like the value of something. Quotes around all
// of it are the shell's.
func endsInValue(before string) bool {
	before = strings.TrimLeft(strings.TrimFunc(before, isSpace), "-")
	return strings.Trim(before, `"'`) != "" && !strings.HasSuffix(before, "==") && // which underlines a title
		strings.ContainsAny(before[len(before)-1:], "\"'`:=|>{[(,")
}

// opensValue matches what stands before a block that is the value of something for certain: a quote or a bracket that
// is opened, an equals sign that underlines nothing, or the head of a text of several lines in YAML, HCL or XML.
var opensValue = pattern.New(`(?:[:=({\[,]\s*["'\x60]|[{\[(]|[^=\s][ \t]*=|[:=]\s*[|>][+-]?` +
	`|<<[-~]?["']?\w+["']?|(?m:^[ \t]*)(?:<\w[\w:.-]*>[ \t]*)+)\s*$`)

// countStrict returns how many blocks encoding/pem finds.
func countStrict(text string) (n int) {
	for rest := []byte(text); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return n
		}
	}
}

// damaged is what is wrong with the block after the first n.
func damaged(n int, label, format string, args ...any) error {
	what := "the text"
	if label != "" {
		what = fmt.Sprintf("number %d, %s,", n+1, describeLabel(label))
	}
	return fmt.Errorf("holds a PEM block that is cut short or damaged: %s %s", what, fmt.Sprintf(format, args...))
}

// cutBlock decodes the block after n others, given what follows -----BEGIN, and returns what follows it.
func cutBlock(n int, text string) (block *pem.Block, rest string, err error) {
	name, text, ok := strings.Cut(text, dashes)
	label := cleanLabel(name)
	if !ok || strings.Trim(label, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ") != "" || label == "" {
		return nil, "", errors.New("holds a PEM block with an odd label")
	}
	body, text, ok := strings.Cut(text, end)
	if !ok || strings.Contains(body, begin) {
		return nil, "", damaged(n, label, "has a BEGIN line and no END line")
	}
	name, _, ok = strings.Cut(text, dashes)
	switch ended := cleanLabel(name); {
	case !ok:
		return nil, "", damaged(n, label, "has an END line that is cut short")
	case ended != label:
		return nil, "", damaged(n, label, "ends as %s", describeLabel(ended))
	}
	block = &pem.Block{Type: label}
	block.Headers, body = cutHeaders(body)
	// Too many dashes lose nothing: base64 has none.
	block.Bytes, err = decodeBase64(strings.Trim(body, "-"))
	if foreign, ok := errors.AsType[foreignError](err); ok {
		return nil, "", fmt.Errorf("holds a PEM block with something in it that is not base64: number %d, %s, %w", n+1,
			describeLabel(label), foreign)
	}
	if err != nil {
		return nil, "", damaged(n, label, "%v", err)
	}
	// The dashes after the label stay: a block that is joined to this one may begin with them.
	return block, text[len(name):], nil
}

var (
	keyHeader   = pattern.New(`(?:^|\s)(` + procType + `|` + dekInfo + `):\s*(\S+)`)
	otherHeader = pattern.New(`(?m)^\s*[A-Za-z0-9 -]+:.*$`)
)

// cutHeaders takes the headers out of the body of a block, and returns those of an encrypted key.
func cutHeaders(body string) (headers map[string]string, rest string) {
	if !strings.Contains(body, ":") {
		return nil, body
	}
	for _, m := range keyHeader.FindAllStringSubmatch(body, -1) {
		if headers == nil {
			headers = make(map[string]string)
		}
		headers[m[1]] = m[2]
	}
	if headers[procType] == "" {
		headers = nil
	}
	return headers, otherHeader.ReplaceAllString(keyHeader.ReplaceAllString(body, " "), "")
}

// decodeBase64 decodes the body of a block, whatever white space is in it.
func decodeBase64(body string) ([]byte, error) {
	body = strings.Map(func(r rune) rune {
		if isSpace(r) {
			return -1
		}
		return r
	}, body)
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
	if i := strings.IndexFunc(body, func(r rune) bool { return !strings.ContainsRune(alphabet, r) }); i >= 0 {
		return nil, foreignError(fmt.Sprintf("at character %d of %d", i+1, len(body)))
	}
	der, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return nil, fmt.Errorf("does not end as base64 does: it has %d characters", len(body))
	}
	return der, nil
}

// foreignError says where a block has what came into it on its way, such as the marks of a mail or of HTML.
type foreignError string

func (e foreignError) Error() string { return string(e) }

// isSpace includes what has no width, such as the byte order mark, since it comes with what is pasted.
func isSpace(r rune) bool { return unicode.IsSpace(r) || unicode.Is(unicode.Cf, r) }

func isBlank(text string) bool { return strings.TrimFunc(text, isSpace) == "" }

// labels are those in use. Any other may be a misplaced part of the secret.
var labels = []string{
	certificate, "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY",
	"DSA PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY", "EC PARAMETERS", "DH PARAMETERS", "CERTIFICATE REQUEST",
	"NEW CERTIFICATE REQUEST", "X509 CRL", "PKCS7", "CMS", trusted,
}

const (
	certificate = "CERTIFICATE"
	trusted     = "TRUSTED CERTIFICATE" // of OpenSSL, with what to trust it for after the certificate
)

// cleanLabel repairs the white space in a label. X509 CERTIFICATE is what OpenSSL has called a certificate once.
func cleanLabel(label string) string {
	words := strings.FieldsFunc(label, isSpace)
	squeezed := strings.Join(words, "")
	if squeezed == "X509CERTIFICATE" {
		return certificate
	}
	i := slices.IndexFunc(labels, func(l string) bool { return strings.ReplaceAll(l, " ", "") == squeezed })
	if i >= 0 {
		return labels[i]
	}
	return strings.Join(words, " ")
}

func isPrivate(label string) bool {
	return strings.Contains(label, "PRIVATE KEY")
}

// describeLabel names label if it is one of those in use.
func describeLabel(label string) string {
	if slices.Contains(labels, label) {
		return "a block labelled " + label
	}
	return "a block with an unknown label"
}

func encodePEM(blocks ...*pem.Block) []byte {
	var b bytes.Buffer
	for _, block := range blocks {
		// This cannot fail: a buffer takes everything, and only headers that encode have been kept.
		if err := pem.Encode(&b, block); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}
