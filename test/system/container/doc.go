// Package container tests the packages and their units under a real systemd, in containers. test/system/container/run
// prepares what it runs in.
package container
