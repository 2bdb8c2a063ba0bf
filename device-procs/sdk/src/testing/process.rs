//! A device in a real worker process, with a supervisor that is just big enough for tests.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use cellblock_channel::last_words::{self, LastWords};
use cellblock_channel::memory::{self, ReadOnly, Sealed, Writable};
use cellblock_channel::process::start;
use cellblock_channel::socket::{self, Control};
use cellblock_channel::{Kick, KickWatch, RegisterPage, Requester, clock, doorbell, kick, register_page};
use cellblock_ring::state_page::Shape;
use cellblock_ring::{Access, Outcome, Succession, layout};
use cellblock_wire::Version;
use cellblock_wire::control::{Counters, Fallback, FromWorker, Grant, ToWorker};
use cellblock_wire::device::{DeviceConfig, IN_FLIGHT_BYTES, Role, host_bytes};
use cellblock_wire::slot::{Action, Op, Reply, Space};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Host;
use crate::state;

/// Longer than any answer takes, in a test.
const PATIENCE: Duration = Duration::from_secs(10);
/// Successors of one worker that may end before they serve.
const MOST_IN_A_ROW: usize = 100;

/// `RET ALLOW`: for binaries whose dynamic linker needs more than a worker may. The serve program still comes on top.
const ALLOW_ALL: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];

/// A worker's binary and the program that it starts under.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    /// Under which it is executed.
    name: String,
    start: Vec<u8>,
}

impl Program {
    /// The worker `name`: the static one under `$CELLBLOCK_WORKER_DIR` with its start program, if that is set; else the one
    /// that Cargo built for the test, whose dynamic linking needs every system call until the sandbox closes.
    pub fn find(name: &str, cargo_built: &str, start_program: &[u8]) -> Program {
        let (path, start) = match std::env::var_os("CELLBLOCK_WORKER_DIR") {
            Some(folder) => (Path::new(&folder).join(name), start_program),
            None => (cargo_built.into(), &ALLOW_ALL[..]),
        };
        Program { path, name: name.to_owned(), start: start.to_vec() }
    }

    /// A test that is a worker by that name. It starts unfiltered.
    pub fn own(path: &Path) -> Program {
        Program { path: path.to_owned(), name: "worker".to_owned(), start: ALLOW_ALL.to_vec() }
    }

    /// Starts the worker with `control` as descriptor 3 and nothing else open.
    ///
    /// # Errors
    /// The binary is missing, or fork fails.
    pub fn start(&self, control: Control) -> io::Result<Child> {
        let name = CString::new(self.name.as_str()).map_err(io::Error::other)?;
        start::start(&self.path, &name, control, &self.start)
    }
}

/// What a worker is to be granted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The device.
    pub config: DeviceConfig,
    /// vCPUs.
    pub lanes: u32,
    /// The worker's spin, in µs.
    pub poll_max_us: u32,
    /// Whether an input socket and an output pipe are granted, and a serial port's memory between them and the guest.
    pub pipes: bool,
    /// Whether the worker's ends of them do not block, as whoever shares them may make them.
    pub nonblocking: bool,
}

/// Runs `tests`, by their names, in a program that has no harness since it starts itself as a worker; if there are arguments, those
/// whose names hold one of them. Returns how many failed.
pub fn run_tests(tests: &[(&str, fn())]) -> i32 {
    // As a worker it has no environment: one that does not know itself by its name would start itself without end.
    if std::env::vars_os().next().is_none() {
        return -1;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += i32::from(!passed);
    }
    failed
}

/// Numbers that look like chance and are the same each time (xorshift).
#[derive(Debug)]
pub struct Noise(pub u64);

impl Noise {
    /// The next, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << by } else { self.0 >> by };
        }
        (self.0 >> 16) % end.max(1)
    }
}

