// Command guest is what the tests of test/system/container run inside a container: the machine around the agent, and
// what tries to break out of its sandbox. For tests alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr,
			"usage: guest aws | ecs | load SOCKET FILE | refresh SOCKET FILE | attempt FILE | int80 | euid | key")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command string, args []string) error {
	switch {
	case command == "aws":
		return aws(ctx)
	case command == "ecs":
		return ecs(ctx)
	case command == "load" && len(args) == 2:
		return load(ctx, args[0], args[1])
	case command == "refresh" && len(args) == 2:
		return refresh(ctx, args[0], args[1])
	case command == "attempt" && len(args) == 1:
		return attempt(args[0])
	case command == "int80":
		return call32()
	case command == "euid":
		fmt.Println(os.Geteuid())
		return nil
	case command == "key":
		return putKey()
	}
	return fmt.Errorf("no command %s with arguments %q", command, args)
}
