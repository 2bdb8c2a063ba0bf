//! What becomes of a device when its worker ends, or is ended.
//!
//! A worker that has broken a rule, is silent, or has closed its socket is *condemned*: it is killed. Once the spawner has
//! reaped it, so that nothing of it can write any more, a successor is started over the same resources and state page, and
//! every vCPU is given the new rings; an access that was waiting is sent again. Too many deaths without progress in between,
//! and the device has [`failed`](super::failed).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cellblock_channel::socket::SocketError;
use cellblock_jail::JailError;
use cellblock_spawner::protocol::{Cause, Event as SpawnerEvent};
use cellblock_wire::control::LogLevel;
use cellblock_wire::device::DeviceKind;
use rustix::io::Errno;

use super::Machine;
use crate::deaths::Verdict;
use crate::link::{DeviceState, End, Event, cut, device_names};
use crate::poller::Token;
use crate::proxy::Successor;
use crate::vcpu;
use crate::worker::{Blame, Ending, News, Told, Who, Worker};

/// How long people may not hear of a death, while a successor is on its way.
const HOLD: Duration = Duration::from_millis(20);

impl Machine {
    pub(super) fn take_spawner_message(&mut self) -> Option<End> {
        loop {
            let end = match self.spawner.next() {
                Ok(None) => return None,
                Ok(Some((event, descriptor))) => self.take_spawner_event(event, descriptor),
                Err(error) => Some(spawner_lost(&error)),
            };
            if end.is_some() {
                return end;
            }
        }
    }

    fn take_spawner_event(&mut self, event: SpawnerEvent, descriptor: Option<OwnedFd>) -> Option<End> {
        match event {
            SpawnerEvent::Started { worker, instance, host_pid, took } => {
                let index = worker as usize;
                let worker = self.workers.get_mut(index)?;
                worker.started(instance, host_pid, took, descriptor);
                if worker.is_process(instance) {
                    // A successor may have said that it serves before this.
                    if worker.generation() > 1 {
                        worker.recruit_soon();
                    }
                    self.watch_end(index);
                }
                None
            }
            SpawnerEvent::Failed { worker, instance, error } => {
                if self.tries_later(worker as usize, instance, &error) {
                    return None;
                }
                self.unstarted(worker as usize, instance, &error.to_string())
            }
            SpawnerEvent::Refused { worker, instance, reason } => {
                self.unstarted(worker as usize, instance, &reason.to_string())
            }
            SpawnerEvent::Examined { worker, instance, activity } => {
                self.judge(worker as usize, instance, activity);
                None
            }
            SpawnerEvent::Ready { host_pid } => {
                self.spawner_pid = host_pid;
                None
            }
            SpawnerEvent::Lost(cause) => {
                self.lose_spawner(&cause);
                None
            }
            SpawnerEvent::Unable(error) => {
                Some(End::Refused { reason: cut(format!("the spawner's sandbox cannot be closed: {error}")) })
            }
            SpawnerEvent::Ended { worker: index, instance, cause } => {
                let index = index as usize;
                match self.workers.get_mut(index)?.ended(instance) {
                    Who::Worker => {
                        // Its last words are the better reason.
                        self.take_news(index);
                        let ending = self.workers.get(index)?.ending(cause);
                        return self.worker_gone(index, ending);
                    }
                    Who::Spare => self.warn(index, &format!("one of its spares {cause}")),
                    Who::Candidate => return self.candidate_gone(index, &cause.to_string()),
                    Who::Predecessor => self.bury(index, Some(cause)),
                    Who::Nobody => {}
                }
                None
            }
            _ => None,
        }
    }

    /// The spawner could not start it for want of something that comes back: whether it is asked again in a while.
    fn tries_later(&mut self, index: usize, instance: u32, error: &JailError) -> bool {
        let passing = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
        let Some(worker) = self.workers.get_mut(index) else { return false };
        let is_successor = worker.is_process(instance) && worker.generation() > 1;
        if !is_successor || !passing.iter().any(|errno| errno.raw_os_error() == error.errno) {
            return false;
        }
        let Some((pause, first)) = worker.try_later() else { return false };
        self.poller.forget(worker.control());
        if first {
            let ms = pause.as_millis();
            self.warn(
                index,
                &format!("its successor cannot be started: {error}; that is tried again, in {ms} ms"),
            );
        }
        true
    }

