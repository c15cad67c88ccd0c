// Package pattern compiles regular expressions when they are first used. Otherwise a program compiles at each start
// those of all packages that it links, which takes milliseconds and memory for patterns that most runs do not need.
package pattern

import (
	"regexp"
	"sync"
)

// Pattern is a regular expression, with methods of regexp.Regexp.
type Pattern func() *regexp.Regexp

// New returns the pattern of a constant expression. One that does not compile panics when it is used first; the test of
// this package compiles all that are in this repository.
func New(expression string) Pattern {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// MatchString is that of regexp.Regexp, as the methods below are.
func (p Pattern) MatchString(s string) bool { return p().MatchString(s) }

func (p Pattern) FindString(s string) string { return p().FindString(s) }

func (p Pattern) FindStringSubmatch(s string) []string { return p().FindStringSubmatch(s) }

func (p Pattern) FindStringSubmatchIndex(s string) []int { return p().FindStringSubmatchIndex(s) }

func (p Pattern) FindAllStringSubmatch(s string, n int) [][]string {
	return p().FindAllStringSubmatch(s, n)
}

func (p Pattern) ReplaceAll(src, with []byte) []byte { return p().ReplaceAll(src, with) }

func (p Pattern) ReplaceAllString(src, with string) string { return p().ReplaceAllString(src, with) }

func (p Pattern) ReplaceAllStringFunc(src string, f func(string) string) string {
	return p().ReplaceAllStringFunc(src, f)
}
