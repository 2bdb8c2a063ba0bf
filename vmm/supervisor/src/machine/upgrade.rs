//! A device goes over to another binary while it is in use ([`crate::worker`] says how): each step when its time has come.

use std::time::Instant;

use super::Machine;
use crate::link::{End, Event, cut};
use crate::poller::Token;
use crate::vcpu;
use crate::worker::{Blame, CandidateNews, Ending, Stage};

impl Machine {
    /// The front wants the worker of `index`, if it still is of that `generation`, to be of the binary that it has offered to the
    /// spawner as number `offer`.
    pub(super) fn upgrade(&mut self, index: usize, generation: u32, offer: u32) {
        if let Err(reason) = self.begin_upgrade(index, generation, offer) {
            // Nobody else asks for it; a spawner that is gone is seen by its socket.
            let _ = self.spawner.settle(index as u32, offer, false);
            self.say(Event::Upgraded { offer, result: Err(cut(reason)) });
        }
    }

    fn begin_upgrade(&mut self, index: usize, generation: u32, offer: u32) -> Result<(), String> {
        if !self.pause.is_running() {
            return Err("the VM is paused".to_owned());
        }
        let worker = self.workers.get_mut(index).ok_or("there is no such device")?;
        if worker.generation() != generation {
            return Err("it has another worker by now".to_owned());
        }
        worker.begin_hand_over(index, offer, &self.spawner)?;
        let watched =
            worker.candidate_control().map(|control| self.poller.watch(control, Token::Candidate(index)));
        if let Some(Err(error)) = watched {
            self.keep_the_old(index, &format!("the new worker cannot be watched: {error}"));
        }
        Ok(())
    }

    /// What the process that is to take over has sent.
    pub(super) fn take_candidate_news(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let device = worker.kind();
        for one in worker.take_candidate_news() {
            let Some(worker) = self.workers.get_mut(index) else { return };
            match one {
                CandidateNews::Greeted => {
                    worker.candidate_greeted();
                    if worker.is_quiet() {
                        self.rests(index);
                    }
                }
                CandidateNews::Ready => {
                    worker.retire();
                    self.poller.forget(worker.control());
                    worker.kill(index, &self.spawner);
                }
                CandidateNews::Log(level, text) => self.tell_log(device, level, text),
                // Its end follows, and tells more.
                CandidateNews::Failed(reason) if reason.is_empty() => {
                    worker.candidate_control().iter().for_each(|control| self.poller.forget(control));
                }
                CandidateNews::Failed(reason) if worker.may_withdraw() => self.keep_the_old(index, &reason),
                CandidateNews::Failed(_) => worker.kill_candidate(index, &self.spawner),
            }
        }
    }

    /// The worker of `index` rests, perhaps because it is to be relieved.
    pub(super) fn rests(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        if worker.hand_over() == Some(Stage::Quiescing)
            && let Err(error) = worker.grant_candidate()
        {
            self.keep_the_old(index, &error.to_string());
        }
    }

    /// Ends what is late.
    pub(super) fn upgrade_further(&mut self) {
        let now = Instant::now();
        for index in 0..self.workers.len() {
            let Some(worker) = self.workers.get_mut(index) else { return };
            if worker.hand_over_by().is_some_and(|by| by <= now) {
                let late = match worker.hand_over() {
                    Some(Stage::Greeting) => "it did not say what it is in time",
                    Some(Stage::Quiescing) => "the worker before it did not come to rest in time",
                    _ => "it did not take over the state in time",
                };
                self.keep_the_old(index, late);
            }
        }
    }

    /// The spawner is gone, with which nobody can be ended: a worker that has not been relieved yet goes on, another is given up.
    pub(super) fn break_off(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let (Some(stage), Some(offer)) = (worker.hand_over(), worker.offer()) else { return };
        worker.candidate_control().iter().for_each(|control| self.poller.forget(control));
        // It ends when it finds its socket closed.
        let _ = worker.forget_candidate();
        self.say(Event::Upgraded { offer, result: Err("the spawner is gone".to_owned()) });
        match stage {
            Stage::Greeting => {}
            Stage::Quiescing => self.go_on_with_the_old(index),
            // Both have the device's memory.
            Stage::Restoring | Stage::Retiring | Stage::Withdrawing => {
                let reason = "its worker was being relieved when the spawner ended".to_owned();
                self.condemn(index, None, Some(Blame::Unstarted(reason)));
            }
        }
    }

