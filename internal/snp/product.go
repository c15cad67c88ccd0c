package snp

import "fmt"

// CPUID is the combined family, the combined model and the stepping of the processor.
type CPUID struct{ Family, Model, Stepping uint8 }

func (c CPUID) String() string {
	return fmt.Sprintf("family %#x, model %#x, stepping %#x", c.Family, c.Model, c.Stepping)
}

// Product is a kind of processor whose security versions count alike.
type Product string

// The products. Bergamo stands for Siena, too: the two have the same cores and count microcode alike.
const (
	Milan   Product = "Milan"
	Genoa   Product = "Genoa"
	Bergamo Product = "Bergamo"
	Turin   Product = "Turin"
)

// Products are all that have a name here.
var Products = []Product{Milan, Genoa, Bergamo, Turin}

// Product returns the processor's product, or "" if it has no name here: AMD publication 57230, "Determining the
// Product Name", with the models of each family that AMD's processor programming references assign.
func (c CPUID) Product() Product {
	switch model := c.Model; {
	case c.Family == 0x19 && model <= 0x0F:
		return Milan
	case c.Family == 0x19 && model >= 0x10 && model <= 0x1F:
		return Genoa
	case c.Family == 0x19 && model >= 0xA0 && model <= 0xAF:
		return Bergamo
	case c.Family == 0x1A && model <= 0x11:
		return Turin
	}
	return ""
}

// Line is the name under which AMD has the product's root and intermediate certificates: AMD publication 57230.
func (p Product) Line() string {
	if p == Bergamo {
		return string(Genoa)
	}
	return string(p)
}

// Layout is how the product packs a TCBVersion.
func (p Product) Layout() Layout {
	switch p {
	case Milan, Genoa, Bergamo:
		return LayoutMilan
	case Turin:
		return LayoutTurin
	}
	return LayoutUnknown
}

// Layout says which byte of a TCBVersion is which component: AMD 56860, "TCB_VERSION Structure".
type Layout uint8

// The layouts. The zero value is that of Milan and Genoa.
const (
	LayoutMilan   Layout = iota // 0 bootloader, 1 TEE, 6 SNP firmware, 7 microcode; 2 to 5 are reserved
	LayoutTurin                 // 0 FMC, 1 bootloader, 2 TEE, 3 SNP firmware, 7 microcode; 4 to 6 are reserved
	LayoutUnknown               // of a product that has no name here
)

// Pack puts components together.
func (l Layout) Pack(t TCB) TCBVersion {
	raw := uint64(t.Microcode) << 56
	if l == LayoutTurin {
		raw |= uint64(t.FMC) | uint64(t.Bootloader)<<8 | uint64(t.TEE)<<16 | uint64(t.SNP)<<24
	} else {
		raw |= uint64(t.Bootloader) | uint64(t.TEE)<<8 | uint64(t.SNP)<<48
	}
	return TCBVersion{Raw: raw, Layout: l}
}

// TCBVersion packs the security versions of the platform's components into 64 bits, one byte each.
type TCBVersion struct {
	Raw    uint64
	Layout Layout
}

// TCB is a TCBVersion taken apart.
type TCB struct {
	FMC        uint8 `json:"fmc,omitempty" yaml:"fmc"` // only Turin has it
	Bootloader uint8 `json:"bootloader" yaml:"bootloader"`
	TEE        uint8 `json:"tee" yaml:"tee"`
	SNP        uint8 `json:"snp" yaml:"snp"`
	Microcode  uint8 `json:"microcode" yaml:"microcode"`
}

// Components takes v apart; with an unknown layout, nothing is known of them.
func (v TCBVersion) Components() TCB {
	b := func(n int) uint8 { return uint8(v.Raw >> (8 * n)) }
	switch v.Layout {
	case LayoutMilan:
		return TCB{Bootloader: b(0), TEE: b(1), SNP: b(6), Microcode: b(7)}
	case LayoutTurin:
		return TCB{FMC: b(0), Bootloader: b(1), TEE: b(2), SNP: b(3), Microcode: b(7)}
	}
	return TCB{}
}

// Reserved returns the bytes of v that are no component.
func (v TCBVersion) Reserved() uint64 { return v.Raw &^ v.Layout.Pack(v.Components()).Raw }

// String gives the components as bootloader.tee.snp.microcode, for example "4.0.29.222", on Turin with the FMC before
// them, and the number as it stands if they do not cover it.
func (v TCBVersion) String() string {
	number := fmt.Sprintf("%#016x", v.Raw)
	if v.Layout == LayoutUnknown {
		return number
	}
	t := v.Components()
	text := t.String()
	if v.Layout == LayoutTurin {
		text = fmt.Sprintf("%d.%s", t.FMC, text)
	}
	if v.Reserved() != 0 {
		text += " (" + number + ")"
	}
	return text
}

// Version puts the components together as Milan and Genoa do.
func (t TCB) Version() TCBVersion { return LayoutMilan.Pack(t) }

// AtLeast reports whether no component of t is below that of min.
func (t TCB) AtLeast(min TCB) bool {
	return t.FMC >= min.FMC && t.Bootloader >= min.Bootloader && t.TEE >= min.TEE && t.SNP >= min.SNP &&
		t.Microcode >= min.Microcode
}

// String gives the components that all products have in the order bootloader.tee.snp.microcode, for example
// "4.0.29.222".
func (t TCB) String() string {
	return fmt.Sprintf("%d.%d.%d.%d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
}
