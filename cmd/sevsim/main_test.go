package main

import (
	"testing"

	"sevagent/internal/cli/clitest"
)

func TestHelpFits(t *testing.T) { clitest.HelpFits(t, run) }
