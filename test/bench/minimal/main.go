// Command minimal is what sevagent's idle memory is compared with: a client of Secrets Manager by the SDK's default
// configuration, and nothing else. It prints a line once it has the client, and waits for a signal.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "minimal: load the AWS configuration:", err)
		os.Exit(1)
	}
	client := secretsmanager.NewFromConfig(cfg)
	fmt.Println("ready", client.Options().Region)
	<-ctx.Done()
}
