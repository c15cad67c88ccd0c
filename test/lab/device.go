package lab

import (
	"os"
	"path/filepath"
	"time"

	"sevagent/internal/sim"
)

// NewDevice makes a simulated SNP device, and in dir what it is made of, with a policy for its verifiers: aws-shared,
// appraised by the device's own root.
func NewDevice(dir string) (*sim.PSP, error) {
	psp, err := sim.New(sim.DefaultOptions(time.Now()))
	if err == nil {
		err = psp.Save(dir)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte("profile: aws-shared\nroots: roots.pem\n"), 0o644)
	}
	return psp, err
}