    /// Starts those whose time has come.
    pub(super) fn try_again(&mut self) {
        let now = Instant::now();
        for index in 0..self.workers.len() {
            if self.workers.get_mut(index).is_some_and(|worker| worker.is_to_start(now)) {
                self.replace(index);
            }
        }
    }

    /// The spawner could not start it.
    fn unstarted(&mut self, index: usize, instance: u32, reason: &str) -> Option<End> {
        let worker = self.workers.get_mut(index)?;
        match worker.ended(instance) {
            Who::Worker => {}
            Who::Spare => {
                self.warn(index, &format!("a spare of it cannot be started: {reason}"));
                return None;
            }
            Who::Candidate => return self.candidate_gone(index, reason),
            Who::Predecessor | Who::Nobody => return None,
        }
        if worker.generation() == 1 {
            let device = worker.kind();
            let reason = cut(format!("the worker of device {device} cannot be started: {reason}"));
            return Some(End::Refused { reason });
        }
        self.condemn(
            index,
            None,
            Some(Blame::Unstarted(format!("its successor cannot be started: {reason}"))),
        );
        self.gone(index, &Ending::Unstarted)
    }

    /// The workers that did not serve in time.
    pub(super) fn take_the_late(&mut self) -> Option<End> {
        let now = Instant::now();
        let late = self.workers.iter().position(|worker| worker.serve_by().is_some_and(|at| at <= now))?;
        let reason = "its worker did not serve in time";
        if self.workers.get(late).is_some_and(|worker| worker.generation() == 1) {
            return Some(self.device_end(late, reason));
        }
        self.condemn(late, None, Some(Blame::Unstarted(reason.to_owned())));
        None
    }

    /// What a worker has sent.
    pub(super) fn take_news(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let device = worker.kind();
        for one in worker.take_news() {
            match one {
                News::Ready => self.serves(index),
                News::StateLost(reason) => self.tell_loss(index, &reason),
                News::Log(level, text) => self.tell_log(device, level, text),
                News::Balloon(report) => self.say(Event::Balloon(Some(report))),
                News::Quiesced => self.rests(index),
                News::Closed => self.closed(index),
                News::Broken(reason) => self.condemn(index, None, Some(Blame::Violation(reason))),
            }
        }
    }

    /// Sees to it that there are as many spares as there should be. One that dies is replaced when the next worker serves: so one
    /// that dies at once costs little.
    pub(super) fn recruit(&mut self, index: usize) {
        let wanted = self.spares;
        let Some(worker) = self.workers.get_mut(index) else { return };
        while worker.lacks_spare(wanted) {
            if let Err(error) = worker.recruit(index, &self.spawner) {
                return self.warn(index, &format!("it goes without a spare: {error}"));
            }
        }
    }

    pub(super) fn tell_log(&self, device: DeviceKind, level: LogLevel, text: String) {
        let text = match level {
            LogLevel::Warn => format!("warning: {text}"),
            LogLevel::Info | LogLevel::Debug => text,
        };
        self.say(Event::WorkerLog { device, text });
    }

    fn tell_loss(&self, index: usize, reason: &str) {
        let virtio = self.workers.get(index).is_some_and(Worker::is_virtio);
        let goes_on =
            if virtio { "from the registers as the guest has written them" } else { "as after power-on" };
        self.warn(
            index,
            &format!("what its predecessor left makes no sense ({reason}); it goes on {goes_on}"),
        );
    }

    fn serves(&mut self, index: usize) {
        let Some(worker) = self.workers.get(index).filter(|worker| worker.generation() > 1) else { return };
        let (generation, pause) = (worker.generation(), worker.pause().as_secs_f64() * 1e3);
        let who =
            if worker.has_failed() { "a tombstone answers in its place" } else { "its successor serves" };
        let text = format!("{who} (generation {generation}, after {pause:.1} ms)");
        let Some(worker) = self.workers.get_mut(index) else { return };
        worker.recruit_soon();
        if let Some(text) = worker.tell_after_the_end(text) {
            self.warn(index, &text);
        }
    }