/// A worker and the supervisor's end of all that it was granted. Dropping it kills the worker.
#[derive(Debug)]
pub struct Supervised {
    program: Program,
    wanted: Wanted,
    generation: u32,
    child: Child,
    /// The control socket.
    pub control: Control,
    requests: Sealed<Writable>,
    replies: Sealed<ReadOnly>,
    page: Sealed<ReadOnly>,
    /// What a guest reads the registers of a device with queues from.
    pub registers: Option<RegisterPage>,
    /// The doorbell's end that is rung. A successor hears the same bell.
    pub ringer: doorbell::Ringer,
    /// The end that each worker is granted a copy of.
    pub bell: doorbell::Bell,
    lanes: Vec<Requester>,
    kick: (Kick, KickWatch),
    /// Replies of a predecessor that were not waited for before its death.
    late: Vec<(usize, Reply)>,
    /// How long the vCPU's side spins.
    pub spin: Duration,
    /// Interrupt line 0.
    pub interrupt: OwnedFd,
    /// The host's end of the input socket.
    pub input: Option<OwnedFd>,
    /// The host's end of the output pipe.
    pub output: Option<OwnedFd>,
    /// What else is granted.
    extras: Vec<(Role, OwnedFd)>,
    /// What successors are granted for the case that the state page makes no sense.
    pub fallback: Fallback,
    /// Why the last one began with that.
    pub state_lost: Option<String>,
}

impl Supervised {
    /// Starts a worker and waits until it is ready.
    ///
    /// # Errors
    /// Anything goes wrong; a refusal with its reason.
    pub fn start(program: &Program, wanted: &Wanted) -> io::Result<Supervised> {
        Self::start_with(program, wanted, vec![])
    }

