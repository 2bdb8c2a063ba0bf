//! KVM on x86-64.

mod exits;
mod fatal;
mod kick;
mod pages;
pub mod probe;
mod run_page;
mod setup;
mod system;
mod vcpu;
mod vm;

pub use setup::Setup;
pub use system::Kvm;
pub use vcpu::{KvmVcpu, UnboundKvmVcpu};
pub use vm::KvmVm;

use cellblock_hypervisor::Error;

/// The back end's name in error texts.
const BACKEND: &str = "KVM";

/// Makes an error of a failed ioctl: which one, on what.
fn failed(call: &'static str, on: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    let on = on.into();
    move |errno| Error::Call { call, on, source: errno.into() }
}

/// The same on a vCPU, without an allocation unless it did fail.
fn failed_on(vcpu: u32, call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |errno| Error::Call { call, on: format!("vCPU {vcpu}"), source: errno.into() }
}
