//! Plain x86-64 vCPU state that crosses from those who know the boot protocol to those who know the hypervisor.
//!
//! Values are as the Intel SDM vol 3 §2 and §3 define them; nothing here depends on a back end or on the host.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM vol 3 §3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, after the granularity bit was applied (`0xffff_ffff` for a flat segment).
    pub limit: u32,
    /// What the visible register holds.
    pub selector: u16,
    /// Type field, 4 bits (SDM vol 3 §3.4.5.1): 0xb = code, execute/read, accessed; 0x3 = data, read/write,
    /// accessed; with `system`, 0xb = busy 64-bit or 32-bit TSS, 0x2 = LDT.
    pub kind: u8,
    /// A system segment (TSS, LDT): descriptor bit S is 0.
    pub system: bool,
    /// Descriptor privilege level, 0–3.
    pub dpl: u8,
    /// P: present. A segment that is not present is given to the vCPU as unusable.
    pub present: bool,
    /// AVL: free for software.
    pub avl: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default operand size.
    pub db: bool,
    /// G: the descriptor's limit counts 4-KiB pages.
    pub granularity: bool,
}

impl Segment {
    /// Flat 64-bit ring-0 code under `selector`.
    pub const fn code64(selector: u16) -> Self {
        Self { long: true, db: false, ..Self::code32(selector) }
    }

    /// Flat 32-bit ring-0 code under `selector`.
    pub const fn code32(selector: u16) -> Self {
        Self { kind: 0xb, ..Self::data(selector) }
    }

    /// Flat ring-0 data under `selector`.
    pub const fn data(selector: u16) -> Self {
        Self {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            kind: 0x3,
            system: false,
            dpl: 0,
            present: true,
            avl: false,
            long: false,
            db: true,
            granularity: true,
        }
    }

    /// A busy task-state segment under `selector`, as a vCPU needs one to be entered.
    pub const fn tss(selector: u16, base: u64, limit: u32) -> Self {
        Self { base, limit, kind: 0xb, system: true, db: false, granularity: false, ..Self::data(selector) }
    }

    /// The 8-byte descriptor that a GDT needs for this segment (SDM vol 3 §3.4.5). `base` must fit 32 bits.
    pub const fn descriptor(&self) -> u64 {
        let limit = if self.granularity { self.limit >> 12 } else { self.limit } as u64;
        let flags = (self.avl as u64)
            | (self.long as u64) << 1
            | (self.db as u64) << 2
            | (self.granularity as u64) << 3;
        let access = (self.kind as u64)
            | (!self.system as u64) << 4
            | (self.dpl as u64) << 5
            | (self.present as u64) << 7;
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Size in bytes minus one.
    pub limit: u16,
}

/// How a vCPU starts. Registers that are not named are zero; the FPU is as after `fninit`, MXCSR 0x1f80.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "registers, named as the processor's manual names them")]
pub struct BootState {
    pub rip: u64,
    pub rsp: u64,
    pub rsi: u64,
    pub rbx: u64,
    /// Bit 1 is always one and set for you.
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    /// Usually absent: `Segment::default()`.
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
}

/// One leaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "registers, named as the processor's manual names them")]
pub struct CpuidLeaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input; zero and not compared where `indexed` is false.
    pub index: u32,
    /// The leaf depends on ECX.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_every_boot_loader_writes() {
        assert_eq!(Segment::code64(0x10).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Segment::code32(0x10).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(Segment::data(0x18).descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(Segment::tss(0x20, 0x1234_5678, 0x67).descriptor(), 0x1200_8b34_5678_0067);
    }
}
