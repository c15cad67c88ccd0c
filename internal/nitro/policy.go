package nitro

import (
	"fmt"
	"slices"
	"time"
)

// Set is one acceptable boot: registers that must all have these values. A policy has several, since every update of an
// image, a kernel or a boot loader makes another.
type Set struct {
	// Name says what it stands for, such as the AMI. For people only.
	Name string `yaml:"name"`
	// NotAfter is the last day, UTC, on which it is accepted, as 2027-01-31. Empty: it is not retired.
	NotAfter string `yaml:"not_after"`
	// Values are the registers. A register that the document lacks is not zero, and does not match.
	Values []Pin `yaml:"values"`
}

// Pin is a register and its value, 96 lower-case hexadecimal digits.
type Pin struct {
	PCR   uint32 `yaml:"pcr"`
	Value string `yaml:"value"`
}

// Meaningless returns why no policy can pin a register, or "".
func Meaningless(pcr uint32) string {
	switch {
	case pcr <= 1:
		return "AWS gives it one constant value on every instance"
	case pcr == 5:
		return "the partition table, which grows at the first boot, changes it at the second"
	case pcr == 9:
		return "GRUB reads files into it that change between boots"
	case pcr == 10:
		return "IMA extends it while the system runs"
	case pcr == 16, pcr == 23:
		return "root can reset it at any time"
	case pcr >= 17 && pcr <= 22:
		return "it is all ones on every instance"
	case pcr > 23:
		return "there is no such register"
	}
	return ""
}

// Incomplete returns why the registers of s together say too little, or "".
func (s Set) Incomplete() string {
	pins := func(pcr uint32) bool {
		return slices.ContainsFunc(s.Values, func(p Pin) bool { return p.PCR == pcr })
	}
	switch {
	case pins(4) && !pins(7) && !pins(12):
		return "4 without 12 or 7: a command line from outside, which switches protection off, changes 12 alone " +
			"(GHSA-xrv8-2pf5-f3q7)"
	case !pins(4) && !pins(7):
		return "neither 4, what was started, nor 7, whose signatures Secure Boot accepts: " +
			"an attacker's image can give all other registers any value"
	}
	return ""
}

// Match reports whether the registers are those of one set that is not retired on the day of now, and says what was
// required.
func Match(sets []Set, pcrs map[int]Register, now time.Time) (ok bool, required string) {
	today, current := now.UTC().Format(time.DateOnly), 0
	required = ""
	for _, s := range sets {
		matches := s.Incomplete() == "" && !slices.ContainsFunc(s.Values, func(p Pin) bool {
			value, there := pcrs[int(p.PCR)]
			return !there || value.String() != p.Value || Meaningless(p.PCR) != ""
		})
		switch retired := s.NotAfter != "" && s.NotAfter < today; {
		case retired && matches:
			required = "one that is not retired; this one was accepted until " + s.NotAfter
		case !retired:
			current++
			ok = ok || matches
		}
	}
	if ok || required == "" {
		required = fmt.Sprintf("one of %d known boots", current)
	}
	return ok, required
}
