package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sevagent/internal/cli"
	"sevagent/verify"
)

// fileResult is the result for one file of a directory.
type fileResult struct {
	File string `json:"file"`
	*verify.Result
}

// directory verifies all documents *.json of a directory, which share one verifier and so one chain, and writes one
// line for each.
func (o *evidenceFlags) directory(cmd *cobra.Command, dir string, v *verify.Verifier, want verify.Want) error {
	results, err := verifyAll(dir, v, want)
	if err != nil {
		return err
	}
	refused := 0
	for _, r := range results {
		if r.Verdict.Err() != nil {
			refused++
		}
	}
	print := func(w io.Writer) error { return lines(w, results) }
	if o.out.format == "json" {
		print = func(w io.Writer) error { return encode(w, results) }
	}
	if err := o.out.write(cmd, print); err != nil {
		return err
	}
	if refused > 0 {
		return fmt.Errorf("verify evidence: %d of the %d documents in %s are not acceptable", refused, len(results), dir)
	}
	return nil
}

// verifyAll verifies the documents of a directory, as many at a time as there are processors. A file that cannot be
// read is a document that is not acceptable.
func verifyAll(dir string, v *verify.Verifier, want verify.Want) ([]fileResult, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, cli.Usagef("read evidence: %w", err)
	}
	var results []fileResult
	for _, e := range entries {
		if !e.IsDir() && filepath.Ext(e.Name()) == ".json" {
			results = append(results, fileResult{File: e.Name()})
		}
	}
	if len(results) == 0 {
		return nil, cli.Usagef("read evidence: no *.json in %s", dir)
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range results {
		group.Go(func() error {
			r, err := verifyRegular(filepath.Join(dir, results[i].File), v, want)
			if err != nil {
				r = &verify.Result{Verdict: &verify.Verdict{
					Status: verify.Fail, Code: "document_unreadable", Reason: err.Error(), Rules: []verify.RuleResult{},
				}}
			}
			results[i].Result = r
			return nil
		})
	}
	return results, group.Wait()
}

// verifyRegular is verifyFile for what may be a pipe that nobody writes to.
func verifyRegular(file string, v *verify.Verifier, want verify.Want) (*verify.Result, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	return verifyFile(nil, file, v, want)
}

// lines writes one line for each document.
func lines(w io.Writer, results []fileResult) error {
	var b bytes.Buffer
	for _, r := range results {
		fmt.Fprintf(&b, "%-4s  %s%s\n", r.Verdict.Status, cli.Visible(r.File), cli.Visible(because(r.Verdict)))
	}
	_, err := b.WriteTo(w)
	return err
}
