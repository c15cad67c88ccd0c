package pattern

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// TestEveryPattern compiles every expression that the repository gives to New, and looks for package variables that are
// compiled at the start.
func TestEveryPattern(t *testing.T) {
	packages := make(map[string][]*ast.File)
	files := token.NewFileSet()
	for _, root := range []string{"../../internal", "../../cmd", "../../client", "../../verify"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				file := must.Get(parser.ParseFile(files, path, nil, 0))(t, "parse %s", path)
				packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
			}
			return err
		})
		must.Do(t, err, "walk %s", root)
	}
	found := 0
	for _, list := range packages {
		constants := make(map[string]ast.Expr)
		for _, file := range list {
			for _, declaration := range file.Decls {
				general, ok := declaration.(*ast.GenDecl)
				if !ok {
					continue
				}
				for _, spec := range general.Specs {
					values, ok := spec.(*ast.ValueSpec)
					if !ok {
						continue
					}
					for i, value := range values.Values {
						if constants[values.Names[i].Name] = value; general.Tok != token.VAR {
							continue
						}
						ast.Inspect(value, func(n ast.Node) bool {
							_, inside := n.(*ast.FuncLit)
							if call, ok := n.(*ast.CallExpr); ok && called(call) == "regexp.MustCompile" {
								t.Errorf("%v: compiled at each start; use pattern.New", files.Position(call.Pos()))
							}
							return !inside
						})
					}
				}
			}
		}
		for _, file := range list {
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && called(call) == "pattern.New" {
					found++
					text, ok := constant(call.Args[0], constants)
					if _, err := regexp.Compile(text); err != nil || !ok {
						t.Errorf("%v: no constant, or %v", files.Position(call.Pos()), err)
					}
				}
				return true
			})
		}
	}
	if found < 20 {
		t.Errorf("found %d patterns: the test does not know how they are written", found)
	}
}

func called(call *ast.CallExpr) string {
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

// constant returns the value of literals, names and sums of them.
func constant(e ast.Expr, names map[string]ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.Ident:
		return constant(names[e.Name], names)
	case *ast.BinaryExpr:
		a, okA := constant(e.X, names)
		b, okB := constant(e.Y, names)
		return a + b, okA && okB
	}
	return "", false
}

// TestLazy: nothing is compiled before it is used, and then once.
func TestLazy(t *testing.T) {
	p := New(`(`)
	defer func() {
		if recover() == nil {
			t.Error("an expression that does not compile does not panic when it is used")
		}
	}()
	if good := New(`^a+$`); good() != good() || !good.MatchString("aa") || good.MatchString("b") {
		t.Error("it is compiled twice, or matches something else")
	}
	p.MatchString("")
}