    /// As [`start`](Self::start), with more roles: guest memory, an image, queues' kicks. A successor gets them too. With kicks
    /// there is memory for requests in flight.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        program: &Program,
        wanted: &Wanted,
        extras: Vec<(Role, OwnedFd)>,
    ) -> io::Result<Supervised> {
        let failed = io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
        let mut extras = extras;
        let kicks = extras.iter().filter(|(role, _)| matches!(role, Role::QueueKick(_))).count();
        if kicks > 0 && !extras.iter().any(|(role, _)| *role == Role::InFlight) {
            let pages = memory::create_replies("in flight", kicks * IN_FLIGHT_BYTES);
            extras.push((Role::InFlight, pages.map_err(|e| failed(e.into()))?.fd));
        }
        let (mut input, mut output) = (None, None);
        if wanted.pipes {
            let (host_input, worker_input) = UnixStream::pair()?;
            let (host_output, worker_output) = pipe_with(PipeFlags::CLOEXEC)?;
            if wanted.nonblocking {
                worker_input.set_nonblocking(true)?;
                fcntl_setfl(&worker_output, OFlags::NONBLOCK)?;
            }
            extras.extend([(Role::HostInput, worker_input.into()), (Role::HostOutput, worker_output)]);
            (input, output) = (Some(host_input.into()), Some(host_output));
            if let DeviceConfig::Serial { buffer, .. } = wanted.config {
                let kept = memory::create_replies("host bytes", host_bytes(buffer));
                extras.push((Role::HostBytes, kept.map_err(|e| failed(e.into()))?.fd));
            }
        }
        let mut registers = None;
        if kicks > 0 {
            let page =
                memory::create_shared("registers", register_page::BYTES).map_err(|e| failed(e.into()))?;
            registers = Some(RegisterPage::new(page.map));
            extras.push((Role::Registers, page.fd));
        }
        let shape = Shape::new(wanted.lanes, state::CAPACITY);
        let words = memory::bytes;
        let requests = memory::create_requests("requests", words(layout::request_words(wanted.lanes)))
            .map_err(|e| failed(e.into()))?;
        let replies = memory::create_replies("replies", words(layout::reply_words(wanted.lanes)))
            .map_err(|e| failed(e.into()))?;
        let page = memory::create_state("state", words(shape.words())).map_err(|e| failed(e.into()))?;
        let lanes = (0..wanted.lanes)
            .map(|lane| Requester::new(requests.map.clone(), replies.map.clone(), lane, 1))
            .collect::<Result<_, _>>()
            .map_err(|e| failed(e.into()))?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (control, child) = start_process(program)?;
        let (ringer, bell) = doorbell::pair()?;
        let mut supervised = Supervised {
            program: program.clone(),
            wanted: wanted.clone(),
            generation: 1,
            child,
            control,
            requests,
            replies,
            page,
            registers,
            ringer,
            bell,
            lanes,
            kick: kick(),
            late: vec![],
            spin: Duration::ZERO,
            interrupt,
            input,
            output,
            extras,
            fallback: Fallback::Refuse,
            state_lost: None,
        };
        supervised.grant()?;
        Ok(supervised)
    }

    fn grant(&mut self) -> io::Result<()> {
        let (mut roles, mut ends) = (vec![Role::Interrupt(0)], vec![]);
        for (role, fd) in &self.extras {
            roles.push(*role);
            ends.push(fd.try_clone()?);
        }
        let grant = Grant {
            version: Version::CURRENT,
            generation: self.generation,
            lanes: self.wanted.lanes,
            poll_max_us: self.wanted.poll_max_us,
            resting: false,
            roles,
            config: self.wanted.config.clone(),
            fallback: self.fallback.clone(),
        };
        let fixed =
            [self.requests.fd.as_fd(), self.replies.fd.as_fd(), self.page.fd.as_fd(), self.bell.as_fd()];
        let roles = [self.interrupt.as_fd()].into_iter().chain(ends.iter().map(AsFd::as_fd));
        let descriptors: Vec<_> = fixed.into_iter().chain(roles).collect();
        self.control.send_message(&ToWorker::Grant(grant), &descriptors).map_err(io::Error::other)?;
        self.state_lost = None;
        loop {
            match self.message()? {
                FromWorker::Ready => return Ok(()),
                FromWorker::StateLost { reason } if self.state_lost.is_none() => {
                    self.state_lost = Some(reason)
                }
                other => return Err(io::Error::other(format!("instead of Ready: {other:?}"))),
            }
        }
    }

    /// Puts `bytes` into the state page at `at`, as a worker could.
    ///
    /// # Errors
    /// The page is smaller.
    pub fn poison(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        rustix::io::pwrite(&self.page.fd, bytes, at)?;
        Ok(())
    }

    /// Puts noise into the state page: all of it, or a few bytes here and there, so that what is checked last is reached, too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn poison_at_random(&self, noise: &mut Noise) -> io::Result<()> {
        let size = memory::bytes(Shape::new(self.wanted.lanes, state::CAPACITY).words()) as u64;
        let all = noise.below(4) == 0;
        let (pieces, longest) = if all { (1, size) } else { (1 + noise.below(6), 8) };
        for _ in 0..pieces {
            let at = if all { 0 } else { noise.below(size) };
            let length = if all { size } else { 1 + noise.below(longest) };
            let bytes: Vec<u8> = (0..length.min(size - at)).map(|_| noise.below(256) as u8).collect();
            self.poison(at, &bytes)?;
        }
        Ok(())
    }

    /// The next message of the worker.
    ///
    /// # Errors
    /// It is dead or silent.
    pub fn message(&self) -> io::Result<FromWorker> {
        receive(&self.control)
    }

    /// The worker's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `access` by `lane` and waits for the answer.
    ///
    /// # Errors
    /// There is none, or it breaks the protocol.
    pub fn access(&mut self, lane: usize, access: &Access) -> io::Result<Reply> {
        self.post(lane, access);
        self.wait(lane)
    }

    /// Sends `access` by `lane`.
    pub fn post(&mut self, lane: usize, access: &Access) {
        if self.lanes[lane].post(access) {
            self.ringer.ring();
        }
    }

    /// Waits for the answer in `lane`.
    ///
    /// # Errors
    /// There is none, or it breaks the protocol.
    pub fn wait(&mut self, lane: usize) -> io::Result<Reply> {
        if let Some(index) = self.late.iter().position(|(of, _)| *of == lane) {
            return Ok(self.late.swap_remove(index).1);
        }
        let outcome = self.lanes[lane].wait(&mut self.kick.1, self.spin, clock::deadline_in(PATIENCE));
        match outcome.map_err(io::Error::other)? {
            Outcome::Replied(reply) => Ok(reply),
            Outcome::Kicked | Outcome::Deadline => Err(io::Error::other("no reply in time")),
        }
    }

    /// Looks for the answer in `lane` for at most `time`; `None` = it is not there yet.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn wait_for(&mut self, lane: usize, time: Duration) -> io::Result<Option<Reply>> {
        if let Some(index) = self.late.iter().position(|(of, _)| *of == lane) {
            return Ok(Some(self.late.swap_remove(index).1));
        }
        let outcome = self.lanes[lane].wait(&mut self.kick.1, self.spin, clock::deadline_in(time));
        match outcome.map_err(io::Error::other)? {
            Outcome::Replied(reply) => Ok(Some(reply)),
            Outcome::Kicked | Outcome::Deadline => Ok(None),
        }
    }

    /// What the worker has counted.
    ///
    /// # Errors
    /// It does not answer.
    pub fn counters(&self) -> io::Result<Counters> {
        self.control.send_message(&ToWorker::ReportCounters, &[]).map_err(io::Error::other)?;
        match self.message()? {
            FromWorker::Counters(counters) => Ok(counters),
            other => Err(io::Error::other(format!("instead of counters: {other:?}"))),
        }
    }

    /// Has the worker come to rest.
    ///
    /// # Errors
    /// It does not.
    pub fn quiesce(&self) -> io::Result<()> {
        self.control.send_message(&ToWorker::Quiesce { number: 1 }, &[]).map_err(io::Error::other)?;
        match self.message()? {
            FromWorker::Quiesced { number: 1 } => Ok(()),
            other => Err(io::Error::other(format!("instead of its rest: {other:?}"))),
        }
    }

    /// Has it go on.
    ///
    /// # Errors
    /// It does not read its socket.
    pub fn resume(&self) -> io::Result<()> {
        self.control.send_message(&ToWorker::Resume, &[]).map_err(io::Error::other)
    }

    /// Whether the answer in `lane` is there.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn poll(&mut self, lane: usize) -> io::Result<Option<Reply>> {
        self.lanes[lane].poll().map_err(io::Error::other)
    }

    /// What a worker that has ended noted of its death.
    pub fn last_words(&self) -> Option<LastWords> {
        last_words::find(&self.replies.map)
    }

    /// Pulses of interrupt line 0 since the last call.
    pub fn pulses(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.interrupt, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// Kills the worker and starts its successor, which takes over what it left.
    ///
    /// # Errors
    /// The successor does not start.
    pub fn replace(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.generation += 1;
        (self.control, self.child) = start_process(&self.program)?;
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            let next = lane.succeed(self.requests.map.clone(), self.replies.map.clone(), self.generation);
            match next.map_err(io::Error::other)? {
                Succession::Reposted { ring: true } => self.ringer.ring(),
                Succession::Answered(reply) => self.late.push((number, reply)),
                Succession::Reposted { ring: false } | Succession::Idle => {}
            }
        }
        self.grant()
    }

    /// What its successors are granted from now on.
    pub fn reconfigure(&mut self, config: DeviceConfig) {
        self.wanted.config = config;
    }

    /// Replaces the worker if it has ended, and its successors if they end before they serve: how each of them ended.
    ///
    /// # Errors
    /// None of many successors serves.
    pub fn mend(&mut self) -> io::Result<Vec<ExitStatus>> {
        let mut ends = vec![];
        let mut ended = self.child.try_wait()?;
        while let Some(status) = ended {
            ends.push(status);
            ended = match self.replace() {
                Ok(()) => None,
                Err(error) if ends.len() >= MOST_IN_A_ROW => return Err(error),
                Err(_) => Some(self.ended()?),
            };
        }
        Ok(ends)
    }

    /// Waits for the worker's end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn ended(&mut self) -> io::Result<ExitStatus> {
        ended(&mut self.child)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Host for Supervised {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        let access = Access { space: Space::Pio, op: Op::Read, size, region, offset, data: 0 };
        self.access(0, &access).map_or_else(|error| dead(&error), |reply| reply.data)
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, data: u64) -> Action {
        let access = Access { space: Space::Pio, op: Op::Write, size, region, offset, data };
        self.access(0, &access).map_or_else(|error| dead(&error), |reply| reply.action)
    }
}

#[allow(clippy::panic, reason = "a test's worker has failed the test")]
fn dead<T>(error: &io::Error) -> T {
    panic!("the worker did not answer: {error}")
}

/// A worker without a grant that has said hello, and the control socket to it.
///
/// # Errors
/// It does not start.
pub fn start_process(program: &Program) -> io::Result<(Control, Child)> {
    let (ours, theirs) = socket::pair()?;
    let child = program.start(theirs)?;
    match receive(&ours)? {
        FromWorker::Hello { .. } => Ok((ours, child)),
        other => Err(io::Error::other(format!("instead of Hello: {other:?}"))),
    }
}

/// The next message from a worker, within a test's patience.
///
/// # Errors
/// The worker is dead or silent, or the message is none.
pub fn receive(control: &Control) -> io::Result<FromWorker> {
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&timeout))? == 0 {
        return Err(io::Error::other("the worker says nothing"));
    }
    control.recv_message(0).map(|(message, _)| message).map_err(io::Error::other)
}

/// The status with which `child` ends, within a test's patience; past it the child is killed.
///
/// # Errors
/// It does not end.
pub fn ended(child: &mut Child) -> io::Result<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Err(io::Error::other("the worker does not end"))
}
