//! A device whose own workers are not started any more.

use cellblock_channel::memory::{self, ReadOnly, Sealed};
use cellblock_ring::state_page::Shape;
use cellblock_spawner::protocol::Program;
use cellblock_wire::device::Role;

use super::Worker;
use crate::deaths::Deaths;
use crate::error::BuildError;
use crate::link::DeviceState;

/// What stands in the device's place.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// A tombstone, or nobody.
    failed: bool,
    /// Nobody: not even a tombstone lives.
    absent: bool,
    /// It is to have a worker of its own again, as soon as the tombstone is gone.
    reviving: bool,
    /// One of its own workers has served since the device was made or revived.
    served: bool,
    /// What its own workers left, and how often the driver had reset the device by then.
    left: Option<(Sealed<ReadOnly>, u32)>,
}

impl Failure {
    /// A worker serves.
    pub(super) fn note_service(&mut self) {
        self.served |= !self.failed;
    }
}

impl Worker {
    /// Whether the device has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.failed
    }

    /// Whether nobody answers for it, nor will.
    pub(crate) fn is_absent(&self) -> bool {
        self.failure.absent
    }

    /// What its next process executes.
    pub(super) fn program(&self) -> Program {
        if self.failure.failed { Program::Tombstone } else { Program::Own }
    }

    /// Whether its next process gets what `role` stands for: a tombstone gets nothing of the host's.
    pub(super) fn grants(&self, role: Role) -> bool {
        let guests = matches!(
            role,
            Role::GuestMemory { .. }
                | Role::Registers
                | Role::Interrupt(_)
                | Role::QueueKick(_)
                | Role::InFlight
        );
        guests || !self.failure.failed
    }

    /// The device has failed: its next process is a tombstone, with a state page of its own.
    pub(crate) fn fail(&mut self) -> Result<(), BuildError> {
        let own = self.new_page()?;
        let page = std::mem::replace(&mut self.state_page, own);
        let left = self.failure.served.then(|| (page, self.resets()));
        self.failure = Failure { failed: true, left, ..Failure::default() };
        self.deaths = Deaths::default();
        Ok(())
    }

    /// Nobody answers for the device any more. Returns the incarnation that this is.
    pub(crate) fn abandon(&mut self) -> u32 {
        (self.failure.failed, self.failure.absent) = (true, true);
        (self.state, self.serve_by) = (DeviceState::Gone, None);
        // Nobody is asked again what it may have died of, and nobody is to be started but by a revival.
        self.fell = None;
        self.back_off.end();
        if let Some(causes) = &self.causes {
            causes.page.float();
        }
        self.generation += 1;
        self.generation
    }

    /// It is to be revived when its process is gone; whether it is gone already.
    pub(crate) fn plan_revival(&mut self) -> bool {
        self.failure.reviving = true;
        self.state == DeviceState::Gone
    }

    /// Whether its own workers are started again from now on, because it was to be revived. They go on with what the last of
    /// them left, unless none has served since then, so that a state that kills them does so once; or unless the driver has
    /// reset the device since then: then with the registers.
    pub(crate) fn revive(&mut self) -> Result<bool, BuildError> {
        if !std::mem::take(&mut self.failure.reviving) {
            return Ok(false);
        }
        if let Some(causes) = self.causes.as_ref().filter(|_| self.failure.absent) {
            // All else the worker shows anew.
            causes.page.clear_bits(causes.registers.status, u32::MAX);
        }
        let left = self.failure.left.take().filter(|(_, resets)| *resets == self.resets());
        self.state_page = match left {
            Some((page, _)) => page,
            None => self.new_page()?,
        };
        (self.failure, self.deaths) = (Failure::default(), Deaths::default());
        Ok(true)
    }

    fn resets(&self) -> u32 {
        self.shadow.as_ref().map_or(0, |shadow| shadow.resets())
    }

    fn new_page(&self) -> Result<Sealed<ReadOnly>, BuildError> {
        let (device, shape) = (self.kind(), Shape::new(self.lanes, self.kind().state_bytes()));
        memory::create_state(device.name(), memory::bytes(shape.words()))
            .map_err(|source| BuildError::Memory { device, memory: "state page", source })
    }
}
