//! The worker's side of all lanes.

use std::sync::atomic::Ordering::{Acquire, SeqCst};

use cellblock_wire::slot::{Action, HOME_WORD, REQUEST_WORDS, Reply, Request, SlotError};

use crate::layout;
use crate::stance::Stance;
use crate::violation::TooSmall;
use crate::words::{Wake, Words, WordsMut};

/// Which lane a request came by: the vCPU's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(u32);

impl LaneId {
    /// Lane number `index`, from 0.
    pub const fn new(index: u32) -> LaneId {
        LaneId(index)
    }

    /// Its number, from 0.
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// The reply to `request`, with its sequence and generation.
pub const fn answer(request: &Request, action: Action, data: u64) -> Reply {
    Reply { sequence: request.sequence, generation: request.generation, action, data }
}

/// The worker's side of all lanes, owned by its register thread.
///
/// `Q` is the requests' memory, read-only here; `R` the replies', which only the worker writes.
#[derive(Debug)]
pub struct Responder<Q, R> {
    requests: Q,
    replies: R,
    generation: u32,
    /// Per lane, word 0 of the last request taken.
    taken: Vec<u64>,
    /// The lane to look at first, so that no vCPU starves another.
    turn: u32,
    /// The hint of the last request taken.
    home: u32,
}

impl<Q: Words, R: WordsMut + Wake> Responder<Q, R> {
    /// The worker's side of `lanes` lanes, as incarnation `generation`. Requests of other incarnations are ignored.
    ///
    /// # Errors
    /// One of the memories does not hold the lanes.
    pub fn new(requests: Q, replies: R, lanes: u32, generation: u32) -> Result<Self, TooSmall> {
        TooSmall::check("requests", requests.len(), layout::request_words(lanes))?;
        TooSmall::check("replies", replies.len(), layout::reply_words(lanes))?;
        // A predecessor that died asleep left its flag up.
        replies.store(layout::SLEEPING, 0);
        replies.store(layout::STANCE, Stance::Anywhere.encode());
        Ok(Responder { requests, replies, generation, taken: vec![0; lanes as usize], turn: 0, home: 0 })
    }

    /// The next request, lanes taking turns; `None` = none is there. Each is returned once.
    ///
    /// An `Err` item is a request that does not decode: report it and go on, its lane stays unanswered.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would borrow the responder while it must reply"
    )]
    pub fn next(&mut self) -> Option<Result<(LaneId, Request), SlotError>> {
        let lanes = self.taken.len() as u32;
        for step in 0..lanes {
            let lane = (self.turn + step) % lanes;
            if let Some(request) = self.take(lane) {
                self.turn = (lane + 1) % lanes;
                return Some(request.map(|request| (LaneId(lane), request)));
            }
        }
        None
    }

    /// Publishes `reply` in `lane`, and wakes the vCPU's thread if it sleeps. Commit the state page first. Nothing happens
    /// for a lane that this responder does not have.
    pub fn reply(&mut self, lane: LaneId, reply: &Reply) {
        if lane.0 as usize >= self.taken.len() {
            return;
        }
        let base = layout::reply_slot(lane.0);
        let [stamp, action, data, _] = reply.encode();
        self.replies.store(base + 1, action);
        self.replies.store(base + 2, data);
        // SYNC POINT: pairs with the Acquire fence in `Requester::poll`; publishes the two words above.
        self.replies.publish(base, stamp);
        // SYNC POINT: pairs with the SeqCst fence in `Requester::sleep`. Without it the flag could be read before the stamp is
        // visible: the vCPU's thread sees no reply and sleeps, we see no flag and do not wake it.
        R::fence(SeqCst);
        if self.requests.load(layout::waiting_flag(lane.0)) != 0 {
            self.replies.wake(base);
        }
    }

    /// On which CPU the last request taken asked to wait for the next one; `None` = wherever.
    pub const fn home(&self) -> Option<u32> {
        self.home.checked_sub(1)
    }

    /// Announces where the register thread waits for requests from now on. Nothing hangs on when the supervisor sees it.
    pub fn announce(&mut self, stance: Stance) {
        self.replies.store(layout::STANCE, stance.encode());
    }

    /// Announces that the register thread is about to sleep on its doorbell. `false` = a request has come: do not sleep
    /// (the announcement is taken back). After a `true`, call [`Responder::awake`] when the sleep is over.
    #[must_use = "sleeping without permission loses a wake-up"]
    pub fn prepare_sleep(&mut self) -> bool {
        self.replies.store(layout::SLEEPING, 1);
        // SYNC POINT: pairs with the SeqCst fence in `Requester::publish`. Without it the look below could go before the flag is
        // visible: the supervisor sees no sleeper and does not ring, we see no request and sleep.
        R::fence(SeqCst);
        if self.work_waits() {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back: no doorbell is needed now. Look with [`Responder::next`] after this, and
    /// after the doorbell was silenced.
    pub fn awake(&mut self) {
        self.replies.store(layout::SLEEPING, 0);
    }

    fn work_waits(&self) -> bool {
        (0..self.taken.len() as u32)
            .any(|lane| self.is_new(lane, self.requests.load(layout::request_slot(lane))))
    }

    fn is_new(&self, lane: u32, stamp: u64) -> bool {
        stamp as u32 != 0 && (stamp >> 32) as u32 == self.generation && stamp != self.taken[lane as usize]
    }

    fn take(&mut self, lane: u32) -> Option<Result<Request, SlotError>> {
        let base = layout::request_slot(lane);
        let stamp = self.requests.load(base);
        if !self.is_new(lane, stamp) {
            return None;
        }
        // SYNC POINT: pairs with the Release store of the stamp in `Requester::publish`; the slot's other words are those
        // that were written before the stamp.
        Q::fence(Acquire);
        self.taken[lane as usize] = stamp;
        // Before anything is done about it; nothing else hangs on the order.
        self.replies.store(layout::TAKEN, layout::taken_mark(lane, stamp as u32));
        let mut words = [0; REQUEST_WORDS];
        words[0] = stamp;
        for (offset, word) in words.iter_mut().enumerate().take(4).skip(1) {
            *word = self.requests.load(base + offset);
        }
        self.home = self.requests.load(base + HOME_WORD) as u32;
        Some(Request::decode(&words))
    }
}
