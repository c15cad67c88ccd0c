// Command notices writes the licences and notices of what is linked into the programs that it is given, for the
// packages.
package main

import (
	"fmt"
	"os"
)

func main() {
	text, err := notices(os.Args[1:])
	if err == nil {
		_, err = os.Stdout.WriteString(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}
