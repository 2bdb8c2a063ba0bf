//! Registers at the guest's first instruction.

use cellblock_hypervisor::x86_64::{BootState, DescriptorTable, Segment};

use super::layout::{BOOT_STACK, GDT, IDT, PAGE_TABLES};
use super::paging::{CODE64, DATA, GDT_LIMIT, TASK};
use crate::boot::{BootEntry, BootProtocol, Error};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one; interrupts are off.
const RFLAGS: u64 = 2;
const TASK_LIMIT: u32 = 0x67;

/// Registers of the boot vCPU for `entry`. The other vCPUs wait for INIT and SIPI and need none.
///
/// # Errors
/// None on x86_64; the signature is that of all architectures.
pub fn boot_state(entry: &BootEntry) -> Result<BootState, Error> {
    Ok(match entry.protocol {
        BootProtocol::Linux64 => linux64(entry),
        BootProtocol::Pvh => pvh(entry),
    })
}

/// Linux `Documentation/arch/x86/boot.rst`, "64-bit boot protocol": long mode, `__BOOT_CS` and `__BOOT_DS`, RSI = `boot_params`.
fn linux64(entry: &BootEntry) -> BootState {
    let data = Segment::data(DATA);
    BootState {
        rip: entry.entry,
        rsi: entry.parameters,
        rsp: BOOT_STACK,
        rflags: RFLAGS,
        cr0: CR0_PAGING | CR0_EXTENSION_TYPE | CR0_PROTECTED,
        cr3: PAGE_TABLES,
        cr4: CR4_PAE,
        efer: EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE,
        cs: Segment::code64(CODE64),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::tss(TASK, 0, TASK_LIMIT),
        gdt: DescriptorTable { base: GDT, limit: GDT_LIMIT },
        idt: DescriptorTable { base: IDT, limit: 0 },
        ..BootState::default()
    }
}

/// Xen `docs/misc/pvh.pandoc`: CR0 has PE alone, CR4 is zero, flat 32-bit segments, a 32-bit TSS of limit 0x67, EBX = `hvm_start_info`.
/// The tables themselves are the guest's to load.
fn pvh(entry: &BootEntry) -> BootState {
    let data = Segment::data(DATA);
    BootState {
        rip: entry.entry,
        rbx: entry.parameters,
        rflags: RFLAGS,
        cr0: CR0_EXTENSION_TYPE | CR0_PROTECTED,
        cs: Segment::code32(CODE64),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::tss(TASK, 0, TASK_LIMIT),
        ..BootState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::paging;
    use super::*;

    fn state(protocol: BootProtocol) -> BootState {
        boot_state(&BootEntry { protocol, entry: 0x100_0000, parameters: 0x7000 }).unwrap()
    }

    #[test]
    fn hidden_segment_parts_agree_with_the_gdt_in_memory() {
        let state = state(BootProtocol::Linux64);
        let gdt = paging::gdt();
        assert_eq!(gdt.address, state.gdt.base);
        for segment in [state.cs, state.ds, state.ss, state.tr] {
            let at = usize::from(segment.selector);
            let descriptor = u64::from_le_bytes(gdt.bytes[at..at + 8].try_into().unwrap());
            assert_eq!(descriptor, segment.descriptor(), "selector {:#x}", segment.selector);
        }
    }

    #[test]
    fn linux64_is_in_long_mode_with_boot_params_in_rsi() {
        let state = state(BootProtocol::Linux64);
        assert_eq!((state.rip, state.rsi, state.rbx), (0x100_0000, 0x7000, 0));
        assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
        assert!(state.cs.long && !state.cs.db);
    }

    #[test]
    fn pvh_is_in_flat_protected_mode_with_start_info_in_ebx() {
        let state = state(BootProtocol::Pvh);
        assert_eq!((state.rip, state.rsi, state.rbx), (0x100_0000, 0, 0x7000));
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x11, 0, 0, 0));
        assert!(!state.cs.long && state.cs.db && state.cs.limit == u32::MAX);
    }
}
