//! A supervisor without a VM: it has one device's worker serve other VMMs' front ends, one after the other.
//!
//! Each front end's connection comes from the front by [`Command::FrontEnd`] and goes to a fresh worker, which ends with it. The
//! supervisor never reads from it; it sees its end, and ends a worker that outlives it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_jail::supervisor::{self as jail, Confinement};
use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::{Cause, Event as SpawnerEvent};
use cellblock_wire::control::{LogLevel, ToWorker};

use crate::error::BuildError;
use crate::link::{Command, DeviceState, DeviceStatus, End, Event, Status, cut};
use crate::pace::Means;
use crate::plan::DevicePlan;
use crate::poller::{Poller, Token};
use crate::worker::{Blame, News, Worker};

/// How long a worker may take to end after its front end: longer than it waits for requests in flight.
const GONE_PATIENCE: Duration = Duration::from_secs(40);
/// How long it may take when the user has said stop.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// The worker's index in the spawner's manifest.
const WORKER: usize = 0;

/// What the front hands over by fork.
pub struct BackEndPlan {
    /// To the front: [`crate::link`].
    pub link: Control,
    /// To the spawner.
    pub spawner: Control,
    /// The device: without regions, lines, kicks and memory, for these are the front end's.
    pub device: DevicePlan,
    /// The sandbox that this process closes around itself.
    pub confinement: Confinement,
}

struct BackEnd {
    link: Control,
    spawner: Client,
    /// As the host numbers it, once it has said so.
    spawner_pid: i32,
    worker: Worker,
    poller: Poller,
    /// A worker was asked for, and is not reaped yet.
    serving: bool,
    /// When a worker that should have ended is killed.
    kill_at: Option<Instant>,
}

