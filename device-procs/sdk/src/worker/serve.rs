//! The register thread: answers requests, and between them handles events and control messages.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cellblock_channel::doorbell::Bell;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_channel::{Responder, StateWriter, clock};
use cellblock_ring::state_page::Committed;
use cellblock_ring::{LaneId, Stance, answer};
use cellblock_wire::control::{Counters, FromWorker, LogLevel, ToWorker};
use cellblock_wire::slot::{Action, Op, Reply, Request, mask};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::cut;
use super::pace::Pace;
use super::refusal::Refusal;
use super::timer::Timer;
use crate::device::{Access, Device, Event};
use crate::fail_point::{Step, reach};
use crate::host::Tally;
use crate::state::StateBuffer;

/// After so many requests in a row the register thread looks at everything else.
const BURST: u32 = 64;
/// Between two looks at the clock while spinning.
const SPINS_PER_LOOK: u32 = 32;
/// Control messages handled in a row.
const MESSAGES: usize = 16;
/// How long an orderly end may wait for the host to take the output.
const FINISH: Duration = Duration::from_millis(200);
/// The doorbell's pipe is emptied after it was heard so often: reading it each time would cost a system call per request. It holds 8192
/// rings at least, and each vCPU rings once at most before it is heard.
const RINGS: u32 = 64;
/// Requests that do not decode, and queues that make no sense, are reported so often and no more.
const REPORTS: u32 = 8;

/// Why serving ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The supervisor said so.
    Quit,
    /// The supervisor is gone.
    Orphaned,
    /// The supervisor broke the protocol.
    Violation(String),
}

/// Whether the device rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It serves.
    No,
    /// It serves, until it has come to rest, and says so with this number.
    Soon(u32),
    /// It rests, and its state is committed.
    Now,
}

/// What the register thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Bell,
    Control,
    Host,
    Timer,
}

impl Source {
    const ALL: [Source; 4] = [Source::Bell, Source::Control, Source::Host, Source::Timer];
}

/// What the grant brought.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) responder: Responder,
    pub(super) page: StateWriter,
    pub(super) bell: Bell,
    pub(super) wake: Arc<OwnedFd>,
    pub(super) tally: Arc<Tally>,
    pub(super) poll_max_us: u32,
}

/// A device that is ready to serve.
#[derive(Debug)]
pub(super) struct Server<D> {
    device: D,
    wiring: Wiring,
    state: StateBuffer,
    timer: Timer,
    epoll: OwnedFd,
    pace: Pace,
    /// What the supervisor was told last of where it waits.
    announced: Stance,
    /// What the predecessor answered last, until each lane has moved on.
    predecessor: Option<Committed>,
    served: u64,
    /// Times that the bell was heard since it was emptied.
    rung: u32,
    reports: u32,
    rest: Rest,
}

