//! A device, as a vCPU's thread sees it: one lane of the worker's ring, and what to make of its answers.

use std::sync::Arc;
use std::time::Duration;

use cellblock_channel::doorbell::Ringer;
use cellblock_channel::memory::{Mapping, ReadOnly, Writable};
use cellblock_channel::{KickWatch, RegisterPage, Requester, clock};
use cellblock_ring::{Access, Deadline, Outcome, Succeeding, Succession, Violation};
use cellblock_wire::device::DeviceKind;
use cellblock_wire::slot::{Action, Op, Reply, Request, mask};

use crate::exits::Exits;
use crate::pace::{Means, Pace, Way};
use crate::plan::CauseRegisters;
use crate::shadow::{Before, Shadow};

/// After the deadline a vCPU says that it still waits so many times in each span as long as the deadline.
const REMINDERS: u32 = 8;

/// A request on which so many workers died is not sent to another.
const POISONOUS: u32 = 2;

/// What of a device the supervisor answers itself: why it interrupted.
#[derive(Debug, Clone)]
pub(crate) struct CauseAnswers {
    pub registers: CauseRegisters,
    pub page: RegisterPage,
}

impl CauseAnswers {
    /// The answer to `access`, if it is to one of the two registers.
    fn answer(&self, access: &Access) -> Option<u64> {
        if access.region != 0 || access.size != 4 {
            return None;
        }
        match access.op {
            Op::Read if access.offset == self.registers.status => Some(self.page.get(access.offset).into()),
            Op::Write if access.offset == self.registers.acknowledge => {
                self.page.clear_bits(self.registers.status, access.data as u32);
                Some(0)
            }
            Op::Read | Op::Write => None,
        }
    }
}

/// One vCPU's way to one worker, and to its successors.
pub(crate) struct Proxy {
    causes: Option<CauseAnswers>,
    /// Where a virtio driver's writes are noted.
    shadow: Option<Arc<Shadow>>,
    requester: Requester,
    ringer: Arc<Ringer>,
    exits: Arc<Exits>,
    pace: Pace,
    /// How long one worker may take for one answer.
    patience: Duration,
    due: Deadline,
    /// How many workers have died since they took the outstanding request.
    died: u32,
    /// What the shadow held before the outstanding request.
    before: Option<Before>,
    /// The answer, if it came otherwise than by the ring.
    settled: Option<Reply>,
    /// Nobody is asked any more: that counts as this incarnation.
    left: Option<u32>,
    /// What the device may have the VM do.
    actions: &'static [Action],
}

/// What the worker of a device of `kind` may have the VM do.
pub(crate) const fn actions(kind: DeviceKind) -> &'static [Action] {
    match kind {
        DeviceKind::AcpiPower => &[Action::PowerOff, Action::Reset],
        DeviceKind::I8042 => &[Action::Reset],
        _ => &[],
    }
}

/// The rings of a device's new worker.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    pub requests: Mapping<Writable>,
    pub replies: Mapping<ReadOnly>,
    pub generation: u32,
    /// The worker before died, perhaps of what it was asked.
    pub died: bool,
    /// While it began with what the driver had written to its registers, and nobody killed it.
    pub fell: bool,
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The answer.
    Replied(Reply),
    /// Look at the commands, and wait again.
    Kicked,
    /// There is none in time. The vCPU waits on; what becomes of the worker is not its affair.
    Late,
}

impl Proxy {
    pub(crate) fn new(
        causes: Option<CauseAnswers>,
        requester: Requester,
        ringer: Arc<Ringer>,
        exits: Arc<Exits>,
        means: Means,
        patience: Duration,
    ) -> Self {
        let due = clock::deadline_in(patience);
        Proxy {
            causes,
            shadow: None,
            requester,
            ringer,
            exits,
            pace: Pace::new(means),
            patience,
            due,
            died: 0,
            before: None,
            settled: None,
            left: None,
            actions: &[],
        }
    }

    /// Its worker may ask for `actions`.
    #[must_use]
    pub(crate) fn allowing(self, actions: &'static [Action]) -> Self {
        Proxy { actions, ..self }
    }

    /// Whether its worker may ask for `action`.
    pub(crate) fn allows(&self, action: Action) -> bool {
        action == Action::None || self.actions.contains(&action)
    }

    /// Notes a virtio driver's writes in `shadow`.
    #[must_use]
    pub(crate) fn noting(self, shadow: Option<Arc<Shadow>>) -> Self {
        Proxy { shadow, ..self }
    }

    /// How many answers there have been.
    pub(crate) fn answers(&self) -> u64 {
        self.exits.count()
    }

