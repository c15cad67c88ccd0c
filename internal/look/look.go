// Package look has what the product's pages share: the local one of the agent and the report of sevctl. It promises
// a contrast of 4.5 or more in both schemes, and no sideways scroll from 390 pixels on; test/page holds the pages to it.
package look

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
)

// Sheet is the style sheet.
//
//go:embed look.css
var Sheet string

// Source returns the source expression by which a Content-Security-Policy permits one inline style or script and no
// other: https://www.w3.org/TR/CSP3/#grammardef-hash-source.
func Source(inline string) string {
	sum := sha256.Sum256([]byte(inline))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
