//! The VM actor: builds the machine, then runs its life on the loop thread.
//!
//! States: *starting* (vCPUs may run already; each waits only for the worker that it needs), *running* (all workers
//! serve), *ending* (vCPUs stop, workers flush and go). It ends once, for the first reason that comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cellblock_channel::Kick;
use cellblock_channel::doorbell::Bell;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_hypervisor::KickHandle;
use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::Event as SpawnerEvent;
use cellblock_wire::control::{LogLevel, ToWorker};
use cellblock_wire::device::DeviceKind;
use crossbeam_channel::{Receiver, Sender};

use crate::error::BuildError;
use crate::link::{Command, DeviceState, End, Event, Status, cut};
use crate::poller::{Poller, Token};
use crate::vcpu::{self, Ended};
use crate::worker::{News, Worker};

/// How long all workers may take to serve.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long vCPUs may take to stop, and then workers to flush and go.
const STOP_PATIENCE: Duration = Duration::from_millis(1000);
/// How long the spawner may take to say why a worker died.
const CAUSE_PATIENCE: Duration = Duration::from_millis(200);

/// The loop's view of one vCPU.
pub(crate) struct VcpuHandle {
    pub commands: Sender<vcpu::Command>,
    /// Out of the guest.
    pub entry_kick: KickHandle,
    /// Out of a wait for a worker.
    pub wait_kick: Kick,
    pub exits: Arc<AtomicU64>,
}

/// A vCPU's last word.
pub(crate) struct Report {
    pub vcpu: u32,
    pub ended: Ended,
}

/// The machine, built.
pub(crate) struct Machine {
    pub link: Control,
    pub spawner: Client,
    pub workers: Vec<Worker>,
    pub vcpus: Vec<VcpuHandle>,
    pub reports: Receiver<Report>,
    pub bell: Bell,
    pub poller: Poller,
    pub notes: Vec<String>,
}

/// A worker's death whose cause is not known yet.
struct Death {
    index: usize,
    tell_by: Instant,
}

impl Machine {
    /// Runs the VM to its end, and reports that.
    pub(crate) fn live(mut self) -> Result<(), BuildError> {
        for note in std::mem::take(&mut self.notes) {
            self.say(Event::Note(cut(note)));
        }
        let end = self.until_the_end()?;
        self.wind_down();
        self.say(Event::Ended(end));
        Ok(())
    }

