//! The front's loop: keys and bytes to and from the workers' pipes, signals and `ps` requests to the supervisor, its events
//! to the user, until every process of the VM is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_spawner::client::Authority;
use cellblock_supervisor::link::{Command, End, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::control_socket::{ControlSocket, What};
use super::exit_table::ExitTable;
use super::signals::Signals;
use super::stream::{Side, Stream};
use super::terminal::{Escape, TerminalSize};
use super::vsock::{self, Vsock};

/// How long the supervisor may take to end after it was told to, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long the last output may take to reach its sink.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// One of the VM's processes.
pub(crate) struct Process {
    /// Readable once it is gone.
    pub pidfd: OwnedFd,
    /// In the front's pid namespace.
    pub pid: i32,
}

/// Everything that one run of a VM gives the front.
pub(crate) struct Relay<'a> {
    pub link: Control,
    pub supervisor: Process,
    pub spawner: Process,
    pub authority: Authority,
    /// Ends by itself; reaped when the VM runs.
    pub loader: i32,
    pub streams: Vec<Stream<'a>>,
    pub vsock: Option<Vsock<'a>>,
    pub signals: &'a Signals,
    pub control: &'a mut ControlSocket,
    pub exits: ExitTable,
    pub stop_timeout: Duration,
    /// 0 = only what needs the user, 1 = what happens, 2 = what the workers say.
    pub verbose: u8,
    /// When this run began.
    pub started: Instant,
    pub id: &'a str,
}

/// What the loop keeps between its rounds.
#[derive(Default)]
struct Progress {
    end: Option<End>,
    /// When to press harder: the power button's patience, then the supervisor's.
    stopping: Option<(Stage, Instant)>,
    /// When to stop waiting for output.
    draining: Option<Instant>,
    link_closed: bool,
    gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The power button was pressed.
    Button,
    /// The supervisor was told to stop.
    Told,
}

/// What the loop waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Link,
    Supervisor,
    Control,
    /// A side of one of the streams.
    Stream(usize, Side),
    /// A side of the vsock device.
    Vsock(vsock::Side),
}

