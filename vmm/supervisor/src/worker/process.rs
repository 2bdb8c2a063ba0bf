//! The processes of one device: the worker's own, and the spares, which are jailed and wait for their grant.
//!
//! A spare has the device's uid, program and sandbox, and its control socket, but nothing of the device: no memory, no
//! ring, no resource. So it may wait beside the worker that serves, and becomes its successor by being granted what that had.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cellblock_channel::clock;
use cellblock_channel::socket::{self, Control};
use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::{Program, StartTime};

use super::Worker;
use crate::error::BuildError;
use crate::link::{DeviceState, Pause};

/// How long after the beginning of its service a worker gets its spares.
const SETTLING: Duration = Duration::from_millis(5);

/// Of the worker or a spare: what the spawner knows it by.
#[derive(Debug, Default)]
pub(super) struct Process {
    instance: u32,
    /// As the host numbers it, once the spawner has said so.
    pub pid: Option<i32>,
    took: StartTime,
    /// Readable when it has ended; until that is known.
    end: Option<OwnedFd>,
    /// It has said what it is.
    pub greeted: bool,
}

impl Process {
    /// What the spawner knows it by.
    pub(super) fn instance(&self) -> u32 {
        self.instance
    }

    fn started(&mut self, pid: i32, took: StartTime, end: Option<OwnedFd>) {
        (self.pid, self.took, self.end) = (Some(pid), took, end);
    }
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Spare {
    process: Process,
    control: Control,
}

impl Spare {
    pub(super) fn instance(&self) -> u32 {
        self.process.instance
    }
}

/// Who the spawner speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The worker.
    Worker,
    /// One of its spares.
    Spare,
    /// The one that is to take over from it.
    Candidate,
    /// The worker before it, whose end was seen already.
    Predecessor,
    /// One that is known no more.
    Nobody,
}

/// What became of a pause, step by step.
#[derive(Debug, Default)]
pub(super) struct Interruption {
    /// On `CLOCK_MONOTONIC`, in ns.
    noticed: u64,
    /// When the old process was killed, or seen to end, as `noticed`.
    killed: u64,
    /// From there, in µs.
    reaped: u32,
    /// As `noticed`.
    served: u64,
    /// The process that took over had been waiting.
    spare: bool,
    last: Option<Pause>,
}

impl Interruption {
    /// The worker is not used any more.
    pub(super) fn begin(&mut self) {
        (self.noticed, self.reaped) = (clock::now(), 0);
        self.killed = self.noticed;
    }

    /// The worker had to be relieved first, and is being killed now.
    pub(super) fn killed(&mut self) {
        self.killed = clock::now();
    }

    /// `process`, which had been waiting, goes on.
    pub(super) fn handed_over(&mut self, process: &Process) {
        self.spare = true;
        self.end();
        self.settle(process);
    }

    /// Its process is gone.
    pub(super) fn reaped(&mut self) {
        self.reaped = micros(clock::now().saturating_sub(self.killed));
    }

    /// Another process serves.
    pub(super) fn end(&mut self) {
        self.served = clock::now();
    }

    /// Counts it up, once it is over; `process` took over.
    fn settle(&mut self, process: &Process) {
        if self.noticed == 0 || self.served <= self.noticed || process.pid.is_none() {
            return;
        }
        let all = micros(self.served - self.noticed);
        let StartTime { spawn_us, sandbox_us } = if self.spare { StartTime::default() } else { process.took };
        let known = self.reaped.saturating_add(spawn_us).saturating_add(sandbox_us);
        self.last = Some(Pause {
            noticed_ns: self.noticed,
            reap_us: self.reaped,
            spawn_us,
            sandbox_us,
            restore_us: all.saturating_sub(known),
            spare: self.spare,
        });
    }

    pub(super) fn last(&self) -> Option<Pause> {
        self.last
    }
}

fn micros(ns: u64) -> u32 {
    u32::try_from(ns / 1000).unwrap_or(u32::MAX)
}

impl Worker {
    /// Asks `spawner` for the first process of device number `device`, which has `theirs`.
    pub(crate) fn start(&self, device: usize, theirs: Control, spawner: &Client) -> Result<(), BuildError> {
        spawner
            .start(device as u32, self.process.instance, self.program(), theirs)
            .map_err(|error| BuildError::Start { device: self.kind(), reason: error.to_string() })
    }

    /// Whether it has fewer spares than `wanted`, and serves: another one would hold up nobody.
    pub(crate) fn lacks_spare(&self, wanted: u32) -> bool {
        self.state() == DeviceState::Serving && !self.has_failed() && self.spares.len() < wanted as usize
    }

    /// It is to have its spares in a while: who has just begun to serve may need the CPUs.
    pub(crate) fn recruit_soon(&mut self) {
        self.recruit_at = Some(Instant::now() + SETTLING);
    }

    /// When that is.
    pub(crate) fn recruit_at(&self) -> Option<Instant> {
        self.recruit_at
    }