/// Serves front ends until the front says stop or is gone. Returns the process's exit status.
pub fn serve_front_ends(plan: BackEndPlan) -> i32 {
    let Ok(link) = plan.link.as_fd().try_clone_to_owned().map(Control::from_fd) else { return 1 };
    let (end, status) = match BackEnd::prepare(plan).and_then(BackEnd::live) {
        Ok(end) => (end, 0),
        Err(error) => (End::Refused { reason: cut(error.to_string()) }, 1),
    };
    // A front that is gone needs no answer.
    let _ = link.send_message(&Event::Ended(end), &[]);
    status
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> BuildError {
    move |source| BuildError::System { what, source }
}

impl BackEnd {
    /// On return the calling process is jailed.
    fn prepare(plan: BackEndPlan) -> Result<BackEnd, BuildError> {
        // This first grant has no front end yet and goes to nobody.
        let (worker, _, _) = Worker::new(plan.device, 1, None, Means::default())?;
        let poller = Poller::new().map_err(system("an epoll instance cannot be made"))?;
        let spawner = Client::new(plan.spawner);
        poller.watch(&plan.link, Token::Link).map_err(system("the front's socket cannot be watched"))?;
        poller.watch(&spawner, Token::Spawner).map_err(system("the spawner's socket cannot be watched"))?;
        jail::confine(&plan.confinement).map_err(|error| BuildError::Jail(error.to_string()))?;
        jail::confine_loop(&plan.confinement).map_err(|error| BuildError::Jail(error.to_string()))?;
        let (serving, kill_at) = (false, None);
        Ok(BackEnd { link: plan.link, spawner, spawner_pid: 0, worker, poller, serving, kill_at })
    }

    fn live(mut self) -> Result<End, BuildError> {
        loop {
            for token in self.wait()? {
                if let Some(end) = self.take(token) {
                    self.wind_down()?;
                    return Ok(end);
                }
            }
            self.kill_the_late();
        }
    }

    fn wait(&self) -> Result<Vec<Token>, BuildError> {
        let deadline = self.kill_at.into_iter().chain(self.worker.serve_by().filter(|_| self.serving)).min();
        self.poller.wait(deadline).map_err(system("the supervisor's loop"))
    }

    fn take(&mut self, token: Token) -> Option<End> {
        match token {
            Token::Link => self.take_commands(),
            Token::Spawner => self.take_spawner_events(),
            Token::Control(_) => {
                self.take_news();
                None
            }
            Token::FrontEnd => {
                self.worker.front_end().iter().for_each(|stream| self.poller.forget(stream));
                self.kill_at.get_or_insert(Instant::now() + GONE_PATIENCE);
                None
            }
            Token::Mailbox | Token::Candidate(_) | Token::Process { .. } => None,
        }
    }

    fn take_commands(&mut self) -> Option<End> {
        loop {
            match self.link.try_recv_message::<Command>(1) {
                Err(SocketError::NotReady) => return None,
                Ok((Command::FrontEnd, mut descriptors)) => {
                    let end = descriptors.pop().and_then(|stream| self.begin(stream));
                    if end.is_some() {
                        return end;
                    }
                }
                Ok((Command::ReportStatus, _)) => {
                    // Each front end has a worker of its own: none is another's successor.
                    let worker = DeviceStatus { restarts: 0, ..self.worker.status() };
                    let (devices, spawner) = (vec![worker], self.spawner_pid);
                    let status = Status { devices, spawner, ..Status::default() };
                    self.say(Event::Status(status));
                    self.worker.tell(&ToWorker::ReportCounters);
                }
                Ok((Command::Restart { generation, .. }, _)) if generation == self.worker.generation() => {
                    self.condemn(Blame::Asked);
                }
                Ok((Command::ReportDeath { device, generation }, _)) => {
                    let death = self.worker.death(generation).cloned();
                    self.say(Event::Death { device, generation, death });
                }
                // There are no vCPUs, no power button and no terminal.
                Ok((
                    Command::Restart { .. }
                    | Command::Revive { .. }
                    | Command::Upgrade { .. }
                    | Command::PowerButton
                    | Command::Balloon { .. }
                    | Command::Pause
                    | Command::Resume
                    | Command::Resize { .. },
                    _,
                )) => {}
                // The front has said so, or is gone.
                Ok((Command::Stop, _)) | Err(_) => return Some(End::Stopped),
            }
        }
    }

    /// A front end has connected: starts a worker for it.
    fn begin(&mut self, stream: OwnedFd) -> Option<End> {
        if self.serving {
            // One after the other, as the front has it. Closing tells the second one.
            return None;
        }
        let refused = |reason: String| Some(End::Refused { reason: cut(reason) });
        if let Err(error) = self.worker.serve_front_end(stream, WORKER, &self.spawner) {
            return refused(error.to_string());
        }
        let watched = self.poller.watch(self.worker.control(), Token::Control(WORKER));
        let watched = watched.and_then(|()| match self.worker.front_end() {
            Some(stream) => self.poller.watch_end(stream, Token::FrontEnd),
            None => Ok(()),
        });
        if let Err(error) = watched {
            return refused(format!("a front end cannot be watched: {error}"));
        }
        (self.serving, self.kill_at) = (true, None);
        None
    }

    fn take_spawner_events(&mut self) -> Option<End> {
        loop {
            let event = match self.spawner.next() {
                Ok(None) => return None,
                Ok(Some((event, _))) => event,
                Err(error) => {
                    let reason = cut(format!("the spawner is gone, and the worker with it: {error}"));
                    return Some(End::Lost { reason });
                }
            };
            let refused = |reason: String| Some(End::Refused { reason: cut(reason) });
            match event {
                SpawnerEvent::Started { instance, host_pid, took, .. } => {
                    self.worker.started(instance, host_pid, took, None);
                }
                SpawnerEvent::Ready { host_pid } => self.spawner_pid = host_pid,
                SpawnerEvent::Lost(cause) => {
                    return Some(End::Lost {
                        reason: format!("the spawner {cause}, and nobody can serve the next front end"),
                    });
                }
                SpawnerEvent::Failed { error, .. } => {
                    return refused(format!("the worker cannot be started: {error}"));
                }
                SpawnerEvent::Refused { reason, .. } => {
                    return refused(format!("the worker cannot be started: {reason}"));
                }
                SpawnerEvent::Unable(error) => {
                    return refused(format!("the spawner's sandbox cannot be closed: {error}"));
                }
                SpawnerEvent::Ended { cause, .. } => self.gone(cause),
                _ => {}
            }
        }
    }

    /// The worker is reaped, and its front end's connection closed with it.
    fn gone(&mut self, cause: Cause) {
        // Its last words are the better reason.
        self.take_news();
        let served = self.worker.state() == DeviceState::Serving;
        self.poller.forget(self.worker.control());
        let stream = self.worker.dismiss_front_end();
        stream.iter().for_each(|stream| self.poller.forget(stream));
        let (reason, _) = self.worker.gone(&self.worker.ending(cause));
        (self.serving, self.kill_at) = (false, None);
        let reason = (cause != Cause::Exited(0) || !served).then(|| cut(reason));
        self.say(Event::FrontEndGone { reason });
    }

    fn take_news(&mut self) {
        let device = self.worker.kind();
        for one in self.worker.take_news() {
            match one {
                News::Ready => self.say(Event::Running),
                News::Log(level, text) => {
                    let text = match level {
                        LogLevel::Warn => format!("warning: {text}"),
                        LogLevel::Info | LogLevel::Debug => text,
                    };
                    self.say(Event::WorkerLog { device, text });
                }
                News::Balloon(_) | News::Quiesced | News::StateLost(_) => {}
                // Its process ends; one that does not is killed once its front end is gone.
                News::Closed => self.poller.forget(self.worker.control()),
                News::Broken(reason) => self.condemn(Blame::Violation(reason)),
            }
        }
    }

    fn condemn(&mut self, reason: Blame) {
        if self.worker.condemn(Some(reason)) {
            self.poller.forget(self.worker.control());
            self.worker.kill(WORKER, &self.spawner);
        }
    }

    fn kill_the_late(&mut self) {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.condemn(Blame::Hung("it did not end when its front end was gone".to_owned()));
        }
        if self.serving && self.worker.serve_by().is_some_and(|at| at <= now) {
            self.condemn(Blame::Unstarted("it did not serve in time".to_owned()));
        }
    }

    /// Lets the worker finish what is in flight. The end of this process is its end, too.
    fn wind_down(&mut self) -> Result<(), BuildError> {
        self.worker.tell(&ToWorker::Quit);
        self.poller.forget(&self.link);
        self.kill_at = Some(Instant::now() + STOP_PATIENCE);
        while self.serving && self.kill_at.is_some_and(|at| at > Instant::now()) {
            for token in self.wait()? {
                if self.take(token).is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Tells the front; one that does not read loses it, one that is gone ends this by its closed socket.
    fn say(&self, event: Event) {
        let _ = self.link.send_message(&event, &[]);
    }
}