    /// The process that was to take over does not.
    pub(super) fn keep_the_old(&mut self, index: usize, reason: &str) {
        let Some(worker) = self.workers.get_mut(index).filter(|worker| worker.may_withdraw()) else { return };
        let Some(offer) = worker.offer() else { return };
        worker.candidate_control().iter().for_each(|control| self.poller.forget(control));
        let goes_on = !worker.withdraw(index, &self.spawner);
        let text = format!("it is not upgraded: the new worker: {reason}");
        self.warn(index, &text);
        self.say(Event::Upgraded { offer, result: Err(cut(format!("the new worker: {reason}"))) });
        if goes_on {
            self.go_on_with_the_old(index);
        }
    }

    fn go_on_with_the_old(&mut self, index: usize) {
        let paused = self.pause.holds_workers();
        if let Some(worker) = self.workers.get_mut(index).filter(|_| !paused) {
            worker.resume();
            worker.tell_host_settings();
        }
    }

    /// The process that was to take over is gone, or was never there: `reason`.
    pub(super) fn candidate_gone(&mut self, index: usize, reason: &str) -> Option<End> {
        // What it said at last may be the better reason.
        self.take_candidate_news(index);
        let worker = self.workers.get_mut(index)?;
        let offer = worker.offer()?;
        match worker.hand_over()? {
            Stage::Withdrawing => {}
            Stage::Greeting | Stage::Quiescing | Stage::Restoring => self.keep_the_old(index, reason),
            Stage::Retiring => {
                // The worker is as good as dead; its successor is of the old binary.
                worker.retire_for_nobody(index, &self.spawner);
                let result = Err(cut(format!("the new worker: {reason}")));
                self.say(Event::Upgraded { offer, result });
                return None;
            }
        }
        let worker = self.workers.get_mut(index)?;
        worker.hand_over()?;
        match worker.forget_candidate() {
            Some(ending) => self.gone(index, &ending),
            None => {
                self.go_on_with_the_old(index);
                None
            }
        }
    }

    /// The worker of `index` has ended, as `ending` says.
    pub(super) fn worker_gone(&mut self, index: usize, ending: Ending) -> Option<End> {
        match self.workers.get(index)?.hand_over() {
            None => return self.gone(index, &ending),
            Some(Stage::Retiring) => {
                self.take_over(index);
                return None;
            }
            Some(Stage::Withdrawing) => {}
            Some(Stage::Greeting | Stage::Quiescing | Stage::Restoring) => {
                self.keep_the_old(index, "the worker before it has ended");
            }
        }
        let worker = self.workers.get_mut(index)?;
        if worker.hand_over().is_none() {
            return self.gone(index, &ending);
        }
        // Two of them at a time would write to the same memory.
        worker.bereave(ending);
        None
    }

    fn take_over(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let Some(offer) = worker.offer() else { return };
        worker.candidate_control().iter().for_each(|control| self.poller.forget(control));
        self.forget_end(index);
        let Some(worker) = self.workers.get_mut(index) else { return };
        worker.take_over(index, &self.spawner);
        if let Err(error) = self.poller.watch(worker.control(), Token::Control(index)) {
            return self.condemn(
                index,
                None,
                Some(Blame::Unstarted(format!("it cannot be watched: {error}"))),
            );
        }
        let successor = worker.successor();
        self.watch_end(index);
        let Some(worker) = self.workers.get_mut(index) else { return };
        worker.go_on();
        let pause = worker.last_pause();
        let (generation, ms) = (worker.generation(), worker.pause().as_secs_f64() * 1e3);
        self.tell_of(index, &vcpu::Command::Succeed { device: index, successor });
        self.warn(index, &format!("it is upgraded (generation {generation}, after {ms:.1} ms)"));
        self.say(Event::Upgraded { offer, result: pause.ok_or_else(String::new) });
        self.recruit(index);
    }
}
