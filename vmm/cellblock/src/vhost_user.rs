//! `cellblock vhost-user`: a device whose front ends are other VMMs, from its socket to its end.
//!
//! The front opens and checks everything and listens; each connection it takes goes, unread, to the supervisor and from there to
//! a fresh worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use cellblock_channel::socket::SocketError;
use cellblock_config::{BackEnd, BackEndDevice};
use cellblock_supervisor::link::{Command, End, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::Signal;

use crate::cli::VhostUserArgs;
use crate::front::control_socket::{ControlSocket, What};
use crate::front::relay::see_off;
use crate::front::signals::Signals;
use crate::front::socket_path::{Access, NamedSocket};
use crate::front::vsock::{self, Listener, Vsock};
use crate::launch;
use crate::run::{chain, control_socket, layers_without, tell_what_is_lost};
use crate::status::{Status, of_end};

/// How long the supervisor may take to end after it was told to, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(6);

/// Serves front ends; prints how that ended.
pub(crate) fn vhost_user(args: VhostUserArgs) -> Status {
    let verbose = args.verbose;
    let usage = |line: String| (Status::Usage, line);
    let config = args.config().map_err(|error| usage(chain(&error)));
    let (status, line) = config.and_then(|config| serve(&config, verbose)).unwrap_or_else(|refusal| refusal);
    note!("cellblock: {line}");
    status
}

type Ending = (Status, String);

fn serve(config: &BackEnd, verbose: u8) -> Result<Ending, Ending> {
    let refused = |line: String| (Status::Refused, line);
    let layers = layers_without(&config.without_layers).map_err(|line| (Status::Usage, line))?;
    let signals = Signals::take().map_err(|error| refused(format!("signals cannot be queued: {error}")))?;
    tell_what_is_lost(layers);
    let mut control = control_socket(config.id.as_str()).map_err(refused)?;
    let socket = NamedSocket::listen(&config.socket, Access::Owner);
    let socket = socket.map_err(|error| refused(format!("socket {} {error}", config.socket.display())))?;
    let listener = match &config.device {
        BackEndDevice::Vsock(vsock) => Some(Listener::open(&vsock.path).map_err(refused)?),
        _ => None,
    };
    let launch::BackEnd { link, supervisor, spawner, vsock, passt, declared, uids, cgroup } =
        launch::back_end(config, layers).map_err(refused)?;
    control.declare(declared);
    let mut front = Front {
        config,
        verbose,
        started: Instant::now(),
        link,
        supervisor,
        spawner,
        signals,
        control,
        socket,
        vsock: listener.as_ref().zip(vsock).map(|(listener, own)| Vsock::new(listener, own)),
        serving: false,
        stopping: None,
        last: None,
        end: None,
    };
    front.say(1, &format!("front ends connect to {}", config.socket.display()));
    front.run().map_err(|error| (Status::Failure, format!("the front's loop failed: {error}")))?;
    see_off(&front.supervisor, &front.spawner);
    drop((passt, uids, cgroup));
    Ok(front.ending())
}

/// What the front's loop knows.
struct Front<'a> {
    config: &'a BackEnd,
    verbose: u8,
    started: Instant,
    link: cellblock_channel::socket::Control,
    supervisor: crate::front::relay::Process,
    spawner: crate::front::relay::Process,
    signals: Signals,
    control: ControlSocket,
    socket: NamedSocket,
    vsock: Option<Vsock<'a>>,
    /// A front end is connected, or its worker still ends.
    serving: bool,
    /// When the supervisor is killed.
    stopping: Option<Instant>,
    /// Why the last front end's worker ended, if not with it.
    last: Option<String>,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Control,
    Link,
    Supervisor,
    Listener,
    Vsock(vsock::Side),
}