    /// A worker's end is seen at once, before the spawner can say how it was.
    pub(super) fn watch_end(&self, index: usize) {
        if let Some((instance, end)) = self.workers.get(index).and_then(Worker::end) {
            // What cannot be watched is told by the spawner all the same.
            let _ = self.poller.watch(end, Token::Process { index, instance });
        }
    }

    pub(super) fn forget_end(&mut self, index: usize) {
        // The spawner has it open, too: closing it is not enough.
        self.workers
            .get_mut(index)
            .and_then(Worker::forget_end)
            .iter()
            .for_each(|end| self.poller.forget(end));
    }

    /// Process number `instance` of the device of `index` has ended: nothing of it can write any more.
    pub(super) fn process_ended(&mut self, index: usize, instance: u32) {
        if !self.workers.get(index).is_some_and(|worker| worker.is_process(instance)) {
            return;
        }
        // Its last words are the better reason.
        self.take_news(index);
        self.forget_end(index);
        let alone = self.spawner_lost;
        let Some(worker) = self.workers.get_mut(index).filter(|worker| !alone && worker.may_pass_away())
        else {
            return;
        };
        if worker.condemn(None) {
            self.poller.forget(worker.control());
        }
        if worker.pass_away() == Verdict::Replace {
            self.replace(index);
        }
    }

