//! The supervisor's side of one lane.

use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::Duration;

use cellblock_wire::slot::{self, Op, Reply, Request, Space};

use crate::kick::KickWatch;
use crate::layout;
use crate::stance::Stance;
use crate::violation::{TooSmall, Violation};
use crate::words::{Deadline, Slept, Wait, WordsMut};

/// How many looks at the reply go between two looks at the clock while spinning: a look takes some 5 ns with its hint to
/// the CPU, the clock some 25 ns.
const LOOKS_PER_CLOCK: u32 = 32;

/// A guest's access to one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Address space.
    pub space: Space,
    /// Direction.
    pub op: Op,
    /// Width in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Which of the device's regions.
    pub region: u32,
    /// Byte offset in the region.
    pub offset: u64,
    /// What a write writes, little-endian in the low `size` bytes; zero for a read.
    pub data: u64,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker has answered; the lane is free.
    Replied(Reply),
    /// The kick word was bumped; the request is still outstanding.
    Kicked,
    /// The deadline has passed; the request is still outstanding.
    Deadline,
}

/// What became of the outstanding request when a successor took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// None was outstanding.
    Idle,
    /// The old worker had answered before it died; the lane is free.
    Answered(Reply),
    /// It was sent again, with the same sequence and the new generation.
    Reposted {
        /// Ring the successor's doorbell.
        ring: bool,
    },
}

/// The supervisor's side of one lane: one per (vCPU, worker), owned by the vCPU's thread.
///
/// `Q` is the requests' memory, which only the supervisor writes; `R` the replies', which only the worker writes.
#[derive(Debug)]
pub struct Requester<Q, R> {
    requests: Q,
    replies: R,
    lane: u32,
    generation: u32,
    /// The last sequence posted.
    sequence: u32,
    /// The request that waits for its reply.
    outstanding: Option<Request>,
    /// Word 0 of the last reply accepted (or of fresh memory): while it is there, the answer is "not yet".
    previous: u64,
    /// Where the worker is asked to wait for the next request, as the slot says it.
    home: u32,
    /// The last wait came to sleep.
    slept: bool,
}

impl<Q: WordsMut, R: Wait> Requester<Q, R> {
    /// The supervisor's side of `lane`, for the worker's incarnation `generation`, over fresh (zeroed) memory.
    ///
    /// # Errors
    /// One of the memories does not hold the lane.
    pub fn new(requests: Q, replies: R, lane: u32, generation: u32) -> Result<Self, TooSmall> {
        check_sizes(&requests, &replies, lane)?;
        Ok(Requester {
            requests,
            replies,
            lane,
            generation,
            sequence: 0,
            outstanding: None,
            previous: 0,
            home: 0,
            slept: false,
        })
    }