impl Front<'_> {
    /// Until the supervisor is gone.
    fn run(&mut self) -> io::Result<()> {
        let mut gone = false;
        while !gone {
            for source in self.wait()? {
                match source {
                    Source::Signals => self.take_signals(),
                    Source::Control => self.take_requests(),
                    Source::Link => self.take_events(),
                    Source::Listener => self.accept(),
                    Source::Vsock(side) => self.vsock.iter_mut().for_each(|vsock| vsock.advance(side)),
                    Source::Supervisor => {
                        self.take_events();
                        gone = true;
                    }
                }
            }
            if self.stopping.is_some_and(|at| at <= Instant::now()) {
                let _ = rustix::process::pidfd_send_signal(&self.supervisor.pidfd, Signal::KILL);
                self.stopping = Some(Instant::now() + STOP_GRACE);
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let now = Instant::now();
        let mut watched: Vec<(Source, BorrowedFd<'_>)> = vec![
            (Source::Signals, self.signals.as_fd()),
            (Source::Control, self.control.as_fd()),
            (Source::Supervisor, self.supervisor.pidfd.as_fd()),
        ];
        if self.end.is_none() {
            watched.push((Source::Link, self.link.as_fd()));
        }
        if !self.serving && self.stopping.is_none() {
            watched.push((Source::Listener, self.socket.as_fd()));
        }
        // While there is no worker, nobody would take what host programs want.
        let vsock = self.vsock.as_ref().filter(|_| self.serving);
        watched.extend(
            vsock
                .into_iter()
                .flat_map(|vsock| vsock.watched(now).map(|(side, fd, _)| (Source::Vsock(side), fd))),
        );
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let rest = vsock.and_then(|vsock| vsock.deadline(now));
        let timeout = self.stopping.into_iter().chain(rest).min().map(|at| {
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, _), _)| *source).collect())
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if matches!(signal, Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT) {
                self.stop();
            }
        }
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            // A supervisor that does not listen is killed.
            let _ = self.link.send_message(&Command::Stop, &[]);
            self.stopping = Some(Instant::now() + STOP_GRACE);
        }
    }

    fn take_requests(&mut self) {
        for what in self.control.take() {
            let command = match what {
                What::Status => Command::ReportStatus,
                What::Death { device, generation } => Command::ReportDeath { device, generation },
                What::Restart { device, generation } => Command::Restart { device, generation },
                What::Revive { device, generation } => Command::Revive { device, generation },
                What::Balloon { .. } => {
                    self.control.answer_balloon(None);
                    continue;
                }
                What::Upgrade { .. } => {
                    let reason = "each front end gets a worker of the binary that was there at the start";
                    self.control.refuse_upgrade(what, reason.to_owned());
                    continue;
                }
                What::Pause | What::Resume => {
                    self.control.refuse_pause("its guest is another VMM's, which alone can pause it");
                    continue;
                }
            };
            if self.link.send_message(&command, &[]).is_err() {
                self.control.refuse();
            } else if let What::Restart { .. } | What::Revive { .. } = what {
                self.control.answer_restart();
            }
        }
    }

    /// Passes a front end on. What it says is the worker's to read.
    fn accept(&mut self) {
        let Ok(stream) = accept_with(&self.socket, SocketFlags::CLOEXEC) else { return };
        match self.link.send_message(&Command::FrontEnd, &[stream.as_fd()]) {
            Ok(()) => {
                self.serving = true;
                self.say(1, "a front end has connected");
            }
            Err(error) => self.say(0, &format!("a front end cannot be served: {error}")),
        }
    }

    fn take_events(&mut self) {
        while self.end.is_none() {
            match self.link.try_recv_message::<Event>(0) {
                Ok((event, _)) => self.take_event(event),
                Err(SocketError::NotReady) => break,
                Err(_) => {
                    let reason = "the supervisor ended without a word (was it killed?)".to_owned();
                    self.end = Some(End::Lost { reason });
                }
            }
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Note(text) => self.say(1, &text),
            Event::Warning(text) => self.say(0, &text),
            Event::WorkerLog { device, text } => self.say(2, &format!("{device}: {text}")),
            Event::Running => self.say(1, "its worker serves"),
            Event::Status(status) => {
                let (supervisor, spawner) = (self.supervisor.pid, self.spawner.pid);
                self.control.answer_status(self.config.id.as_str(), supervisor, spawner, status);
            }
            Event::FrontEndGone { reason } => {
                match &reason {
                    Some(reason) => self.say(0, &format!("a front end was sent away: {reason}")),
                    None => self.say(1, "the front end is gone"),
                }
                (self.serving, self.last) = (false, reason);
                if self.config.once {
                    self.stop();
                }
            }
            Event::Death { device, generation, death } => {
                self.control.answer_death(device, generation, death);
            }
            Event::ExitCounts(_)
            | Event::ExitTotals { .. }
            | Event::Balloon(_)
            | Event::Upgraded { .. }
            | Event::Paused(_)
            | Event::Resumed => {}
            Event::Ended(end) => self.end = Some(end),
        }
    }

    /// How it ended, and the line that tells.
    fn ending(&self) -> Ending {
        match (&self.end, &self.last) {
            (Some(End::Stopped), Some(reason)) if self.config.once => {
                (Status::Device, format!("its front end was sent away: {reason}"))
            }
            (Some(End::Stopped), _) => (Status::Success, "the device is no longer served".into()),
            (Some(end), _) => of_end(end),
            (None, _) => (Status::Failure, "the supervisor ended without a word (was it killed?)".into()),
        }
    }

    fn say(&self, level: u8, text: &str) {
        if self.verbose >= level {
            match level {
                0 => note!("cellblock: {text}"),
                _ => note!("cellblock: [{:9.3} ms] {text}", self.started.elapsed().as_secs_f64() * 1e3),
            }
        }
    }
}
