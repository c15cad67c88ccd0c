package sim

// The commands, for a comparison with another description of the kernel's ABI.
const (
	CmdGetReport     = cmdGetReport
	CmdGetDerivedKey = cmdGetDerivedKey
	CmdGetExtReport  = cmdGetExtReport
)
