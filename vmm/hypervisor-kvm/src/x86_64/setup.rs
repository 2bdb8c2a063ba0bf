//! What a vCPU is given before its first entry.

use cellblock_hypervisor::x86_64::{BootState, CpuidLeaf, DescriptorTable, Segment};
use cellblock_hypervisor::{Error, Result};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_fpu, kvm_guest_debug,
    kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::VcpuFd;

use super::failed_on;
use crate::interface::MpState;

/// LVT entries of the local APIC's two interrupt pins (SDM vol 3 §11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery mode, bits 8–10 of an LVT entry.
const DELIVERY_MODE: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;
const DELIVERY_EXTINT: u32 = 0x700;
/// Bit 16 of an LVT entry.
const LVT_MASKED: u32 = 1 << 16;

/// A vCPU's set-up, one system call or two each. Use it before the first entry, or while nothing is pending.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    vcpu: u32,
    fd: &'a VcpuFd,
}

impl<'a> Setup<'a> {
    pub(super) fn new(vcpu: u32, fd: &'a VcpuFd) -> Self {
        Self { vcpu, fd }
    }

    /// What the guest's CPUID instruction tells. Give it before the MSRs: which exist depends on it.
    pub fn set_cpuid(&self, leaves: &[CpuidLeaf]) -> Result<()> {
        let entries: Vec<_> = leaves.iter().map(entry).collect();
        let cpuid = CpuId::from_entries(&entries).map_err(|_| Error::BadValue {
            field: "the number of CPUID leaves",
            value: leaves.len().to_string(),
            on: format!("vCPU {}", self.vcpu),
            allowed: "at most 256",
        })?;
        self.fd.set_cpuid2(&cpuid).map_err(failed_on(self.vcpu, "KVM_SET_CPUID2"))
    }

    /// Sets model-specific registers, `(index, value)` each, in order. Returns the indices that the host refused.
    ///
    /// # Errors
    /// Only if the call itself fails: KVM stops at a register that it refuses, and the rest is given again without it.
    pub fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<Vec<u32>> {
        let entries: Vec<_> =
            msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let mut refused = Vec::new();
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let done = self
                .fd
                .set_msrs(&native_msrs(self.vcpu, rest)?)
                .map_err(failed_on(self.vcpu, "KVM_SET_MSRS"))?;
            rest = rest.get(done..).unwrap_or_default();
            if let Some((first, others)) = rest.split_first() {
                refused.push(first.index);
                rest = others;
            }
        }
        Ok(refused)
    }

    /// Reads one model-specific register; `None` if the host refuses it.
    pub fn get_msr(&self, index: u32) -> Result<Option<u64>> {
        let mut msrs = native_msrs(self.vcpu, &[kvm_msr_entry { index, ..Default::default() }])?;
        let read = self.fd.get_msrs(&mut msrs).map_err(failed_on(self.vcpu, "KVM_GET_MSRS"))?;
        Ok(msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data))
    }

    /// Registers, segments, control registers and the FPU. The local APIC's base is kept.
    pub fn set_boot_state(&self, state: &BootState) -> Result<()> {
        self.set_system_registers(state)?;
        let regs = kvm_regs {
            rip: state.rip,
            rsp: state.rsp,
            rsi: state.rsi,
            rbx: state.rbx,
            rflags: state.rflags | 2,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(failed_on(self.vcpu, "KVM_SET_REGS"))?;
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
        self.fd.set_fpu(&fpu).map_err(failed_on(self.vcpu, "KVM_SET_FPU"))
    }

    fn set_system_registers(&self, state: &BootState) -> Result<()> {
        let mut sregs = self.fd.get_sregs().map_err(failed_on(self.vcpu, "KVM_GET_SREGS"))?;
        for (native, portable) in [
            (&mut sregs.cs, &state.cs),
            (&mut sregs.ds, &state.ds),
            (&mut sregs.es, &state.es),
            (&mut sregs.fs, &state.fs),
            (&mut sregs.gs, &state.gs),
            (&mut sregs.ss, &state.ss),
            (&mut sregs.tr, &state.tr),
            (&mut sregs.ldt, &state.ldt),
        ] {
            *native = segment(portable);
        }
        sregs.gdt = table(&state.gdt);
        sregs.idt = table(&state.idt);
        sregs.cr0 = state.cr0;
        sregs.cr3 = state.cr3;
        sregs.cr4 = state.cr4;
        sregs.efer = state.efer;
        self.fd.set_sregs(&sregs).map_err(failed_on(self.vcpu, "KVM_SET_SREGS"))
    }

    /// LINT0 as external interrupt but masked, LINT1 as NMI (Intel MultiProcessor Specification §3.8). KVM feeds its 8259
    /// beside the I/O APIC, and the board has none: unmasked it would interrupt the guest with a vector nobody set.
    pub fn set_lapic_pins(&self) -> Result<()> {
        let mut lapic = self.fd.get_lapic().map_err(failed_on(self.vcpu, "KVM_GET_LAPIC"))?;
        set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_EXTINT | LVT_MASKED);
        set_delivery_mode(&mut lapic, LVT_LINT1, DELIVERY_NMI);
        self.fd.set_lapic(&lapic).map_err(failed_on(self.vcpu, "KVM_SET_LAPIC"))
    }

    /// What the vCPU does. Only with the in-kernel interrupt controllers.
    pub fn mp_state(&self) -> Result<MpState> {
        let state = self.fd.get_mp_state().map_err(failed_on(self.vcpu, "KVM_GET_MP_STATE"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_RUNNABLE => MpState::Runnable,
            KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
            KVM_MP_STATE_HALTED => MpState::Halted,
            KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
            other => MpState::Other(other),
        })
    }

    /// The guest's time-stamp counter in kHz.
    pub fn tsc_khz(&self) -> Result<u32> {
        self.fd.get_tsc_khz().map_err(failed_on(self.vcpu, "KVM_GET_TSC_KHZ"))
    }

    /// Makes each instruction exit with [`VmExit::Debug`](cellblock_hypervisor::VmExit::Debug), or ends that.
    pub fn set_single_step(&self, on: bool) -> Result<()> {
        let control = if on { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP } else { 0 };
        let debug = kvm_guest_debug { control, ..Default::default() };
        self.fd.set_guest_debug(&debug).map_err(failed_on(self.vcpu, "KVM_SET_GUEST_DEBUG"))
    }
}

/// From KVM's form.
pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> CpuidLeaf {
    let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    CpuidLeaf {
        function: entry.function,
        index: if indexed { entry.index } else { 0 },
        indexed,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn entry(leaf: &CpuidLeaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        padding: [0; 3],
    }
}

fn native_msrs(vcpu: u32, entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| Error::BadValue {
        field: "the number of MSRs",
        value: entries.len().to_string(),
        on: format!("vCPU {vcpu}"),
        allowed: "at most 256",
    })
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: (!segment.system).into(),
        l: segment.long.into(),
        g: segment.granularity.into(),
        avl: segment.avl.into(),
        unusable: (!segment.present).into(),
        padding: 0,
    }
}

fn table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut bytes = [0; 4];
    for (byte, from) in bytes.iter_mut().zip(&lapic.regs[register..register + 4]) {
        *byte = *from as u8;
    }
    let value = u32::from_le_bytes(bytes) & !DELIVERY_MODE | mode;
    for (to, byte) in lapic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}