impl Relay<'_> {
    /// Runs until the VM has ended and all its processes are gone; returns how it ended, and whether somebody had asked for it.
    ///
    /// # Errors
    /// Polling itself fails.
    pub(crate) fn run(mut self) -> io::Result<(End, bool)> {
        let mut progress = Progress::default();
        while !self.finished(&mut progress) {
            for source in self.wait(&progress)? {
                self.handle(source, &mut progress);
            }
            self.press_harder(&mut progress);
        }
        see_off(&self.supervisor, &self.spawner);
        reap(self.loader);
        self.say(1, "all processes are gone");
        let lost = End::Lost { reason: "the VM's supervisor ended without a word (was it killed?)".into() };
        Ok((progress.end.unwrap_or(lost), progress.stopping.is_some()))
    }

    fn finished(&self, progress: &mut Progress) -> bool {
        if !progress.gone {
            return false;
        }
        let deadline = *progress.draining.get_or_insert_with(|| Instant::now() + DRAIN_GRACE);
        self.streams.iter().all(Stream::is_drained) || Instant::now() >= deadline
    }

    fn watched(&self, progress: &Progress, now: Instant) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut watched = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Control, self.control.as_fd(), PollFlags::IN),
        ];
        if !progress.link_closed {
            watched.push((Source::Link, self.link.as_fd(), PollFlags::IN));
        }
        if !progress.gone {
            watched.push((Source::Supervisor, self.supervisor.pidfd.as_fd(), PollFlags::IN));
        }
        for (number, stream) in self.streams.iter().enumerate() {
            watched
                .extend(stream.watched().map(|(side, fd, flags)| (Source::Stream(number, side), fd, flags)));
        }
        if let Some(vsock) = &self.vsock {
            watched.extend(vsock.watched(now).map(|(side, fd, flags)| (Source::Vsock(side), fd, flags)));
        }
        watched
    }

    /// What is ready.
    fn wait(&self, progress: &Progress) -> io::Result<Vec<Source>> {
        let now = Instant::now();
        let watched = self.watched(progress, now);
        let mut fds: Vec<_> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let rests = self.vsock.as_ref().and_then(|vsock| vsock.deadline(now));
        let deadlines = [progress.stopping.map(|(_, at)| at), progress.draining, rests];
        let timeout = deadlines.into_iter().flatten().min().map(|at| {
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let found = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(found.map(|((source, ..), _)| *source).collect())
    }

    fn handle(&mut self, source: Source, progress: &mut Progress) {
        match source {
            Source::Signals => self.take_signals(progress),
            Source::Link => self.take_events(progress),
            Source::Supervisor => {
                progress.gone = true;
                self.take_events(progress);
            }
            Source::Control => self.take_requests(),
            Source::Vsock(side) => self.vsock.iter_mut().for_each(|vsock| vsock.advance(side)),
            Source::Stream(number, side) => {
                match self.streams.get_mut(number).and_then(|stream| stream.advance(side)) {
                    Some(Escape::Quit) => self.stop(progress),
                    Some(Escape::PowerButton) => self.press_power_button(),
                    None => {}
                }
            }
        }
    }

    fn take_signals(&mut self, progress: &mut Progress) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT => self.ask_to_stop(progress),
                Signal::WINCH => self.tell_size(),
                _ => {}
            }
        }
    }

    /// Tells the console of the size that its terminal has now.
    fn tell_size(&mut self) {
        if let Some(TerminalSize { columns, rows }) = self.streams.iter().find_map(Stream::console_size) {
            // One that gets lost is as old as the next.
            let _ = self.link.send_message(&Command::Resize { port: 0, columns, rows }, &[]);
        }
    }

    fn ask_to_stop(&mut self, progress: &mut Progress) {
        match progress.stopping {
            None if !self.stop_timeout.is_zero() => {
                self.say(1, "pressing the guest's power button");
                self.press_power_button();
                progress.stopping = Some((Stage::Button, Instant::now() + self.stop_timeout));
            }
            // Asked again, or told not to wait: now.
            None | Some((Stage::Button, _)) => self.stop(progress),
            Some((Stage::Told, _)) => {}
        }
    }

    fn press_power_button(&mut self) {
        if let Err(error) = self.link.send_message(&Command::PowerButton, &[]) {
            self.say(0, &format!("the power button cannot be pressed: {error}"));
        }
    }

    fn stop(&mut self, progress: &mut Progress) {
        // A supervisor that does not listen is killed by `press_harder`.
        let _ = self.link.send_message(&Command::Stop, &[]);
        progress.stopping = Some((Stage::Told, Instant::now() + STOP_GRACE));
    }

    fn press_harder(&mut self, progress: &mut Progress) {
        let Some((stage, at)) = progress.stopping else { return };
        if Instant::now() < at || progress.gone {
            return;
        }
        match stage {
            Stage::Button => {
                let waited = self.stop_timeout.as_secs();
                self.say(
                    0,
                    &format!("the guest did not power off within {waited} s (--stop-timeout); stopping it"),
                );
                self.stop(progress);
            }
            Stage::Told => {
                let _ = rustix::process::pidfd_send_signal(&self.supervisor.pidfd, Signal::KILL);
                progress.end.get_or_insert(End::Stopped);
                progress.stopping = Some((Stage::Told, Instant::now() + STOP_GRACE));
            }
        }
    }

    fn take_requests(&mut self) {
        for what in self.control.take() {
            let command = match what {
                What::Status => Command::ReportStatus,
                What::Balloon { set } => Command::Balloon { set },
                What::Death { device, generation } => Command::ReportDeath { device, generation },
                What::Restart { device, generation } => Command::Restart { device, generation },
                What::Revive { device, generation } => Command::Revive { device, generation },
                What::Upgrade { device, generation } => {
                    let files = self.control.take_files(what);
                    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                    match self.authority.offer(device, &files) {
                        Ok(offer) => {
                            self.control.note_offer(what, offer);
                            Command::Upgrade { device, generation, offer }
                        }
                        Err(error) => {
                            self.control
                                .refuse_upgrade(what, format!("the spawner takes no binary: {error}"));
                            continue;
                        }
                    }
                }
                What::Pause => Command::Pause,
                What::Resume => Command::Resume,
            };
            if self.link.send_message(&command, &[]).is_err() {
                self.control.refuse();
            } else if let What::Restart { .. } | What::Revive { .. } = what {
                self.control.answer_restart();
            }
        }
    }

    fn take_events(&mut self, progress: &mut Progress) {
        while !progress.link_closed {
            match self.link.try_recv_message::<Event>(0) {
                Ok((event, _)) => self.take_event(event, progress),
                Err(SocketError::NotReady) => break,
                Err(_) => progress.link_closed = true,
            }
        }
    }

    fn take_event(&mut self, event: Event, progress: &mut Progress) {
        match event {
            Event::Note(text) => self.say(1, &text),
            Event::Warning(text) => self.say(0, &text),
            Event::WorkerLog { device, text } => self.say(2, &format!("{device}: {text}")),
            Event::Running => {
                // Guest memory is written, so the loader has ended.
                reap(self.loader);
                self.say(1, &format!("VM {} runs", self.id));
            }
            Event::Status(status) => {
                self.control.answer_status(self.id, self.supervisor.pid, self.spawner.pid, status)
            }
            Event::Death { device, generation, death } => {
                self.control.answer_death(device, generation, death);
            }
            Event::Balloon(balloon) => self.control.answer_balloon(balloon),
            Event::Upgraded { offer, result } => self.control.answer_upgrade(offer, result),
            Event::Paused(paused) => {
                self.say(1, if paused.is_ok() { "paused" } else { "not paused" });
                self.control.answer_pause(paused);
            }
            Event::Resumed => {
                self.say(1, "resumed");
                self.control.answer_resume();
            }
            Event::ExitCounts(counts) => self.exits.extend(counts),
            Event::ExitTotals { exits, elsewhere } => self.exits.print(exits, elsewhere),
            // Of `cellblock vhost-user` only.
            Event::FrontEndGone { .. } => {}
            Event::Ended(end) => {
                self.say(1, "the VM has ended; its processes go");
                progress.end = Some(end);
            }
        }
    }

    fn say(&self, level: u8, text: &str) {
        if self.verbose >= level {
            // The time matters to those who ask for more than the end.
            match level {
                0 => note!("cellblock: {text}"),
                _ => note!("cellblock: [{:9.3} ms] {text}", self.started.elapsed().as_secs_f64() * 1e3),
            }
        }
    }
}

/// The supervisor is gone, so the spawner sees its socket close and ends, and the kernel ends the workers with it.
pub(crate) fn see_off(supervisor: &Process, spawner: &Process) {
    let mut fds = [PollFd::new(&spawner.pidfd, PollFlags::IN)];
    let patience = Timespec { tv_sec: STOP_GRACE.as_secs() as i64, tv_nsec: 0 };
    if matches!(poll(&mut fds, Some(&patience)), Ok(0)) {
        let _ = rustix::process::pidfd_send_signal(&spawner.pidfd, Signal::KILL);
    }
    [supervisor.pid, spawner.pid].into_iter().for_each(reap);
}

/// Takes the exit status of a child that has ended or is about to; one that was reaped before is no error.
fn reap(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}
