// Package vm tests the packages in virtual machines: Debian's kernels 6.1 and 6.12 under QEMU without KVM, booted from
// cold with the SNP device behind CUSE and behind the kernel's own configfs-tsm. It is where cgroups limit, clocks jump
// and the power is cut. See run.
package vm