    /// Whether that time has come, which it does once.
    pub(crate) fn is_to_recruit(&mut self, now: Instant) -> bool {
        self.recruit_at.take_if(|at| *at <= now).is_some()
    }

    /// How many spares could take its place now: those that are on their way could not.
    pub(super) fn ready_spares(&self) -> u8 {
        let ready = self.spares.iter().filter(|spare| spare.process.pid.is_some());
        u8::try_from(ready.count()).unwrap_or(u8::MAX)
    }

    /// Has `spawner` start a spare.
    pub(crate) fn recruit(&mut self, device: usize, spawner: &Client) -> Result<(), BuildError> {
        let (control, theirs) = self.socket()?;
        let process = self.next_process();
        spawner
            .start(device as u32, process.instance, Program::Own, theirs)
            .map_err(|error| BuildError::Start { device: self.kind(), reason: error.to_string() })?;
        self.spares.push_back(Spare { process, control });
        self.prepare();
        Ok(())
    }

    /// Gives it a process that nothing was granted to yet: a spare that is ready, or one that `spawner` is asked for. Only when
    /// the old one is gone.
    pub(super) fn change_process(&mut self, device: usize, spawner: &Client) -> Result<(), BuildError> {
        // Spares are of the device's own program: they wait for its revival.
        let own = self.program() == Program::Own;
        let ready = self.spares.iter().position(|spare| own && spare.process.pid.is_some());
        let spare = ready.and_then(|place| self.spares.remove(place));
        self.interruption.spare = spare.is_some();
        match spare {
            Some(Spare { process, control }) => (self.process, self.control) = (process, control),
            None => {
                let (control, theirs) = self.socket()?;
                (self.process, self.control) = (self.next_process(), control);
                self.start(device, theirs, spawner)?;
            }
        }
        Ok(())
    }

    pub(super) fn socket(&self) -> Result<(Control, Control), BuildError> {
        let device = self.kind();
        socket::pair().map_err(|source| BuildError::Worker { device, what: "control socket", source })
    }

    /// A number that none of its processes has.
    pub(super) fn next_process(&mut self) -> Process {
        self.instances = self.instances.wrapping_add(1);
        Process { instance: self.instances, ..Process::default() }
    }

    /// Kills it; one that has ended already is reported all the same. A spawner that is gone is seen by its socket.
    pub(crate) fn kill(&self, device: usize, spawner: &Client) {
        let _ = spawner.kill(device as u32, self.process.instance);
    }

    /// The spawner has started `instance`; `end` is readable when that has ended.
    pub(crate) fn started(&mut self, instance: u32, pid: i32, took: StartTime, mut end: Option<OwnedFd>) {
        if self.process.instance == instance {
            self.process.started(pid, took, end.take());
            // It may have served before the spawner said that it had started it.
            self.interruption.settle(&self.process);
        }
        if let Some(candidate) =
            self.candidate.as_mut().filter(|candidate| candidate.process.instance == instance)
        {
            candidate.process.started(pid, took, end.take());
        }
        if let Some(spare) = self.spares.iter_mut().find(|spare| spare.process.instance == instance) {
            spare.process.started(pid, took, end);
        }
    }

    /// Who `instance` is, of which the spawner says that it ended or never began. A spare is forgotten.
    pub(crate) fn ended(&mut self, instance: u32) -> Who {
        if self.obituary.as_ref().is_some_and(|obituary| obituary.is_of(instance)) {
            return Who::Predecessor;
        }
        if self.process.instance == instance {
            return Who::Worker;
        }
        if self.candidate.as_ref().is_some_and(|candidate| candidate.process.instance == instance) {
            return Who::Candidate;
        }
        match self.spares.iter().position(|spare| spare.process.instance == instance) {
            Some(place) => {
                self.spares.remove(place);
                Who::Spare
            }
            None => Who::Nobody,
        }
    }

    /// The number of its process, and what is readable when that has ended, unless that was seen.
    pub(crate) fn end(&self) -> Option<(u32, BorrowedFd<'_>)> {
        self.process.end.as_ref().map(|end| (self.process.instance, end.as_fd()))
    }

    /// Its process has ended, or is not to be looked at any more.
    pub(crate) fn forget_end(&mut self) -> Option<OwnedFd> {
        self.process.end.take()
    }

    /// How there was last no worker.
    pub(crate) fn last_pause(&self) -> Option<Pause> {
        self.interruption.last()
    }

    /// How long there was no worker, once the successor serves.
    pub(crate) fn pause(&self) -> Duration {
        self.interruption.last().map_or(Duration::ZERO, |pause| pause.length())
    }

    /// It serves.
    pub(super) fn begin_service(&mut self) {
        self.state = DeviceState::Serving;
        self.failure.note_service();
        self.back_off.end();
        self.on_registers = false;
        (self.serve_by, self.serves_since) = (None, Some(Instant::now()));
        self.interruption.end();
        self.interruption.settle(&self.process);
    }
}