impl<D: Device> Server<D> {
    pub(super) fn new(
        device: D,
        wiring: Wiring,
        predecessor: Option<Committed>,
        resting: bool,
        control: &Control,
    ) -> Result<Self, Refusal> {
        let failed = |what| move |errno: Errno| Refusal::system(what, errno);
        let timer = Timer::new().map_err(failed("timerfd"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll"))?;
        let add = |source: Source, fd: rustix::fd::BorrowedFd<'_>, flags| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(source as u64), flags).map_err(failed("epoll"))
        };
        let (level, edge) = (epoll::EventFlags::IN, epoll::EventFlags::IN | epoll::EventFlags::ET);
        add(Source::Control, control.as_fd(), level)?;
        // Edges: these three need not be read to be silent. A pipe gives one with each ring, whatever is in it (Linux 5.14 and later).
        add(Source::Bell, wiring.bell.as_fd(), edge)?;
        add(Source::Host, wiring.wake.as_fd(), edge)?;
        add(Source::Timer, timer.as_fd(), edge)?;

        let pace = Pace::new(wiring.poll_max_us);
        let state = StateBuffer::default();
        let rest = if resting { Rest::Now } else { Rest::No };
        let mut server = Server {
            device,
            wiring,
            state,
            timer,
            epoll,
            pace,
            announced: Stance::Anywhere,
            predecessor,
            served: 0,
            // What a predecessor left in it goes first.
            rung: RINGS - 1,
            reports: 0,
            rest,
        };
        server.device.save(&mut server.state.start());
        // At rest the page is the predecessor's, which may go on.
        if !resting {
            server.wiring.page.commit(server.state.bytes(), None)?;
            server.device.committed();
        }
        reach(Step::FirstCommit);
        if !resting {
            server.device.settle();
        }
        Ok(server)
    }

    /// Serves until the end.
    pub(super) fn serve(&mut self, control: &Control) -> End {
        match self.rounds(control) {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    fn rounds(&mut self, control: &Control) -> Result<std::convert::Infallible, End> {
        loop {
            if self.burst(control) == BURST {
                self.look(control, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
            } else {
                self.sleep(control)?;
            }
        }
    }

    /// Answers what is there, up to [`BURST`] requests; while requests are close to each other, also what comes soon. How many.
    fn burst(&mut self, control: &Control) -> u32 {
        if self.rest == Rest::Now {
            self.stop_spinning(false);
            return 0;
        }
        let mut served = 0;
        while served < BURST && (self.answer_next(control) || self.spin_for_request(control)) {
            served += 1;
        }
        served
    }

    /// Waits for the next request without sleeping, and answers it, if requests come close to each other. `false` = none came in
    /// time.
    fn spin_for_request(&mut self, control: &Control) -> bool {
        if !self.pace.spins() {
            return false;
        }
        if !self.pace.give_way(self.wiring.responder.home()) {
            self.stop_spinning(true);
            return false;
        }
        self.announce();
        let mut before = clock::now();
        let end = before.saturating_add(self.pace.longest());
        let end = self.device.deadline().map_or(end, |deadline| end.min(deadline));
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if self.answer_next(control) {
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = clock::now();
            let alone = self.pace.looked(now.saturating_sub(before));
            if !alone || now >= end {
                self.stop_spinning(!alone);
                return false;
            }
            before = now;
        }
    }

    fn stop_spinning(&mut self, wanted: bool) {
        if self.pace.spins() {
            self.pace.stop(wanted);
            self.announce();
        }
    }

    fn announce(&mut self) {
        let stance = self.pace.stance();
        if self.announced != stance {
            self.announced = stance;
            self.wiring.responder.announce(stance);
        }
    }

    /// Answers what the doorbell has told of; spins for more from now on, if requests come close to each other.
    fn answer_ring(&mut self, control: &Control) {
        if self.rest == Rest::Now || self.pace.spins() {
            return;
        }
        let woken = clock::now();
        if self.answer_next(control) {
            self.pace.woken(self.wiring.responder.home(), woken);
            self.announce();
        }
    }

    /// Answers the next request, if there is one.
    fn answer_next(&mut self, control: &Control) -> bool {
        match self.wiring.responder.next() {
            None => return false,
            Some(Ok((lane, request))) => self.answer(lane, &request),
            Some(Err(error)) => self.report(control, &format!("request left unanswered: {error}")),
        }
        true
    }

    fn answer(&mut self, lane: LaneId, request: &Request) {
        reach(Step::Received);
        let reply = match self.answered_before(lane, request) {
            Some(reply) => reply,
            None => self.access(request),
        };
        reach(Step::Accessed);
        self.device.save(&mut self.state.start());
        // Only a state that is too long fails, and `new` has seen that it is not.
        let _ = self.wiring.page.commit(self.state.bytes(), Some((lane, &reply)));
        self.device.committed();
        reach(Step::Committed);
        self.wiring.responder.reply(lane, &reply);
        reach(Step::Replied);
        self.device.settle();
        reach(Step::Settled);
        self.served += 1;
    }

    fn access(&mut self, request: &Request) -> Reply {
        let access = Access { region: request.region, offset: request.offset, size: request.size };
        match request.op {
            Op::Read => answer(request, Action::None, mask(self.device.read(access), request.size)),
            Op::Write => answer(request, self.device.write(access, mask(request.data, request.size)), 0),
        }
    }

    /// The predecessor's reply to this very request, which took effect although the reply was not delivered.
    fn answered_before(&mut self, lane: LaneId, request: &Request) -> Option<Reply> {
        let committed = self.predecessor.as_mut()?;
        let reply = committed.reply_to(lane, request);
        if let Some(last) = committed.replies.get_mut(lane.index() as usize) {
            *last = None;
        }
        reply
    }

    fn report(&mut self, control: &Control, text: &str) {
        if self.reports < REPORTS {
            self.reports += 1;
            let text = cut(text);
            let _ = control.send_message(&FromWorker::Log { level: LogLevel::Warn, text }, &[]);
        }
    }

    /// Sleeps until something happens, unless something has.
    fn sleep(&mut self, control: &Control) -> Result<(), End> {
        if let Some(complaint) = self.device.complaint() {
            self.report(control, &complaint);
        }
        if self.rest == Rest::Now {
            // Requests and the device's time wait.
            self.pace.release();
            self.announce();
            return self.look(control, None);
        }
        self.timer.arm(self.device.deadline());
        self.pace.settle(self.wiring.responder.home(), self.served);
        self.announce();
        if !self.wiring.responder.prepare_sleep() {
            return Ok(());
        }
        reach(Step::Sleeps);
        self.look(control, None)
    }

    /// Handles everything but requests: waits for it (`None`) or only looks.
    fn look(&mut self, control: &Control, timeout: Option<&Timespec>) -> Result<(), End> {
        if timeout.is_some() {
            self.timer.arm(self.device.deadline());
        }
        let mut events = [const { None }; Source::ALL.len()];
        let settles =
            self.pace.sleeps_for().map(|time| Timespec { tv_sec: 0, tv_nsec: time.as_nanos() as i64 });
        self.wait(&mut events, timeout.or(settles.as_ref()))?;
        if timeout.is_none() {
            reach(Step::Awake);
            self.wiring.responder.awake();
        }
        for source in events.into_iter().flatten() {
            match source {
                Source::Bell => {
                    self.empty_bell()?;
                    self.answer_ring(control);
                }
                Source::Control => self.messages(control)?,
                Source::Host => self.event_unless_resting(control, Event::Host),
                Source::Timer => {
                    self.timer.fired();
                    self.event_unless_resting(control, Event::Timer);
                }
            }
        }
        self.come_to_rest(control);
        Ok(())
    }

    /// Long before the pipe of the doorbell is full.
    fn empty_bell(&mut self) -> Result<(), End> {
        self.rung += 1;
        if self.rung == RINGS {
            self.rung = 0;
            if !self.wiring.bell.silence() {
                return Err(End::Orphaned);
            }
        }
        Ok(())
    }

    /// Both come again at the end of a rest.
    fn event_unless_resting(&mut self, control: &Control, event: Event) {
        if self.rest != Rest::Now {
            self.event(control, event);
        }
    }

    fn come_to_rest(&mut self, control: &Control) {
        if let Rest::Soon(number) = self.rest
            && self.device.is_quiet()
        {
            self.commit();
            self.rest = Rest::Now;
            reach(Step::Rests);
            let _ = control.send_message(&FromWorker::Quiesced { number }, &[]);
            reach(Step::RestTold);
        }
    }

    fn resume(&mut self, control: &Control) {
        if self.rest != Rest::No {
            self.rest = Rest::No;
            self.device.resume();
            reach(Step::Resumed);
            self.event(control, Event::Host);
            self.event(control, Event::Timer);
        }
    }

    fn wait(
        &self,
        ready: &mut [Option<Source>; Source::ALL.len()],
        timeout: Option<&Timespec>,
    ) -> Result<(), End> {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; Source::ALL.len()];
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(End::Violation(format!("epoll_wait failed: {errno}"))),
        };
        for (slot, event) in ready.iter_mut().zip(events.iter().take(count)) {
            let (number, flags) = (event.data.u64(), event.flags);
            if number == Source::Bell as u64 && flags.contains(epoll::EventFlags::HUP) {
                return Err(End::Orphaned);
            }
            *slot = Source::ALL.into_iter().find(|source| *source as u64 == number);
        }
        Ok(())
    }

    fn event(&mut self, control: &Control, event: Event) {
        self.device.event(event);
        reach(Step::EventTaken);
        self.commit();
        reach(Step::EventCommitted);
        if let Some(report) = self.device.answer() {
            // A supervisor that does not read its socket gets no answer.
            let _ = control.send_message(&FromWorker::Balloon(report), &[]);
        }
    }

    /// Commits the state, with no reply.
    fn commit(&mut self) {
        self.device.save(&mut self.state.start());
        // Only a state that is too long fails, and `new` has seen that it is not.
        let _ = self.wiring.page.commit(self.state.bytes(), None);
        self.device.committed();
        self.device.settle();
    }

    fn messages(&mut self, control: &Control) -> Result<(), End> {
        for _ in 0..MESSAGES {
            match control.try_recv_message(0) {
                Ok((message, _)) => self.message(control, &message)?,
                Err(SocketError::NotReady) => break,
                Err(SocketError::Closed) => return Err(End::Orphaned),
                Err(error) => return Err(End::Violation(error.to_string())),
            }
        }
        Ok(())
    }

    fn message(&mut self, control: &Control, message: &ToWorker) -> Result<(), End> {
        match message {
            ToWorker::PowerButton => self.event(control, Event::PowerButton),
            ToWorker::SetBalloon { pages } => self.event(control, Event::Balloon { pages: *pages }),
            ToWorker::ReportBalloon => self.event(control, Event::ReportBalloon),
            ToWorker::Resize { port, columns, rows } => {
                self.event(control, Event::Resize { port: *port, columns: *columns, rows: *rows });
            }
            ToWorker::ReportCounters => {
                // A supervisor that does not read its socket gets no answer.
                let _ = control.send_message(&FromWorker::Counters(self.counters()), &[]);
            }
            ToWorker::Quiesce { number } => {
                // One that rests already says so again.
                self.rest = Rest::Soon(*number);
                self.device.quiesce();
                reach(Step::RestAsked);
            }
            ToWorker::Resume => self.resume(control),
            ToWorker::Quit => {
                self.device.finish(FINISH);
                return Err(End::Quit);
            }
            _ => return Err(End::Violation("a second grant".to_owned())),
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.wiring.tally.counters(self.served)
    }
}
