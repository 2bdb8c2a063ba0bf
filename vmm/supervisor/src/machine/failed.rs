//! A device whose workers die too often has *failed*: a tombstone answers in its place, which says no to everything, at once.
//! The VM and its other devices run on, and somebody may have it revived.
//!
//! A tombstone that dies too often, or a successor that cannot even be asked for, leaves the device *absent*: vCPUs answer
//! themselves what they would have asked it, as of an address where nobody is.

use cellblock_wire::control::ToWorker;

use super::Machine;
use crate::vcpu;
use crate::worker::Blame;

impl Machine {
    /// The device of `index` has failed, because of `reason`.
    pub(super) fn fail(&mut self, index: usize, reason: &str) {
        let name = self.name(index);
        let Some(worker) = self.workers.get_mut(index) else { return };
        if worker.has_failed() {
            return self.abandon(index, reason);
        }
        if let Err(error) = worker.fail() {
            return self.abandon(index, &format!("{reason}; no tombstone can be put in its place: {error}"));
        }
        let text = format!(
            "{reason}; the device has failed: its requests fail from now on, until `cellblock revive` brings {name} back"
        );
        self.warn(index, &text);
        self.replace(index);
    }

    /// Nobody answers for the device of `index` from now on.
    pub(super) fn abandon(&mut self, index: usize, reason: &str) {
        self.warn(index, &format!("{reason}; nobody answers in its place: it reads as all ones"));
        let Some(worker) = self.workers.get_mut(index) else { return };
        // One that was started, but got no further.
        worker.kill(index, &self.spawner);
        // Or one that nobody can kill.
        worker.tell(&ToWorker::Quit);
        let generation = worker.abandon();
        self.tell_of(index, &vcpu::Command::Leave { device: index, generation });
    }

    /// The device of `index`, if it has failed and is of that `generation`, gets workers of its own again.
    pub(super) fn revive(&mut self, index: usize, generation: u32) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        // Without a spawner nobody could end what answers in its place.
        if !worker.has_failed() || worker.generation() != generation || self.spawner_lost {
            return;
        }
        if worker.plan_revival() {
            self.begin_anew(index);
        } else {
            self.condemn(index, None, Some(Blame::Asked));
        }
    }

    /// Starts a worker of the device's own, if it was to be revived.
    pub(super) fn begin_anew(&mut self, index: usize) -> bool {
        let Some(worker) = self.workers.get_mut(index) else { return false };
        match worker.revive() {
            Ok(false) => return false,
            Ok(true) => self.replace(index),
            Err(error) => self.abandon(index, &format!("it cannot be revived: {error}")),
        }
        true
    }

    /// Tells every vCPU of who answers for the device of `index`. One that has not heard of the one before needs to know of this
    /// one only.
    pub(super) fn tell_of(&mut self, index: usize, command: &vcpu::Command) {
        for vcpu in &mut self.vcpus {
            vcpu.undelivered.retain(|before| before.device() != Some(index));
            vcpu.tell(command.clone());
        }
    }
}
