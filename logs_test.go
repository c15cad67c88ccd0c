package sevagent_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// record is a row of docs/logs.md.
type record struct {
	levels, attributes []string
	used               bool
}

// TestLogs: docs/logs.md has the records of the agent's sources from INFO up, with level and attributes, and no others.
func TestLogs(t *testing.T) {
	records := make(map[string]*record)
	for line := range strings.Lines(string(must.Get(os.ReadFile("docs/logs.md"))(t, "read the page"))) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.Contains(cells[2], "`") {
			continue
		}
		r := &record{levels: strings.Split(strings.TrimSpace(cells[1]), " or ")}
		for i, code := range strings.Split(cells[3], "`") {
			if i%2 == 1 {
				r.attributes = append(r.attributes, code)
			}
		}
		records[strings.Trim(cells[2], " `")] = r
	}
	if len(records) < 60 {
		t.Fatalf("docs/logs.md has %d records: this test does not recognize them any more", len(records))
	}

	packages := []string{"cmd/sevagent"}
	for i := 0; i < len(packages); i++ {
		for _, name := range table[packages[i]] {
			if _, ours := table[name]; ours && !slices.Contains(packages, name) {
				packages = append(packages, name)
			}
		}
	}
	for _, dir := range packages {
		for _, path := range must.Get(filepath.Glob(dir+"/*.go"))(t, "list %s", dir) {
			if !strings.HasSuffix(path, "_test.go") {
				file := token.NewFileSet()
				tree := must.Get(parser.ParseFile(file, path, nil, 0))(t, "parse %s", path)
				ast.Inspect(tree, func(n ast.Node) bool {
					checkRecord(t, file, n, records)
					return true
				})
			}
		}
	}
	for message, r := range records {
		if !r.used {
			t.Errorf("docs/logs.md has %q, which no source logs", message)
		}
	}
}

// checkRecord compares a node with the page if it logs something, or is one of the constants that name a message.
func checkRecord(t *testing.T, file *token.FileSet, n ast.Node, records map[string]*record) {
	if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 && strings.HasPrefix(spec.Names[0].Name, "msg") {
		if message, ok := text(spec.Values[0]); ok {
			find(t, file, n, records, message)
		}
		return
	}
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return
	}
	level := ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		if f.Name != "log" {
			return
		}
	case *ast.SelectorExpr:
		level = strings.ToUpper(f.Sel.Name)
		if !slices.Contains([]string{"INFO", "WARN", "ERROR"}, level) || strings.ToLower(last(f.X)) != "log" {
			return
		}
	default:
		return
	}
	message, constant := text(call.Args[0])
	if name := last(call.Args[0]); !constant && (strings.HasPrefix(name, "msg") || name == "message") {
		return // found above, by its constant
	}
	if !constant {
		t.Errorf("%s: the message is not constant", file.Position(n.Pos()))
		return
	}
	r := find(t, file, n, records, message)
	if r == nil {
		return
	}
	if level != "" && !slices.Contains(r.levels, level) {
		t.Errorf("%s logs %q as %s, docs/logs.md says %q", file.Position(n.Pos()), message, level, r.levels)
	}
	for i := 1; i < len(call.Args); i += 2 {
		if key, ok := text(call.Args[i]); ok && key != "component" && !slices.Contains(r.attributes, key) {
			t.Errorf("%s: docs/logs.md does not have the attribute %s of %q", file.Position(n.Pos()), key, message)
		}
	}
}

func find(t *testing.T, file *token.FileSet, n ast.Node, records map[string]*record, message string) *record {
	r := records[message]
	if r == nil {
		t.Errorf("%s: docs/logs.md does not have %q", file.Position(n.Pos()), message)
		return nil
	}
	r.used = true
	return r
}

// text returns the value of a string that is written out, in one piece or several.
func text(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, first := text(e.X)
		b, second := text(e.Y)
		return a + b, first && second
	}
	return "", false
}

// last returns the name at the end of an expression such as w.cfg.Log.
func last(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
