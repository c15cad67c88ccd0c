package main

import (
	"os"
	"runtime"
	"time"
)

// int80 asks the kernel by its 32-bit interface.
func int80()

// threadKilled is an exit status.
const threadKilled = 33

// call32 calls int80. What a filter kills for that may be the thread alone.
func call32() error {
	runtime.GOMAXPROCS(4)
	go func() {
		time.Sleep(300 * time.Millisecond)
		os.Exit(threadKilled)
	}()
	time.Sleep(10 * time.Millisecond) // the other thread is there
	runtime.LockOSThread()
	int80()
	return nil
}
