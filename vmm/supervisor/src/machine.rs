//! The VM actor: builds the machine, then runs its life on the loop thread.
//!
//! States: *starting* (vCPUs may run already; each waits only for the worker that it needs), *running* (all workers
//! serve), *paused* ([`pause`]), *ending* (vCPUs stop, workers flush and go). It ends once, for the first reason that comes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cellblock_bus::Bus;
use cellblock_channel::Kick;
use cellblock_channel::doorbell::Bell;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_hypervisor::KickHandle;
use cellblock_spawner::client::Client;
use cellblock_wire::control::ToWorker;
use cellblock_wire::device::DeviceKind;
use crossbeam_channel::{Receiver, Sender, TrySendError};

mod failed;
mod life;
mod loss;
mod pause;
mod succession;
mod upgrade;

pub(crate) use pause::Pause;

use crate::error::BuildError;
use crate::exit_stats::{ExitStats, sum};
use crate::link::{Command, DeviceState, EXIT_COUNTS, End, Event, Status, cut, device_names};
use crate::poller::{Poller, Token};
use crate::vcpu::{self, Ended, Report};
use crate::worker::{Blame, Worker};

/// How long workers may take to tell what they have counted.
const COUNTERS_PATIENCE: Duration = Duration::from_millis(300);
/// How long vCPUs may take to stop, and then workers to flush and go.
const STOP_PATIENCE: Duration = Duration::from_millis(1000);
/// When a vCPU that takes no commands, or a spawner that reads no requests, is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// The loop's view of one vCPU.
pub(crate) struct VcpuHandle {
    pub commands: Sender<vcpu::Command>,
    /// What its mailbox had no room for: at most one command for each device, a pause or its end, and the stop.
    pub undelivered: VecDeque<vcpu::Command>,
    /// Out of the guest.
    pub entry_kick: KickHandle,
    /// Out of a wait for a worker.
    pub wait_kick: Kick,
    pub exits: Arc<AtomicU64>,
    pub stats: Option<Arc<ExitStats>>,
}

/// The machine, built.
pub(crate) struct Machine {
    pub link: Control,
    pub bus: Arc<Bus>,
    pub spawner: Client,
    pub workers: Vec<Worker>,
    pub vcpus: Vec<VcpuHandle>,
    pub reports: Receiver<Report>,
    pub bell: Bell,
    pub poller: Poller,
    pub notes: Vec<String>,
    /// How many processes wait beside each worker.
    pub spares: u32,
    /// The front wants the status: by when it gets it, with what the workers have told by then.
    pub status_by: Option<Instant>,
    pub pause: Pause,
    /// As the host numbers it; 0 = it has not said that it is there, or is gone.
    pub spawner_pid: i32,
    /// The spawner is gone, and init of the VM's pid namespace is not.
    pub spawner_lost: bool,
    /// When the workers are asked for a sign of life.
    pub beat_at: Option<Instant>,
    /// What the front hears when there is more to say, or at that time: who hears it now takes a CPU from those that begin to serve.
    pub held: RefCell<Vec<Event>>,
    pub held_until: Option<Instant>,
}

impl VcpuHandle {
    /// Tells it, out of whatever it does; of a new worker it hears when it next leaves the guest.
    pub(crate) fn tell(&mut self, command: vcpu::Command) {
        self.undelivered.push_back(command);
        self.deliver();
    }

    /// Gives it what it has room for. A vCPU that has ended has closed its mailbox, and needs nothing.
    fn deliver(&mut self) {
        let (mut delivered, mut interrupts) = (false, false);
        while let Some(command) = self.undelivered.pop_front() {
            let interrupting = command.device().is_none();
            if let Err(TrySendError::Full(command)) = self.commands.try_send(command) {
                self.undelivered.push_front(command);
                // It has to make room.
                interrupts = true;
                break;
            }
            (delivered, interrupts) = (true, interrupts || interrupting);
        }
        if delivered {
            // One in the guest finds this in its next wait for an answer. A request that it sends before that is of the old
            // incarnation, which the new worker does not look at, and is then sent again.
            self.wait_kick.bump();
        }
        if interrupts {
            self.entry_kick.kick();
        }
    }
}

impl Machine {
    /// Runs the VM to its end, and reports that.
    pub(crate) fn live(mut self) -> Result<(), BuildError> {
        for note in std::mem::take(&mut self.notes) {
            self.say(Event::Note(cut(note)));
        }
        let end = self.until_the_end()?;
        self.wind_down();
        // Of whom the spawner has not said how they ended.
        (0..self.workers.len()).for_each(|index| self.see_off_predecessor(index, None));
        self.tell_exits();
        self.say(Event::Ended(end));
        Ok(())
    }

