//! The same names on an architecture that has no KVM back end here yet: opening fails with a typed error, so no value of the other types exists.

use std::convert::Infallible;
use std::os::fd::{BorrowedFd, OwnedFd};

use cellblock_hypervisor::x86_64::{BootState, CpuidLeaf};
use cellblock_hypervisor::{
    Error, Hypervisor, Irq, KickHandle, Regs, Result, UnboundVcpu, Vcpu, Vm, VmEntry, VmExit,
};
use cellblock_memory::GuestRam;
use vm_memory::GuestMemoryMmap;

use crate::interface::{DataMatch, IoAddress, MpState, RegisterPage};

/// `/dev/kvm`; cannot be opened on this architecture.
#[derive(Debug, Clone)]
pub struct Kvm(Infallible);

/// A VM; there is none on this architecture.
#[derive(Debug, Clone)]
pub struct KvmVm(Infallible);

/// A vCPU without a thread; there is none on this architecture.
#[derive(Debug)]
pub struct UnboundKvmVcpu(Infallible);

/// A vCPU on its thread; there is none on this architecture.
#[derive(Debug)]
pub struct KvmVcpu(Infallible);

/// A vCPU's set-up; there is none on this architecture.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a>(&'a Infallible);

/// Methods that cannot be called.
macro_rules! never {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $kind:ty),*) -> $result:ty;)+) => {
        $(
            $(#[$doc])*
            #[allow(unused_variables, reason = "there is no value to call it on")]
            pub fn $name(&self, $($arg: $kind),*) -> $result {
                match self.0 {}
            }
        )+
    };
}

impl Kvm {
    /// Always refuses.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn open(_fd: OwnedFd) -> Result<Self> {
        Err(Error::Unsupported {
            what: "this processor architecture",
            backend: "KVM",
            why: "only x86-64 hosts are supported so far".into(),
        })
    }

    never! {
        /// See the x86-64 back end.
        fn supported_cpuid() -> Result<Vec<CpuidLeaf>>;
        /// See the x86-64 back end.
        fn has_tsc_deadline() -> bool;
        /// See the x86-64 back end.
        fn has_kvm_clock() -> bool;
        /// See the x86-64 back end.
        fn max_vcpus() -> u32;
        /// See the x86-64 back end.
        fn create_vm(ram: &GuestRam) -> Result<KvmVm>;
        /// See the x86-64 back end.
        fn create_vm_with(ram: &GuestRam, pages: &[RegisterPage]) -> Result<KvmVm>;
        /// See the x86-64 back end.
        fn create_bare_vm(ram: &GuestRam) -> Result<KvmVm>;
    }
}

impl KvmVm {
    never! {
        /// See the x86-64 back end.
        fn notes() -> Vec<String>;
        /// See the x86-64 back end.
        fn memory() -> &GuestMemoryMmap;
        /// See the x86-64 back end.
        fn create_vcpu(id: u32) -> Result<UnboundKvmVcpu>;
        /// See the x86-64 back end.
        fn irqfd(event: BorrowedFd<'_>, gsi: u32) -> Result<()>;
        /// See the x86-64 back end.
        fn remove_irqfd(event: BorrowedFd<'_>, gsi: u32) -> Result<()>;
        /// See the x86-64 back end.
        fn ioeventfd(address: IoAddress, matching: DataMatch, event: BorrowedFd<'_>) -> Result<()>;
        /// See the x86-64 back end.
        fn remove_ioeventfd(address: IoAddress, matching: DataMatch, event: BorrowedFd<'_>) -> Result<()>;
        /// See the x86-64 back end.
        fn hold_writes(port: u16) -> Result<bool>;
        /// See the x86-64 back end.
        fn inject_irq(vcpu: u32, irq: Irq) -> Result<()>;
    }
}

impl UnboundKvmVcpu {
    never! {
        /// See the x86-64 back end.
        fn setup() -> Setup<'_>;
    }
}

impl KvmVcpu {
    never! {
        /// See the x86-64 back end.
        fn setup() -> Setup<'_>;
    }
}

impl Setup<'_> {
    /// See the x86-64 back end.
    pub fn set_cpuid(&self, _leaves: &[CpuidLeaf]) -> Result<()> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn set_msrs(&self, _msrs: &[(u32, u64)]) -> Result<Vec<u32>> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn get_msr(&self, _index: u32) -> Result<Option<u64>> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn set_boot_state(&self, _state: &BootState) -> Result<()> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn set_lapic_pins(&self) -> Result<()> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn mp_state(&self) -> Result<MpState> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn tsc_khz(&self) -> Result<u32> {
        match *self.0 {}
    }

    /// See the x86-64 back end.
    pub fn set_single_step(&self, _on: bool) -> Result<()> {
        match *self.0 {}
    }
}

impl Hypervisor for Kvm {
    type Memory = GuestRam;
    type Vm = KvmVm;

    fn name(&self) -> &'static str {
        match self.0 {}
    }

    fn create_vm(&self, _memory: &GuestRam) -> Result<KvmVm> {
        match self.0 {}
    }
}

impl Vm for KvmVm {
    type Vcpu = UnboundKvmVcpu;

    fn create_vcpu(&self, _id: u32) -> Result<UnboundKvmVcpu> {
        match self.0 {}
    }

    fn inject_irq(&self, _vcpu: u32, _irq: Irq) -> Result<()> {
        match self.0 {}
    }
}

impl UnboundVcpu for UnboundKvmVcpu {
    type Bound = KvmVcpu;

    fn kick_handle(&self) -> KickHandle {
        match self.0 {}
    }

    fn bind(self) -> Result<KvmVcpu> {
        match self.0 {}
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        match self.0 {}
    }

    fn run(&mut self, _entry: VmEntry) -> Result<VmExit> {
        match self.0 {}
    }

    fn finish(&mut self, _entry: VmEntry) -> Result<Option<VmExit>> {
        match self.0 {}
    }

    fn kick_handle(&self) -> KickHandle {
        match self.0 {}
    }

    fn get_regs(&self) -> Result<Regs> {
        match self.0 {}
    }

    fn set_regs(&mut self, _regs: &Regs) -> Result<()> {
        match self.0 {}
    }

    fn inject_irq(&self, _irq: Irq) -> Result<()> {
        match self.0 {}
    }
}

/// What this host's KVM offers, and how fast it runs kernel code.
pub mod probe {
    use cellblock_hypervisor::Result;

    use super::Kvm;
    use crate::interface::{Capability, Speed};

    /// See the x86-64 back end.
    pub fn capabilities(kvm: &Kvm) -> Vec<Capability> {
        match kvm.0 {}
    }

    /// See the x86-64 back end.
    pub fn kernel_code_speed(kvm: &Kvm) -> Result<Speed> {
        match kvm.0 {}
    }
}
