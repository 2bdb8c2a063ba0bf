//! The portable hypervisor interface, and a scripted mock behind it.
//!
//! An exit is a request and **the next entry is its reply**: [`Vcpu::run`] takes a [`VmEntry`] and gives a [`VmExit`].
//! A read exit can be re-entered only with [`VmEntry::Reply`] of exactly its bytes, a write exit only with
//! [`VmEntry::Done`]; anything else is [`Error::WrongEntry`] and the guest does not run.
//!
//! Guarantees (each pinned by a test of the `cellblock-conformance` crate, which every back end passes):
//!
//! 1. A kick ([`KickHandle::kick`]) is never lost: one that comes before the first entry, between two, while the guest
//!    runs, or at the very moment of entry makes a run return [`VmExit::Kicked`]. Kicks that come before that
//!    exit is returned are one.
//! 2. [`VmExit::Kicked`] is returned only between guest instructions: the reply that the entry carried has been
//!    delivered, nothing is pending, and registers are whole. An access that the guest's instruction still owes (the
//!    next element of `rep insb`) is returned first, and the kick stays pending.
//! 3. A kick handle may be used before the vCPU is bound to its thread and after it is gone.
//! 4. A refused entry changes nothing: the right one may follow.
//!
//! This crate has no `unsafe`, no system call and no `target_arch`.
#![forbid(unsafe_code)]

mod entry;
mod error;
mod exit;
mod irq;
pub mod mock;
mod regs;
mod vcpu;
pub mod x86_64;

pub use entry::{Pending, VmEntry};
pub use error::Error;
pub use exit::{DebugInfo, ExitData, VmExit};
pub use irq::Irq;
pub use regs::{Regs, X86Gpr};
pub use vcpu::{Hypervisor, Kick, KickHandle, UnboundVcpu, Vcpu, Vm};

/// What this crate's operations return.
pub type Result<T> = std::result::Result<T, Error>;