    fn until_the_end(&mut self) -> Result<End, BuildError> {
        let (mut begun, mut running) = (false, false);
        let settled = |worker: &Worker| worker.state() == DeviceState::Serving || worker.is_absent();
        loop {
            if !begun && self.workers.iter().all(|worker| !worker.shows_registers() || settled(worker)) {
                begun = true;
                self.vcpus.iter_mut().for_each(|vcpu| vcpu.tell(vcpu::Command::Begin));
            }
            for token in self.wait(self.next_look())? {
                if let Some(end) = self.take(token) {
                    return Ok(end);
                }
            }
            if let Some(end) = self.take_the_late() {
                return Ok(end);
            }
            self.vcpus.iter_mut().for_each(VcpuHandle::deliver);
            self.spawner.catch_up();
            self.try_again();
            self.do_what_was_put_off();
            self.feel_the_pulse();
            self.pause_further();
            self.upgrade_further();
            self.tell_status();
            if !running && self.workers.iter().all(settled) {
                running = true;
                self.say(Event::Running);
                (0..self.workers.len()).for_each(|index| self.recruit(index));
            }
        }
    }

    /// When something is to be done although nothing happens.
    fn next_look(&self) -> Option<Instant> {
        let undelivered = self.vcpus.iter().any(|vcpu| !vcpu.undelivered.is_empty());
        let retry = (undelivered || self.spawner.is_behind()).then(|| Instant::now() + RETRY);
        self.workers
            .iter()
            .filter_map(Worker::serve_by)
            .chain(retry)
            .chain(self.status_by)
            .chain(self.pause.by())
            .chain(self.beat_at)
            .chain(self.workers.iter().filter_map(Worker::sign_by))
            .chain(self.workers.iter().filter_map(Worker::hand_over_by))
            .chain(self.workers.iter().filter_map(Worker::start_at))
            .chain(self.workers.iter().filter_map(Worker::kill_at))
            .chain(self.workers.iter().filter_map(Worker::recruit_at))
            .chain(self.held_until)
            .min()
    }

