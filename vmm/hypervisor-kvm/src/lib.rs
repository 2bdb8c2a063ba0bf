//! The KVM back end of the portable hypervisor interface.
//!
//! A VM is made on any thread, a vCPU is made on any thread and **bound** to the one that runs it. The bound vCPU is not
//! `Send`; what other threads need of it is its [`KickHandle`](cellblock_hypervisor::KickHandle).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use cellblock_hypervisor::{UnboundVcpu as _, Vcpu as _, VmEntry};
//! use cellblock_hypervisor_kvm::Kvm;
//! use cellblock_memory::GuestRam;
//!
//! let kvm = Kvm::open(std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into())?;
//! let vm = kvm.create_vm(&GuestRam::create(256 << 20, false)?)?;
//! let vcpu = vm.create_vcpu(0)?;
//! vcpu.setup().set_cpuid(&kvm.supported_cpuid()?)?;
//! let mut vcpu = vcpu.bind()?; // on the thread that runs it
//! let exit = vcpu.run(VmEntry::Resume)?;
//! # Ok(()) }
//! ```
//!
//! What KVM does and the portable interface hides (Linux `Documentation/virt/kvm/api.rst`):
//!
//! - `KVM_EXIT_IO` delivers `count × size` bytes for string instructions: one exit per element is yielded, and the guest
//!   is not entered before the last was answered.
//! - An access is complete only after the next `KVM_RUN`: [`finish`](cellblock_hypervisor::Vcpu::finish) does that with `immediate_exit`.
//! - Writes that KVM was told to hold back (`KVM_CAP_COALESCED_PIO`) are yielded as exits of their own, before the exit that followed.
//! - `KVM_EXIT_SHUTDOWN` is a triple fault. HLT waits in the kernel where the interrupt controller is.
//! - `KVM_INTERRUPT` fails with that controller: an edge goes by `KVM_SIGNAL_MSI` (so the local APIC must be
//!   enabled by the guest), a level is refused with a typed error; a device's line is an irqfd.
//!
//! System calls that a vCPU thread makes after `bind`: `ioctl` on its vCPU (`KVM_RUN`; after a fatal exit also `KVM_GET_REGS`
//! and `KVM_TRANSLATE`), `rt_sigreturn`; a thread that kicks makes `getpid` and `tgkill`.

mod interface;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Kvm, KvmVcpu, KvmVm, Setup, UnboundKvmVcpu, probe};
#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(not(target_arch = "x86_64"))]
pub use absent::{Kvm, KvmVcpu, KvmVm, Setup, UnboundKvmVcpu, probe};

pub use interface::{Capability, DataMatch, IoAddress, MpState, RegisterPage, Speed};
