//! Model-specific registers of a vCPU at reset, as firmware would leave them (Intel SDM vol 4 §2.1).

const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const IA32_TSC: u32 = 0x10;

/// `IA32_MISC_ENABLE`: fast `rep movs` and `rep stos`.
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled, write-back by default.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Index and value of each MSR that a vCPU starts with.
///
/// A host may refuse single ones (nested clouds do): the guest then starts with that host's reset value, which Linux copes with.
#[must_use]
pub fn at_reset() -> Vec<(u32, u64)> {
    let zero = [
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        STAR,
        LSTAR,
        CSTAR,
        SYSCALL_MASK,
        KERNEL_GS_BASE,
        IA32_TSC,
    ];
    let mut msrs: Vec<_> = zero.into_iter().map(|index| (index, 0)).collect();
    msrs.push((IA32_MISC_ENABLE, FAST_STRINGS));
    msrs.push((IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK));
    msrs
}