    /// Answers the front's question for the status, once there is nobody to wait for any more.
    fn tell_status(&mut self) {
        let owed = self.workers.iter().any(Worker::owes_counters);
        if self.status_by.is_some_and(|at| !owed || at <= Instant::now()) {
            self.status_by = None;
            self.say(Event::Status(self.status()));
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Vec<Token>, BuildError> {
        self.poller
            .wait(deadline)
            .map_err(|source| BuildError::System { what: "the supervisor's loop", source })
    }

    fn take(&mut self, token: Token) -> Option<End> {
        match token {
            Token::Link => self.take_commands(),
            Token::Mailbox => self.take_report(),
            Token::Spawner => self.take_spawner_message(),
            Token::Control(index) => {
                self.take_news(index);
                None
            }
            Token::Candidate(index) => {
                self.take_candidate_news(index);
                None
            }
            Token::Process { index, instance } => {
                self.process_ended(index, instance);
                None
            }
            Token::FrontEnd => None,
        }
    }

    fn take_commands(&mut self) -> Option<End> {
        loop {
            match self.link.try_recv_message::<Command>(0) {
                Err(SocketError::NotReady) => return None,
                Ok((Command::Stop, _)) => return Some(End::Stopped),
                Ok((Command::PowerButton, _)) => self.workers.iter_mut().for_each(Worker::press_power_button),
                Ok((Command::ReportStatus, _)) => {
                    self.workers.iter_mut().for_each(Worker::ask_counters);
                    self.status_by.get_or_insert_with(|| Instant::now() + COUNTERS_PATIENCE);
                }
                // Better the worker that there is than none.
                Ok((Command::Restart { .. }, _)) if self.spawner_lost => {}
                // Nobody could take the place of the first, which nobody has seen at work.
                Ok((Command::Restart { device, .. }, _)) if !self.has_served(device as usize) => {}
                Ok((Command::Restart { device, generation }, _)) => {
                    self.condemn(device as usize, Some(generation), Some(Blame::Asked));
                }
                Ok((Command::ReportDeath { device, generation }, _)) => {
                    let worker = self.workers.get(device as usize);
                    let death = worker.and_then(|worker| worker.death(generation)).cloned();
                    self.say(Event::Death { device, generation, death });
                }
                Ok((Command::Revive { device, generation }, _)) => self.revive(device as usize, generation),
                Ok((Command::Upgrade { device, generation, offer }, _)) => {
                    self.upgrade(device as usize, generation, offer);
                }
                Ok((Command::Pause, _)) => self.pause(),
                Ok((Command::Resume, _)) => self.resume(),
                Ok((Command::Balloon { set }, _)) => self.ask_balloon(set),
                Ok((Command::Resize { port, columns, rows }, _)) => {
                    self.workers.iter_mut().for_each(|worker| worker.resize(port, columns, rows));
                }
                // A VM's devices have one driver, its guest.
                Ok((Command::FrontEnd, _)) => {}
                // The front is gone, and the VM with it.
                Err(_) => return Some(End::Stopped),
            }
        }
    }

    fn ask_balloon(&mut self, set: Option<u32>) {
        let balloon = self.workers.iter_mut().find(|worker| worker.kind() == DeviceKind::Balloon);
        match balloon {
            Some(worker) => worker.ask_balloon(set),
            None => self.say(Event::Balloon(None)),
        }
    }

    fn has_served(&self, index: usize) -> bool {
        let worker = self.workers.get(index);
        worker.is_some_and(|worker| worker.generation() > 1 || worker.state() == DeviceState::Serving)
    }

    fn take_report(&mut self) -> Option<End> {
        self.bell.silence();
        while let Ok(report) = self.reports.try_recv() {
            let (vcpu, ended) = match report {
                Report::Ended { vcpu, ended } => (vcpu, ended),
                Report::Trouble { device, generation, blame } => {
                    self.condemn(device, Some(generation), Some(blame));
                    continue;
                }
                Report::Late { vcpu, device, generation, answers, request } => {
                    self.answers_late(device, generation, (vcpu, answers), &request);
                    continue;
                }
                Report::Paused { vcpu, number } => {
                    self.pause.note(vcpu, number);
                    continue;
                }
                Report::Poison { device, request } => {
                    let text = format!(
                        "two of its workers ended on {request}; it is dropped, and reads as all ones"
                    );
                    self.warn(device, &text);
                    continue;
                }
            };
            return Some(match ended {
                Ended::PowerOff => End::PowerOff,
                Ended::Reset => End::Reset,
                Ended::TripleFault => End::TripleFault { vcpu },
                Ended::Internal(text) => End::Internal { vcpu, text: cut(text) },
                Ended::Stopped => continue,
            });
        }
        None
    }

    fn device_end(&self, index: usize, reason: &str) -> End {
        match self.workers.get(index) {
            Some(worker) => End::Device { device: worker.kind(), reason: cut(reason.to_owned()) },
            None => End::Refused { reason: cut(reason.to_owned()) },
        }
    }

    /// Stops the vCPUs, then lets the workers flush and end.
    fn wind_down(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.undelivered.clear();
            vcpu.tell(vcpu::Command::Stop);
        }
        self.workers.iter().for_each(|worker| worker.tell(&ToWorker::Quit));
        let stop_by = Instant::now() + STOP_PATIENCE;
        while self.workers.iter().any(|worker| worker.state() != DeviceState::Gone)
            && Instant::now() < stop_by
        {
            self.vcpus.iter_mut().for_each(VcpuHandle::deliver);
            let Ok(tokens) = self.wait(Some(stop_by.min(Instant::now() + STOP_PATIENCE / 20))) else { break };
            for token in tokens {
                self.see_off(token);
            }
        }
    }

    /// While ending, only deaths count; whatever else speaks is no longer listened to.
    fn see_off(&mut self, token: Token) {
        match token {
            Token::Mailbox => drop(self.bell.silence()),
            Token::Link => self.poller.forget(&self.link),
            Token::Spawner => self.see_off_workers(),
            Token::Control(index) if self.spawner_lost => self.see_off_alone(index),
            Token::Control(index) => {
                if let Some(worker) = self.workers.get(index) {
                    self.poller.forget(worker.control());
                }
            }
            Token::Candidate(index) => {
                let control = self.workers.get(index).and_then(Worker::candidate_control);
                control.iter().for_each(|control| self.poller.forget(control));
            }
            Token::Process { index, .. } => self.forget_end(index),
            Token::FrontEnd => {}
        }
    }

    fn status(&self) -> Status {
        Status {
            devices: self.workers.iter().map(Worker::status).collect(),
            paused: self.pause.is_complete(),
            spawner: self.spawner_pid,
            spawner_lost: self.spawner_lost,
            vcpu_exits: self.vcpus.iter().map(|vcpu| vcpu.exits.load(Ordering::Relaxed)).collect(),
        }
    }

    /// What left the guest, if that was counted. A vCPU that did not stop in time may count on meanwhile.
    fn tell_exits(&self) {
        let stats: Vec<_> = self.vcpus.iter().filter_map(|vcpu| vcpu.stats.as_deref()).collect();
        if stats.is_empty() {
            return;
        }
        let kinds: Vec<_> = self.workers.iter().map(Worker::kind).collect();
        let (counts, elsewhere) = sum(stats.into_iter(), &self.bus, &device_names(&kinds));
        for part in counts.chunks(EXIT_COUNTS) {
            self.say(Event::ExitCounts(part.to_vec()));
        }
        let exits = self.vcpus.iter().map(|vcpu| vcpu.exits.load(Ordering::Relaxed)).sum();
        self.say(Event::ExitTotals { exits, elsewhere });
    }

    /// Tells the front; a front that does not read loses it, a front that is gone ends the VM by its closed socket.
    fn say(&self, event: Event) {
        self.say_what_is_held();
        let _ = self.link.send_message(&event, &[]);
    }

    fn say_what_is_held(&self) {
        for event in self.held.take() {
            let _ = self.link.send_message(&event, &[]);
        }
    }
}