    /// The process before the one of `index` has ended by `cause`, or nobody says how.
    pub(super) fn bury(&mut self, index: usize, cause: Option<Cause>) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let Some(Told { reason, verdict, news }) = worker.bury(cause) else { return };
        match verdict {
            Verdict::Replace if !worker.is_absent() => {
                self.warn_later(index, &format!("{reason}; it is replaced"))
            }
            Verdict::Failed(_) if self.spawner_lost => {
                self.abandon(index, &format!("{reason}; without the spawner it is not replaced"));
            }
            Verdict::Failed(deaths) => self.fail_after(index, &reason, deaths),
            Verdict::Replace | Verdict::Stillborn => self.warn(index, &reason),
        }
        if let Some(news) = news {
            self.warn(index, &news);
        }
    }

    fn fail_after(&mut self, index: usize, reason: &str, deaths: u32) {
        let text = format!("{reason}; {deaths} of its workers ended without having got any further");
        self.fail(index, &text);
    }

    /// The worker of `index` has closed its socket: most often its process ends, as is seen at once.
    fn closed(&mut self, index: usize) {
        let alone = self.spawner_lost;
        let Some(worker) = self.workers.get_mut(index).filter(|worker| !alone && worker.end().is_some())
        else {
            return self.condemn(index, None, None);
        };
        if worker.condemn(None) {
            worker.await_end();
            self.poller.forget(worker.control());
        }
    }

    /// What need not be done while a device is without a worker.
    pub(super) fn do_what_was_put_off(&mut self) {
        let now = Instant::now();
        for index in 0..self.workers.len() {
            let Some(worker) = self.workers.get_mut(index) else { return };
            if worker.is_to_kill(now) {
                worker.kill(index, &self.spawner);
            }
            if worker.is_to_recruit(now) {
                self.recruit(index);
            }
        }
        if self.held_until.take_if(|at| *at <= now).is_some() {
            self.say_what_is_held();
        }
    }

    /// The worker of `index`, if it still is of that `generation`, is not to be used any more.
    pub(super) fn condemn(&mut self, index: usize, generation: Option<u32>, reason: Option<Blame>) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        if generation.is_some_and(|generation| generation != worker.generation()) {
            return;
        }
        if worker.condemn(reason) {
            self.poller.forget(worker.control());
            worker.kill(index, &self.spawner);
        }
        self.give_up_if_alone(index);
    }

    /// The process is gone: nothing of it can write any more.
    pub(super) fn gone(&mut self, index: usize, ending: &Ending) -> Option<End> {
        if self.workers.get(index)?.is_absent() {
            return None;
        }
        self.forget_end(index);
        self.condemn(index, None, None);
        if self.workers.get(index)?.is_absent() {
            // Without a spawner.
            return None;
        }
        let (reason, verdict) = self.workers.get_mut(index)?.gone(ending);
        match verdict {
            _ if self.begin_anew(index) => {}
            Verdict::Stillborn => return Some(self.device_end(index, &reason)),
            Verdict::Failed(deaths) => self.fail_after(index, &reason, deaths),
            Verdict::Replace => {
                // The successor goes before the news of it.
                let replaced = self.put_in_place(index);
                self.warn_later(index, &format!("{reason}; it is replaced"));
                if let Err(reason) = replaced {
                    self.abandon(index, &reason);
                }
            }
        }
        None
    }

    /// Starts a successor, and gives its rings to the vCPUs.
    pub(super) fn replace(&mut self, index: usize) {
        if let Err(reason) = self.put_in_place(index) {
            self.abandon(index, &reason);
        }
    }

    /// What a write has done to the shadow is taken back when a vCPU finds it to be poison, which it may do only after the grant:
    /// then this successor is told of it once more, and the one after it is not.
    fn put_in_place(&mut self, index: usize) -> Result<(), String> {
        let successor = self.try_to_replace(index)?;
        self.tell_of(index, &vcpu::Command::Succeed { device: index, successor });
        // Only now: it may raise an interrupt at once.
        self.workers.get(index).map_or(Ok(()), Worker::grant).map_err(|error| error.to_string())
    }

    fn try_to_replace(&mut self, index: usize) -> Result<Successor, String> {
        let worker = self.workers.get_mut(index).ok_or("there is no such device")?;
        worker.succeed(index, &self.spawner).map_err(|error| error.to_string())?;
        self.poller.watch(worker.control(), Token::Control(index)).map_err(|error| error.to_string())?;
        let successor = worker.successor();
        self.watch_end(index);
        Ok(successor)
    }

    /// While ending, only the workers' ends count.
    pub(super) fn see_off_workers(&mut self) {
        loop {
            match self.spawner.next() {
                Ok(None) => return,
                Ok(Some((SpawnerEvent::Ended { worker, instance, cause }, _))) => {
                    self.see_off_process(worker as usize, instance, Some(cause));
                }
                Ok(Some((SpawnerEvent::Failed { worker, instance, .. }, _))) => {
                    self.see_off_process(worker as usize, instance, None);
                }
                Ok(Some(_)) => {}
                Err(_) => {
                    // With it every worker is gone.
                    self.poller.forget(&self.spawner);
                    let workers =
                        self.workers.iter_mut().filter(|worker| worker.state() != DeviceState::Gone);
                    workers.for_each(|worker| drop(worker.gone(&Ending::Unstarted)));
                    return;
                }
            }
        }
    }

    fn see_off_process(&mut self, index: usize, instance: u32, cause: Option<Cause>) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        match worker.ended(instance) {
            Who::Worker => drop(worker.gone(&Ending::Unstarted)),
            Who::Predecessor => self.see_off_predecessor(index, cause),
            Who::Spare | Who::Candidate | Who::Nobody => {}
        }
    }

    /// As [`bury`](Self::bury), of a VM that ends: people hear of it, and nothing else comes of it.
    pub(super) fn see_off_predecessor(&mut self, index: usize, cause: Option<Cause>) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let Some(Told { reason, news, .. }) = worker.bury(cause) else { return };
        self.warn(index, &reason);
        if let Some(news) = news {
            self.warn(index, &news);
        }
    }

    pub(super) fn warn(&self, index: usize, text: &str) {
        self.say(self.warning(index, text));
    }

    /// As [`warn`](Self::warn), but people may hear of it when a successor serves.
    fn warn_later(&mut self, index: usize, text: &str) {
        self.held.borrow_mut().push(self.warning(index, text));
        self.held_until.get_or_insert_with(|| Instant::now() + HOLD);
    }

    fn warning(&self, index: usize, text: &str) -> Event {
        Event::Warning(cut(format!("device {}: {text}", self.name(index))))
    }

    /// The device, as people are told of it.
    pub(super) fn name(&self, index: usize) -> String {
        let kinds: Vec<_> = self.workers.iter().map(Worker::kind).collect();
        device_names(&kinds).get(index).cloned().unwrap_or_default()
    }
}

fn spawner_lost(error: &SocketError) -> End {
    End::Lost { reason: cut(format!("the VM's spawner is gone, and every worker with it: {error}")) }
}