    /// The incarnation that is asked.
    pub(crate) fn generation(&self) -> u32 {
        self.left.unwrap_or(self.requester.generation())
    }

    /// Sends `access`.
    pub(crate) fn post(&mut self, access: &Access) {
        (self.died, self.before, self.settled) = (0, None, None);
        if let Some(data) = self.causes.as_ref().and_then(|causes| causes.answer(access)) {
            self.settled = Some(Reply { sequence: 0, generation: 0, action: Action::None, data });
            return;
        }
        if let Some(shadow) = &self.shadow {
            self.before = shadow.note(access);
        }
        if self.left.is_some() {
            self.settled = Some(floating(0, 0, access.size));
            return;
        }
        self.requester.set_home(self.pace.home());
        let ring = self.requester.post(access);
        // A worker that spins is at work already.
        let now = clock::now();
        self.pace.posted(ring, self.requester.stance(), now);
        // Before it can die of it, if it sleeps.
        self.exits.sent(access, now);
        if ring {
            self.ringer.ring();
        }
        self.due = Deadline::at(now.saturating_add(self.patience.as_nanos() as u64));
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Errors
    /// The worker wrote what no honest one writes: it is not to be waited for any longer.
    pub(crate) fn wait(&mut self, kicks: &mut KickWatch) -> Result<Waited, Violation> {
        if let Some(reply) = self.settled.take() {
            return Ok(Waited::Replied(reply));
        }
        for turn in 0..self.pace.turns() {
            // Woken, it may have had one already.
            if turn > 0 || !self.requester.is_answered() {
                self.pace.give_turn();
            }
            if let Some(reply) = self.requester.poll()? {
                self.pace.replied(Way::Turns);
                self.exits.answered(reply.data);
                return Ok(Waited::Replied(reply));
            }
            if kicks.take() {
                self.pace.interrupted();
                return Ok(Waited::Kicked);
            }
            if self.pace.turns_are_long() {
                break;
            }
        }
        match self.requester.wait(kicks, self.pace.spin(), self.due)? {
            Outcome::Replied(reply) => {
                self.pace.replied(if self.requester.slept() { Way::Sleep } else { Way::Spin });
                self.exits.answered(reply.data);
                Ok(Waited::Replied(reply))
            }
            Outcome::Kicked => {
                self.pace.interrupted();
                Ok(Waited::Kicked)
            }
            Outcome::Deadline => {
                self.pace.interrupted();
                self.due = clock::deadline_in(self.patience / REMINDERS);
                Ok(Waited::Late)
            }
        }
    }

    /// Goes on with `successor`; the worker before it is gone. What was sent is sent again, unless it was answered at the
    /// last moment or is poison: that is told by `true`, and reads as all ones, or is a write that was dropped.
    pub(crate) fn succeed(&mut self, successor: Successor) -> bool {
        self.left = None;
        self.pace.succeeded();
        let Successor { requests, replies, generation, died, fell } = successor;
        let poison = died && self.is_poison(fell);
        match self.requester.succeed(requests, replies, generation) {
            Ok(Succession::Answered(reply)) => self.settled = Some(reply),
            Ok(Succession::Idle) => {}
            Ok(Succession::Reposted { ring }) => {
                self.due = clock::deadline_in(self.patience);
                if ring {
                    self.ringer.ring();
                }
            }
            // It has written before it was asked: the next wait finds that, and it is replaced in its turn.
            Err(Succeeding::Leftover { answered, .. }) => self.settled = answered,
            // Its memory is of the right size, for we made it.
            Err(_) => {}
        }
        poison
    }

    /// Whether nobody answers.
    pub(crate) const fn is_left(&self) -> bool {
        self.left.is_some()
    }

    /// Nobody answers any more, which counts as incarnation `generation`. What was sent is settled, as all that comes will be.
    pub(crate) fn leave(&mut self, generation: u32) {
        self.left = Some(generation);
        if let Some(request) = self.requester.abandon() {
            self.settled = Some(dropped(&request));
        }
    }

    /// Counts a death, if it may be the request's doing; one that caused too many is settled, if it was not answered after all.
    ///
    /// A write that the shadow notes is told to a successor that has no state before that is asked anything, so one that `fell` right
    /// then may have ended on it, too.
    fn is_poison(&mut self, fell: bool) -> bool {
        let told = fell && self.died > 0 && self.before.is_some();
        if !self.requester.is_taken() && !told {
            return false;
        }
        self.died += 1;
        if self.died < POISONOUS {
            return false;
        }
        match self.requester.poll() {
            Ok(Some(reply)) => {
                self.settled = Some(reply);
                false
            }
            Ok(None) | Err(_) => {
                self.settled = self.requester.abandon().map(|request| dropped(&request));
                if let (Some(shadow), Some(before)) = (&self.shadow, self.before.take()) {
                    shadow.take_back(&before);
                }
                true
            }
        }
    }

    /// What was sent and is not answered yet, for people.
    pub(crate) fn outstanding(&self) -> String {
        let Some(Request { op, size, offset, region, .. }) = self.requester.outstanding() else {
            return "nothing".to_owned();
        };
        let op = if *op == Op::Write { "a write" } else { "a read" };
        format!("{op} of {size} bytes at offset {offset:#x} of region {region}")
    }
}

/// Nobody has answered `request`, and nobody will: the bus floats high.
fn dropped(request: &Request) -> Reply {
    floating(request.sequence, request.generation, request.size)
}

fn floating(sequence: u32, generation: u32, size: u8) -> Reply {
    Reply { sequence, generation, action: Action::None, data: mask(u64::MAX, size) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::{Responder, doorbell, memory, register_page};
    use cellblock_ring::layout;
    use cellblock_wire::slot::Space;

    /// A write of which every worker dies, first as it takes it, then as it is told of it by the shadow: the second death ends it,
    /// and those after it are not told any more.
    #[test]
    fn a_write_that_no_worker_survives_is_dropped_and_not_told_again() {
        let requests = memory::create_requests("test", memory::bytes(layout::request_words(1))).unwrap();
        let replies = || memory::create_replies("test", memory::bytes(layout::reply_words(1))).unwrap();
        let first = replies();
        let shadow = Arc::new(Shadow::new(1));
        let requester = Requester::new(requests.map.clone(), first.map.clone(), 0, 1).unwrap();
        let (ringer, _bell) = doorbell::pair().unwrap();
        let proxy =
            Proxy::new(None, requester, Arc::new(ringer), Arc::default(), Means::default(), Duration::MAX);
        let mut proxy = proxy.noting(Some(Arc::clone(&shadow)));
        let access = Access { space: Space::Mmio, op: Op::Write, size: 4, region: 0, offset: 0x70, data: 1 };
        let succeed = |proxy: &mut Proxy, generation, fell| {
            let (requests, replies) = (requests.map.clone(), replies().map);
            proxy.succeed(Successor { requests, replies, generation, died: true, fell })
        };
        proxy.post(&access);
        let there = memory::open_read(&requests.fd, memory::bytes(layout::request_words(1))).unwrap();
        let back = memory::open_write(&first.fd, memory::bytes(layout::reply_words(1))).unwrap();
        let mut responder = Responder::new(there, back, 1, 1).unwrap();
        assert!(responder.next().is_some());
        assert!(!succeed(&mut proxy, 2, true), "one death");
        assert!(!succeed(&mut proxy, 3, false), "somebody killed it");
        assert_eq!(shadow.read().status, 1, "it may have been done");
        assert!(succeed(&mut proxy, 4, true));
        assert_eq!(shadow.read().status, 0);
        let (_kick, mut kicks) = cellblock_channel::kick();
        assert!(matches!(proxy.wait(&mut kicks), Ok(Waited::Replied(_))));
    }

    #[test]
    fn the_cause_of_an_interrupt_is_told_without_asking_the_worker() {
        let memory = memory::create_shared("registers", register_page::BYTES).unwrap();
        let worker = RegisterPage::new(memory::open_write(&memory.fd, register_page::BYTES).unwrap());
        let registers = CauseRegisters { status: 0x60, acknowledge: 0x64, lasting: 1 };
        let answers = CauseAnswers { registers, page: RegisterPage::new(memory.map) };
        let access = |op, offset, data| Access { space: Space::Mmio, op, size: 4, region: 0, offset, data };
        let status = || answers.answer(&access(Op::Read, 0x60, 0));
        assert_eq!(status(), Some(0));
        worker.set_bits(0x60, 3);
        assert_eq!((status(), worker.get(0x60)), (Some(3), 3));
        assert_eq!(answers.answer(&access(Op::Write, 0x64, 2)), Some(0));
        assert_eq!((status(), worker.get(0x60)), (Some(1), 1));
        // All else is the worker's.
        for (op, offset) in [(Op::Write, 0x60), (Op::Read, 0x64), (Op::Read, 0x70)] {
            assert_eq!(answers.answer(&access(op, offset, 0)), None);
        }
        let odd = [
            Access { size: 2, ..access(Op::Read, 0x60, 0) },
            Access { region: 1, ..access(Op::Read, 0x60, 0) },
        ];
        assert!(odd.iter().all(|access| answers.answer(access).is_none()));
    }
}
