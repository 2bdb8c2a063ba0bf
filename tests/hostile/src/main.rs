//! A worker that breaks the rules of the ring, its memories, the doorbell or the control socket, one at a time.
//!
//! Which one is written into the binary by whoever copies it: [`CASE`]. It serves the guest's first two accesses as it should
//! (reads give [`HONEST`]), and does it on the third; with `always ` before the name on the first one of each incarnation. What is done in the
//! greeting is done at once.
//!
//! Not Rust's own `main`, because that opens `/dev/null` for missing standard streams, which a jailed worker cannot.
#![no_main]
#![allow(unsafe_code)] // Reads the text that was written into the binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "whatever it dies of is the supervisor's to stand"
)]

mod control;
mod ring;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cellblock_channel::Responder;
use cellblock_channel::doorbell::Bell;
use cellblock_channel::memory::{self, Mapping, ReadOnly, Writable};
use cellblock_channel::process::entry;
use cellblock_channel::socket::Control;
use cellblock_ring::{LaneId, answer, layout};
use cellblock_wire::Version;
use cellblock_wire::control::{
    Counters, FIXED_DESCRIPTORS, FromWorker, Grant, LogLevel, MAX_ROLES, ToWorker,
};
use cellblock_wire::device::{DeviceKind, Role};
use cellblock_wire::slot::{Action, Op, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What honest reads give.
const HONEST: u64 = 0x5a;
/// What they give once a flood has come to so many messages, which is more than a device's workers may log.
const FLOODED: u64 = 0x5b;
const FLOOD: u64 = 3000;
/// The access on which it strikes.
const STRIKE: u64 = 3;
/// What stands before the case's name.
const MARK: usize = 24;

/// The case's name behind the mark, filled up with dots.
#[used]
static CASE: [u8; 64] = *b"CELLBLOCK-HOSTILE-CASE: ........................................";

fn case() -> String {
    // SAFETY: it is initialized; volatile, because the bytes are not those that the compiler knows.
    let bytes = unsafe { std::ptr::read_volatile(&raw const CASE) };
    String::from_utf8_lossy(&bytes[MARK..]).trim_end_matches('.').to_owned()
}

cellblock_channel::c_main!(run());

fn run() -> i32 {
    let control = entry::control_socket();
    let case = case();
    let (always, name) = case.strip_prefix("always ").map_or((false, &*case), |name| (true, name));
    control::greet(control, name);
    let Ok((ToWorker::Grant(grant), descriptors)) = control.recv_message(FIXED_DESCRIPTORS + MAX_ROLES)
    else {
        return 1;
    };
    let mut worker = Worker::new(control, &grant, descriptors);
    worker.control.send_message(&FromWorker::Ready, &[]).unwrap();
    worker.serve(name, if always { 1 } else { STRIKE });
    0
}

/// What it says of itself when it is honest.
fn hello() -> FromWorker {
    FromWorker::Hello { version: Version::CURRENT, device: Some(DeviceKind::Rtc) }
}

/// What a worker does without a pause, so that it never sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noise {
    /// Nothing: it sleeps until it is rung for.
    None,
    /// It looks for requests, and is never rung for.
    Silent,
    /// It writes random numbers into the header of the replies.
    Header,
    /// It tells what it has counted.
    Counters,
    /// It logs long lines that a terminal would obey.
    Log,
}

/// A worker with all that it was granted.
struct Worker {
    control: &'static Control,
    requests: OwnedFd,
    replies_fd: OwnedFd,
    page: OwnedFd,
    bell: Option<Bell>,
    interrupt: Option<OwnedFd>,
    replies: Mapping<Writable>,
    responder: Responder,
    /// What it does all the time beside serving.
    noise: Noise,
    /// Messages of its flood that were taken.
    sent: u64,
    random: u64,
    /// It does not listen to the supervisor any more.
    deaf: bool,
}

impl Worker {
    fn new(control: &'static Control, grant: &Grant, descriptors: Vec<OwnedFd>) -> Self {
        let mut rest = descriptors.into_iter();
        let mut next = || rest.next().unwrap();
        let (requests, replies_fd, page, bell) = (next(), next(), next(), next());
        let interrupt = grant
            .roles
            .iter()
            .zip(rest)
            .find(|(role, _)| matches!(role, Role::Interrupt(_)))
            .map(|(_, fd)| fd);
        let room: Mapping<ReadOnly> =
            memory::open_read(&requests, memory::bytes(layout::request_words(grant.lanes))).unwrap();
        let replies =
            memory::open_write(&replies_fd, memory::bytes(layout::reply_words(grant.lanes))).unwrap();
        let responder = Responder::new(room, replies.clone(), grant.lanes, grant.generation).unwrap();
        let bell = Some(Bell::from_fd(bell));
        Worker {
            control,
            requests,
            replies_fd,
            page,
            bell,
            interrupt,
            replies,
            responder,
            noise: Noise::None,
            sent: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            deaf: false,
        }
    }

    /// Serves, and strikes when the time has come.
    fn serve(&mut self, case: &str, strike: u64) {
        let mut served = 0;
        loop {
            while let Some(Ok((lane, request))) = self.responder.next() {
                served += 1;
                if served != strike || self.strike(case, lane, &request) {
                    self.answer(lane, &request);
                }
            }
            self.listen();
            if self.noise != Noise::None {
                self.make_noise();
            } else if self.responder.prepare_sleep() {
                self.sleep();
                self.responder.awake();
            }
        }
    }

    fn make_noise(&mut self) {
        match self.noise {
            Noise::None | Noise::Silent => {}
            Noise::Header => self.scribble(0..layout::reply_slot(0)),
            Noise::Counters => self.flood(&FromWorker::Counters(Counters::default())),
            Noise::Log => {
                let text = format!("\u{1b}[31mline {}", "x".repeat(400));
                self.flood(&FromWorker::Log { level: LogLevel::Warn, text });
            }
        }
        std::thread::yield_now();
    }

    /// The honest answer.
    fn answer(&mut self, lane: LaneId, request: &Request) {
        let data = match request.op {
            Op::Write => 0,
            Op::Read if self.sent < FLOOD => HONEST,
            Op::Read => FLOODED,
        };
        self.responder.reply(lane, &answer(request, Action::None, data));
    }

    /// Does what `case` says; whether the access is to be answered after that.
    fn strike(&mut self, case: &str, lane: LaneId, request: &Request) -> bool {
        self.break_ring(case, lane, request)
            .or_else(|| self.break_control(case))
            .unwrap_or_else(|| panic!("no case {case:?}"))
    }

    fn sleep(&self) {
        let Some(bell) = &self.bell else { return };
        let mut sources = vec![PollFd::new(bell, PollFlags::IN)];
        if !self.deaf {
            sources.push(PollFd::new(self.control, PollFlags::IN));
        }
        let _ = poll(&mut sources, None);
        bell.silence();
    }

    /// Answers the supervisor's messages.
    fn listen(&self) {
        while !self.deaf
            && let Ok((message, _)) = self.control.try_recv_message::<ToWorker>(0)
        {
            let answer = match message {
                ToWorker::ReportCounters => FromWorker::Counters(Counters::default()),
                ToWorker::Quiesce { number } => FromWorker::Quiesced { number },
                _ => continue,
            };
            let _ = self.control.send_message(&answer, &[]);
        }
    }
}

/// Sleeps for ever.
fn rest() -> ! {
    loop {
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 1000, tv_nsec: 0 }));
    }
}

/// Sleeps for `time`.
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A descriptor of its own.
fn own(fd: &impl AsFd) -> BorrowedFd<'_> {
    fd.as_fd()
}