    fn until_the_end(&mut self) -> Result<End, BuildError> {
        let mut serve_by = Some(Instant::now() + START_PATIENCE);
        let mut death: Option<Death> = None;
        loop {
            let deadline = death.as_ref().map(|death| death.tell_by).or(serve_by);
            for token in self.wait(deadline)? {
                if let Some(end) = self.take(token, &mut death) {
                    return Ok(end);
                }
            }
            let now = Instant::now();
            if let Some(death) = death.as_ref().filter(|death| death.tell_by <= now) {
                return Ok(self.device_end(death.index, "its worker process ended".into()));
            }
            if serve_by.is_some() {
                match self.workers.iter().position(|worker| worker.state() == DeviceState::Starting) {
                    None => {
                        serve_by = None;
                        self.say(Event::Running);
                    }
                    Some(late) if serve_by.is_some_and(|at| at <= now) => {
                        let seconds = START_PATIENCE.as_secs();
                        return Ok(
                            self.device_end(late, format!("its worker did not serve within {seconds} s"))
                        );
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Vec<Token>, BuildError> {
        self.poller
            .wait(deadline)
            .map_err(|source| BuildError::System { what: "the supervisor's loop", source })
    }

    fn take(&mut self, token: Token, death: &mut Option<Death>) -> Option<End> {
        match token {
            Token::Link => self.take_commands(),
            Token::Mailbox => self.take_report(),
            Token::Spawner => self.take_spawner_message(death),
            Token::Control(index) => self.take_news(index, death),
            Token::Death(index) => {
                self.note_death(index, death);
                None
            }
        }
    }

    fn take_commands(&mut self) -> Option<End> {
        loop {
            match self.link.try_recv_message::<Command>(0) {
                Err(SocketError::NotReady) => return None,
                Ok((Command::Stop, _)) => return Some(End::Stopped),
                Ok((Command::PowerButton, _)) => self.tell(DeviceKind::AcpiPower, &ToWorker::PowerButton),
                Ok((Command::ReportStatus, _)) => {
                    let status = self.status();
                    self.say(Event::Status(status));
                    self.workers.iter().for_each(|worker| worker.tell(&ToWorker::ReportCounters));
                }
                Ok((Command::Balloon { set }, _)) => self.ask_balloon(set),
                Ok((Command::Resize { port, columns, rows }, _)) => {
                    self.tell(DeviceKind::Console, &ToWorker::Resize { port, columns, rows });
                }
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

    fn take_report(&mut self) -> Option<End> {
        self.bell.silence();
        while let Ok(Report { vcpu, ended }) = self.reports.try_recv() {
            return Some(match ended {
                Ended::PowerOff => End::PowerOff,
                Ended::Reset => End::Reset,
                Ended::TripleFault => End::TripleFault { vcpu },
                Ended::Internal(text) => End::Internal { vcpu, text: cut(text) },
                Ended::Device { index, reason } => self.device_end(index, reason),
                Ended::Stopped => continue,
            });
        }
        None
    }

    fn take_spawner_message(&mut self, death: &mut Option<Death>) -> Option<End> {
        loop {
            let (event, pidfd) = match self.spawner.next() {
                Ok(None) => return None,
                Ok(Some(event)) => event,
                Err(error) => {
                    let reason = cut(format!("the VM's spawner is gone, and every worker with it: {error}"));
                    return Some(End::Lost { reason });
                }
            };
            let end = match event {
                SpawnerEvent::Started { worker, host_pid } => self.started(worker as usize, host_pid, pidfd),
                SpawnerEvent::Failed { worker, error } => {
                    Some(self.refused(worker as usize, &error.to_string()))
                }
                SpawnerEvent::Refused { worker, reason } => {
                    Some(self.refused(worker as usize, &reason.to_string()))
                }
                SpawnerEvent::Unable(error) => Some(End::Refused {
                    reason: cut(format!("the spawner's sandbox cannot be closed: {error}")),
                }),
                SpawnerEvent::Ended { worker, cause } => {
                    let index = worker as usize;
                    self.note_death(index, death);
                    let words = self.last_words(index);
                    Some(self.device_end(index, format!("its worker process {cause}{words}")))
                }
                _ => None,
            };
            if end.is_some() {
                return end;
            }
        }
    }

    fn started(&mut self, index: usize, pid: i32, pidfd: Option<OwnedFd>) -> Option<End> {
        let (Some(worker), Some(pidfd)) = (self.workers.get_mut(index), pidfd) else {
            return Some(self.refused(index, "the spawner sent no descriptor for its process"));
        };
        if let Err(error) = self.poller.watch(&pidfd, Token::Death(index)) {
            return Some(self.refused(index, &format!("its process cannot be watched: {error}")));
        }
        worker.started(pid, pidfd);
        None
    }

    fn refused(&self, index: usize, reason: &str) -> End {
        let device = self.workers.get(index).map_or("?", |worker| worker.kind().name());
        End::Refused { reason: cut(format!("the worker of device {device} cannot be started: {reason}")) }
    }

    /// A reason that a worker gave before its end.
    fn last_words(&mut self, index: usize) -> String {
        let Some(worker) = self.workers.get_mut(index) else { return String::new() };
        let words = worker.take_news().into_iter().find_map(|news| match news {
            News::Broken(reason) => Some(format!(" ({reason})")),
            _ => None,
        });
        words.unwrap_or_default()
    }

    fn take_news(&mut self, index: usize, death: &mut Option<Death>) -> Option<End> {
        let (device, news) = match self.workers.get_mut(index) {
            Some(worker) => (worker.kind(), worker.take_news()),
            None => return None,
        };
        for one in news {
            match one {
                News::Ready => {}
                News::Log(level, text) => {
                    let text = match level {
                        LogLevel::Warn => format!("warning: {text}"),
                        LogLevel::Info | LogLevel::Debug => text,
                    };
                    self.say(Event::WorkerLog { device, text });
                }
                News::Balloon(report) => self.say(Event::Balloon(Some(report))),
                // A process that ends: its cause is the better reason, if it comes.
                News::Closed => {
                    self.note_death(index, death);
                    if let Some(worker) = self.workers.get(index) {
                        self.poller.forget(worker.control());
                    }
                }
                News::Broken(reason) => return Some(self.device_end(index, reason)),
            }
        }
        None
    }

    fn note_death(&mut self, index: usize, death: &mut Option<Death>) {
        if let Some(worker) = self.workers.get_mut(index) {
            if let Some(pidfd) = worker.pidfd() {
                self.poller.forget(pidfd);
            }
            worker.gone();
        }
        death.get_or_insert(Death { index, tell_by: Instant::now() + CAUSE_PATIENCE });
    }

    fn device_end(&self, index: usize, reason: String) -> End {
        match self.workers.get(index) {
            Some(worker) => End::Device { device: worker.kind(), reason: cut(reason) },
            None => End::Refused { reason: cut(reason) },
        }
    }

    /// Stops the vCPUs, then lets the workers flush and end.
    fn wind_down(&mut self) {
        for vcpu in &self.vcpus {
            // A vCPU that has ended has closed its mailbox.
            let _ = vcpu.commands.try_send(vcpu::Command::Stop);
            vcpu.wait_kick.bump();
            vcpu.entry_kick.kick();
        }
        self.workers.iter().for_each(|worker| worker.tell(&ToWorker::Quit));
        let stop_by = Instant::now() + STOP_PATIENCE;
        while self
            .workers
            .iter()
            .any(|worker| worker.state() != DeviceState::Gone && worker.pidfd().is_some())
        {
            if Instant::now() >= stop_by {
                break;
            }
            let Ok(tokens) = self.wait(Some(stop_by)) else { break };
            for token in tokens {
                self.see_off(token);
            }
        }
    }

    /// While ending, only deaths count; whatever else speaks is no longer listened to.
    fn see_off(&mut self, token: Token) {
        match token {
            Token::Death(index) => self.note_death(index, &mut None),
            Token::Mailbox => drop(self.bell.silence()),
            Token::Link => self.poller.forget(&self.link),
            Token::Spawner => self.poller.forget(&self.spawner),
            Token::Control(index) => {
                if let Some(worker) = self.workers.get(index) {
                    self.poller.forget(worker.control());
                }
            }
        }
    }

    fn tell(&self, device: DeviceKind, message: &ToWorker) {
        self.workers.iter().filter(|worker| worker.kind() == device).for_each(|worker| worker.tell(message));
    }

    fn status(&self) -> Status {
        Status {
            devices: self.workers.iter().map(Worker::status).collect(),
            vcpu_exits: self.vcpus.iter().map(|vcpu| vcpu.exits.load(Ordering::Relaxed)).collect(),
        }
    }

    /// Tells the front; a front that does not read loses it, a front that is gone ends the VM by its closed socket.
    fn say(&self, event: Event) {
        let _ = self.link.send_message(&event, &[]);
    }
}
