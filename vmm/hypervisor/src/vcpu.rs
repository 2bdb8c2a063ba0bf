//! The traits that a back end implements.

use std::fmt;
use std::sync::Arc;

use crate::{Irq, Regs, Result, VmEntry, VmExit};

/// A way into the hypervisor, opened once per process.
pub trait Hypervisor {
    /// What [`create_vm`](Hypervisor::create_vm) maps into the guest.
    type Memory;
    /// The back end's VM.
    type Vm: Vm;

    /// The back end's name, as error texts use it.
    fn name(&self) -> &'static str;

    /// Makes a VM that sees `memory` and has no vCPU yet.
    fn create_vm(&self, memory: &Self::Memory) -> Result<Self::Vm>;
}

/// A virtual machine.
pub trait Vm {
    /// The back end's vCPU before it has a thread.
    type Vcpu: UnboundVcpu;

    /// Makes vCPU `id` (counted from 0; the first one starts the guest).
    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu>;

    /// Makes `irq` pending on vCPU `vcpu`, from any thread.
    ///
    /// # Errors
    /// As [`Vcpu::inject_irq`].
    fn inject_irq(&self, vcpu: u32, irq: Irq) -> Result<()>;
}

/// A vCPU that no thread runs yet: it may be made on one thread and bound on another.
pub trait UnboundVcpu: Send {
    /// The vCPU on its thread; not `Send`.
    type Bound: Vcpu;

    /// A handle that works from now on: a kick before the binding ends the first run.
    fn kick_handle(&self) -> KickHandle;

    /// Ties the vCPU to the calling thread for the rest of its life.
    fn bind(self) -> Result<Self::Bound>;
}

/// A vCPU on its own thread.
pub trait Vcpu {
    /// Counted from 0.
    fn id(&self) -> u32;

    /// Answers the last exit with `entry` and lets the guest run to its next one.
    ///
    /// # Errors
    /// [`WrongEntry`](crate::Error::WrongEntry) if `entry` does not answer the last exit (the guest did not run), or what the
    /// hypervisor refused. What ends a guest (triple fault, internal error) is an exit, not an error.
    fn run(&mut self, entry: VmEntry) -> Result<VmExit>;

    /// Answers the last exit with `entry` and completes the guest's instruction, without running the next one, so that
    /// registers can be saved. `Some` is an access that the same instruction still owes: serve it and call again.
    /// A pending kick stays pending.
    ///
    /// # Errors
    /// As [`run`](Vcpu::run).
    fn finish(&mut self, entry: VmEntry) -> Result<Option<VmExit>>;

    /// Tells the guest, between two entries, that it was stopped for a while, so that its watchdogs do not take that for a fault
    /// of its own. A guest that has no way to be told is not.
    ///
    /// # Errors
    /// What the hypervisor refused.
    fn tell_of_pause(&self) -> Result<()> {
        Ok(())
    }

    /// A handle that ends a run from any thread; see the crate's guarantees.
    fn kick_handle(&self) -> KickHandle;

    /// Makes the next run return [`VmExit::Kicked`]. Another thread, which cannot have a reference to a vCPU that runs,
    /// uses a [`KickHandle`].
    fn cancel(&self) {
        self.kick_handle().kick();
    }

    /// The registers. Whole only when nothing is pending (see [`finish`](Vcpu::finish)).
    fn get_regs(&self) -> Result<Regs>;

    /// Sets the registers.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Error::Unsupported) for another architecture's registers.
    fn set_regs(&mut self, regs: &Regs) -> Result<()>;

    /// Makes `irq` pending on this vCPU.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Error::Unsupported) where the back end has no way, as KVM on x86 for a level-triggered one.
    fn inject_irq(&self, irq: Irq) -> Result<()>;
}

/// What a [`KickHandle`] does; written by back ends.
pub trait Kick: Send + Sync {
    /// See [`KickHandle::kick`].
    fn kick(&self);
}

/// Ends a vCPU's run from any thread, at any time.
#[derive(Clone)]
pub struct KickHandle(Arc<dyn Kick>);

impl KickHandle {
    /// Wraps a back end's handle.
    pub fn new(kick: Arc<dyn Kick>) -> Self {
        Self(kick)
    }

    /// Makes the vCPU's present or next run return [`VmExit::Kicked`]. Idempotent; never blocks for longer than another
    /// thread's kick; does nothing to a vCPU that is gone.
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for KickHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KickHandle")
    }
}
