//! A pause of the whole VM, ready for a snapshot: first every vCPU finishes the access that it is at and stays outside the guest,
//! then every worker comes to rest and commits its state. So at the end nobody owes anybody anything, and all state is in guest
//! memory, vCPUs, KVM's devices, state pages and records of requests in flight.
//!
//! A pause is complete or it is not there: what does not get that far in time ends it, and the VM runs on. While it lasts workers
//! may die and be replaced; a successor rests, too. Time goes on: a guest that runs again finds its clocks ahead.

use std::time::{Duration, Instant};

use super::Machine;
use crate::link::{DeviceState, Event, cut};
use crate::vcpu;
use crate::worker::Worker;

/// How long vCPUs and workers may take together. A disk may have to finish a slow request; a worker that has died meanwhile is
/// replaced in far less.
const PATIENCE: Duration = Duration::from_secs(3);

/// How far a pause is.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// Pauses so far; what a vCPU says of an earlier one counts for nothing.
    number: u32,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Running,
    /// The vCPUs of a `true` are out of the guest; the workers follow when all are.
    Begun {
        vcpus: Vec<bool>,
        by: Instant,
    },
    Complete,
}

impl Pause {
    /// When it has to be complete, if it is under way.
    pub(super) fn by(&self) -> Option<Instant> {
        match self.stage {
            Stage::Begun { by, .. } => Some(by),
            Stage::Running | Stage::Complete => None,
        }
    }

    /// vCPU `vcpu` says that it pauses, as it was told to by order `number`.
    pub(super) fn note(&mut self, vcpu: u32, number: u32) {
        if let Stage::Begun { vcpus, .. } = &mut self.stage
            && number == self.number
            && let Some(paused) = vcpus.get_mut(vcpu as usize)
        {
            *paused = true;
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Complete)
    }

    /// Whether none is there or under way.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }

    /// Whether the workers are to rest.
    pub(super) fn holds_workers(&self) -> bool {
        match &self.stage {
            Stage::Running => false,
            Stage::Begun { vcpus, .. } => vcpus.iter().all(|paused| *paused),
            Stage::Complete => true,
        }
    }
}

impl Machine {
    pub(super) fn pause(&mut self) {
        match self.pause.stage {
            Stage::Complete => return self.say(Event::Paused(Ok(()))),
            // Who asks again gets the same answer.
            Stage::Begun { .. } => return,
            Stage::Running => {}
        }
        if let Some(index) = self.workers.iter().position(Worker::is_being_relieved) {
            let reason = format!("device {} is being upgraded; try again", self.name(index));
            return self.say(Event::Paused(Err(cut(reason))));
        }
        let number = self.pause.number.wrapping_add(1);
        let stage = Stage::Begun { vcpus: vec![false; self.vcpus.len()], by: Instant::now() + PATIENCE };
        self.pause = Pause { number, stage };
        self.tell_vcpus(&vcpu::Command::Pause { number });
    }

    pub(super) fn resume(&mut self) {
        if let Stage::Begun { .. } = self.pause.stage {
            self.say(Event::Paused(Err("it was resumed before it was paused".to_owned())));
        }
        self.run_on();
        self.say(Event::Resumed);
    }

    fn run_on(&mut self) {
        if !matches!(std::mem::take(&mut self.pause.stage), Stage::Running) {
            self.workers.iter_mut().for_each(Worker::resume);
            self.tell_vcpus(&vcpu::Command::Resume);
        }
    }

    /// Each is told one of the two at a time: the last word counts.
    fn tell_vcpus(&mut self, command: &vcpu::Command) {
        for vcpu in &mut self.vcpus {
            vcpu.undelivered
                .retain(|before| !matches!(before, vcpu::Command::Pause { .. } | vcpu::Command::Resume));
            vcpu.tell(command.clone());
        }
    }

    /// Takes the next step of a pause, if its time has come.
    pub(super) fn pause_further(&mut self) {
        if self.pause.holds_workers() {
            let serving = self.workers.iter_mut().filter(|worker| worker.state() == DeviceState::Serving);
            serving.for_each(Worker::quiesce);
        }
        let Stage::Begun { vcpus, by } = &self.pause.stage else { return };
        let running = vcpus.iter().position(|paused| !paused);
        let busy =
            // One that is gone is one whose start is tried again: nobody has committed its state yet.
            self.workers.iter().position(|worker| !worker.is_quiet());
        if running.is_none() && busy.is_none() {
            self.pause.stage = Stage::Complete;
            return self.say(Event::Paused(Ok(())));
        }
        if *by > Instant::now() {
            return;
        }
        let seconds = PATIENCE.as_secs();
        let reason = match (running, busy) {
            (Some(vcpu), _) => format!("vCPU {vcpu} has not finished its access after {seconds} s"),
            (None, Some(index)) => {
                format!("device {} has not come to rest after {seconds} s", self.name(index))
            }
            (None, None) => return,
        };
        self.run_on();
        self.say(Event::Paused(Err(cut(format!("{reason}; the VM runs on")))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_rest_after_the_last_vcpu_and_old_news_does_not_count() {
        let begun =
            |number| Pause { number, stage: Stage::Begun { vcpus: vec![false; 2], by: Instant::now() } };
        let mut pause = begun(7);
        for (vcpu, number) in [(0, 7), (1, 6), (2, 7), (u32::MAX, 7)] {
            pause.note(vcpu, number);
            assert!(!pause.holds_workers());
        }
        pause.note(1, 7);
        assert!(pause.holds_workers() && !pause.is_complete());
        assert!(Pause::default().by().is_none() && !Pause::default().holds_workers());
    }
}