    /// Goes on after `sequence`, as a restored VM does. Only before the first post.
    #[must_use]
    pub fn continuing_after(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// The incarnation that is asked.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The request that waits for its reply.
    pub const fn outstanding(&self) -> Option<&Request> {
        self.outstanding.as_ref()
    }

    /// Whether the worker says that it has taken the outstanding request. It may lie, and so only hurt itself.
    pub fn is_taken(&self) -> bool {
        let mark = self.outstanding.map(|request| layout::taken_mark(self.lane, request.sequence));
        mark == Some(self.replies.load(layout::TAKEN))
    }

    /// From the next post on the worker is asked to sleep on `cpu`, `None` = wherever. It does, if it may use that CPU.
    pub const fn set_home(&mut self, cpu: Option<u32>) {
        self.home = match cpu {
            Some(cpu) => cpu.saturating_add(1),
            None => 0,
        };
    }

    /// Where the worker says that it waits for requests. It may lie: wait for it in no way that is not bearable.
    pub fn stance(&self) -> Stance {
        Stance::decode(self.replies.load(layout::STANCE))
    }

    /// Whether the last wait came to sleep.
    pub const fn slept(&self) -> bool {
        self.slept
    }

    /// Whether there is something to [`poll`](Self::poll) for, an answer or a violation.
    pub fn is_answered(&self) -> bool {
        self.replies.load(layout::reply_slot(self.lane)) != self.previous
    }

    /// Publishes `access` to the worker. `true` = the worker sleeps: ring its doorbell.
    ///
    /// A request still outstanding is forgotten, and a late answer to it becomes a violation: do that only if its worker
    /// is gone.
    #[must_use = "if true the doorbell must be rung, or the worker sleeps on"]
    pub fn post(&mut self, access: &Access) -> bool {
        self.sequence = slot::next_sequence(self.sequence);
        let Access { space, op, size, region, offset, data } = *access;
        self.publish(Request {
            sequence: self.sequence,
            generation: self.generation,
            space,
            op,
            size,
            region,
            offset,
            data: slot::mask(data, size),
        })
    }

    /// Looks for the reply once, without waiting. `None` = not yet, or nothing is outstanding.
    ///
    /// # Errors
    /// The worker wrote what no honest one does; the request stays outstanding.
    pub fn poll(&mut self) -> Result<Option<Reply>, Violation> {
        let Some(request) = self.outstanding else { return Ok(None) };
        let base = layout::reply_slot(self.lane);
        let stamp = self.replies.load(base);
        if stamp == self.previous {
            return Ok(None);
        }
        self.check_stamp(stamp, &request)?;
        // SYNC POINT: pairs with the Release store of the stamp in `Responder::reply`; the reply's other words are
        // those that were written before the stamp.
        R::fence(Acquire);
        let words = [stamp, self.replies.load(base + 1), self.replies.load(base + 2), 0];
        let mut reply = Reply::decode(&words).map_err(|error| Violation::Slot { lane: self.lane, error })?;
        reply.data = match request.op {
            Op::Read => slot::mask(reply.data, request.size),
            Op::Write => 0,
        };
        self.previous = stamp;
        self.outstanding = None;
        Ok(Some(reply))
    }

    /// Waits for the reply: spins for up to `spin` (zero = not at all), then sleeps until the reply, a kick or `deadline`.
    /// A reply that is there goes before a kick; the kick then ends the next wait.
    ///
    /// # Errors
    /// As [`Requester::poll`].
    pub fn wait(
        &mut self,
        kicks: &mut KickWatch<R::Kick>,
        spin: Duration,
        deadline: Deadline,
    ) -> Result<Outcome, Violation> {
        self.slept = false;
        if let Some(outcome) = self.look(kicks)? {
            return Ok(outcome);
        }
        if !spin.is_zero()
            && let Some(outcome) = self.spin(kicks, spin, deadline)?
        {
            return Ok(outcome);
        }
        self.slept = true;
        self.requests.store(layout::waiting_flag(self.lane), 1);
        let outcome = self.sleep(kicks, deadline);
        self.requests.store(layout::waiting_flag(self.lane), 0);
        outcome
    }

    /// Hands the lane to a successor of incarnation `generation`, once the old process is truly gone. The memories may be
    /// the old ones or fresh; after a violation only fresh ones will do. An outstanding request is looked for once more,
    /// for the old worker may have answered it last, and is otherwise sent again with its old sequence, so that the
    /// successor can answer it from the committed reply.
    ///
    /// # Errors
    /// The reply memory is neither fresh nor as it was after the last accepted reply; the lane is unchanged but for an answer
    /// that was accepted.
    pub fn succeed(&mut self, requests: Q, replies: R, generation: u32) -> Result<Succession, Succeeding> {
        check_sizes(&requests, &replies, self.lane)?;
        // What a dead worker wrote wrongly no longer matters: its successor answers instead.
        let answered = self.poll().ok().flatten();
        let stamp = replies.load(layout::reply_slot(self.lane));
        let expected = self.previous;
        self.requests = requests;
        self.replies = replies;
        self.generation = generation;
        self.previous = if stamp == expected { stamp } else { 0 };
        if stamp != 0 && stamp != expected {
            // It is the successor's from here on, and what it wrote unasked is its violation when the next answer is looked for.
            let leftover = Violation::Leftover { lane: self.lane, value: stamp, expected };
            return Err(Succeeding::Leftover { violation: leftover, answered });
        }
        Ok(match (answered, self.outstanding) {
            (Some(reply), _) => Succession::Answered(reply),
            (None, None) => Succession::Idle,
            (None, Some(request)) => {
                Succession::Reposted { ring: self.publish(Request { generation, ..request }) }
            }
        })
    }

    /// Forgets the outstanding request, when it is completed otherwise (poison, a failed device) and its worker is gone.
    pub fn abandon(&mut self) -> Option<Request> {
        self.outstanding.take()
    }

    fn publish(&mut self, request: Request) -> bool {
        let base = layout::request_slot(self.lane);
        let mut words = request.encode();
        words[slot::HOME_WORD] = self.home.into();
        for (offset, word) in words.iter().enumerate().skip(1) {
            self.requests.store(base + offset, *word);
        }
        // SYNC POINT: pairs with the Acquire fence in `Responder::take`; the slot's other words come with the stamp.
        self.requests.publish(base, words[0]);
        self.outstanding = Some(request);
        // SYNC POINT: pairs with the SeqCst fence in `Responder::prepare_sleep`. Without it the flag could be read before
        // the stamp is visible: the worker sees no request and sleeps, we see no sleeper and do not ring.
        Q::fence(SeqCst);
        self.replies.load(layout::SLEEPING) != 0
    }

    fn check_stamp(&self, stamp: u64, request: &Request) -> Result<(), Violation> {
        let (lane, value, found) = (self.lane, stamp as u32, (stamp >> 32) as u32);
        if value != request.sequence {
            return Err(Violation::Sequence { lane, value, expected: request.sequence });
        }
        if found != request.generation {
            return Err(Violation::Generation { lane, value: found, expected: request.generation });
        }
        Ok(())
    }

    fn look(&mut self, kicks: &mut KickWatch<R::Kick>) -> Result<Option<Outcome>, Violation> {
        if let Some(reply) = self.poll()? {
            return Ok(Some(Outcome::Replied(reply)));
        }
        Ok(kicks.take().then_some(Outcome::Kicked))
    }

    fn spin(
        &mut self,
        kicks: &mut KickWatch<R::Kick>,
        spin: Duration,
        deadline: Deadline,
    ) -> Result<Option<Outcome>, Violation> {
        let spin = u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX);
        let end = Deadline::at(self.replies.now().saturating_add(spin)).min(deadline);
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                self.replies.relax();
                if let Some(outcome) = self.look(kicks)? {
                    return Ok(Some(outcome));
                }
            }
            if Deadline::at(self.replies.now()) >= end {
                return Ok(None);
            }
        }
    }

    /// Sleeps with the waiting flag raised; the caller raises and lowers it.
    fn sleep(&mut self, kicks: &mut KickWatch<R::Kick>, deadline: Deadline) -> Result<Outcome, Violation> {
        // SYNC POINT: pairs with the SeqCst fence in `Responder::reply`. Without it the look below could go before the flag is
        // visible: the worker sees no flag and does not wake us, we see no reply and sleep.
        Q::fence(SeqCst);
        loop {
            if let Some(outcome) = self.look(kicks)? {
                return Ok(outcome);
            }
            // The look saw `previous` in the reply word. Its low half always differs from the sequence awaited (see
            // `succeed`), so a reply that comes now makes futex_waitv return at once.
            let base = layout::reply_slot(self.lane);
            let slept = self.replies.wait(base, self.previous as u32, kicks.cell(), kicks.seen(), deadline);
            // The clock is looked at even if the kernel does not say that time is up: a worker that flips the word to and fro
            // keeps futex_waitv from sleeping, and so from timing out.
            if slept == Slept::TimedOut || Deadline::at(self.replies.now()) >= deadline {
                return Ok(self.look(kicks)?.unwrap_or(Outcome::Deadline));
            }
        }
    }
}

/// Why a successor cannot take a lane over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Succeeding {
    /// One of the memories does not hold the lane.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The old worker left something behind in the replies; try again with fresh memory.
    #[error("{violation}")]
    Leftover {
        /// What was found.
        violation: Violation,
        /// The answer that the old worker had given before; the lane is then free.
        answered: Option<Reply>,
    },
}

fn check_sizes(requests: &impl WordsMut, replies: &impl Wait, lane: u32) -> Result<(), TooSmall> {
    let lanes = lane.saturating_add(1);
    TooSmall::check("requests", requests.len(), layout::request_words(lanes))?;
    TooSmall::check("replies", replies.len(), layout::reply_words(lanes))
}
