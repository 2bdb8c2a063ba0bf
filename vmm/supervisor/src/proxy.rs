//! A device, as a vCPU's thread sees it: one lane of the worker's ring, and what to make of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cellblock_channel::doorbell::Ringer;
use cellblock_channel::memory::{Mapping, ReadOnly, Writable};
use cellblock_channel::{KickWatch, Requester, clock};
use cellblock_ring::{Access, Deadline, Outcome, Succession, Violation};
use cellblock_wire::slot::{Action, Op, Reply, Request, mask};
use thiserror::Error;

/// A request on which so many workers died is not sent to another.
const POISONOUS: u32 = 2;

/// One vCPU's way to one worker, and to its successors.
pub(crate) struct Proxy {
    requester: Requester,
    ringer: Arc<Ringer>,
    served: Arc<AtomicU64>,
    spin: Duration,
    /// How long one worker may take for one answer.
    patience: Duration,
    due: Deadline,
    /// How many workers have died with the outstanding request.
    died: u32,
    /// The answer, if it came otherwise than by the ring.
    settled: Option<Reply>,
}

/// The rings of a device's new worker.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    pub requests: Mapping<Writable>,
    pub replies: Mapping<ReadOnly>,
    pub generation: u32,
}

/// Why a worker is not to be waited for any longer.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is silent.
    #[error("no answer to {request} within {seconds} s")]
    Missed { request: String, seconds: u64 },
    /// It wrote what no honest worker writes.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
}

impl Proxy {
    pub(crate) fn new(
        requester: Requester,
        ringer: Arc<Ringer>,
        served: Arc<AtomicU64>,
        spin: Duration,
        patience: Duration,
    ) -> Self {
        let due = clock::deadline_in(patience);
        Proxy { requester, ringer, served, spin, patience, due, died: 0, settled: None }
    }

    /// The incarnation that is asked.
    pub(crate) fn generation(&self) -> u32 {
        self.requester.generation()
    }

    /// Sends `access`.
    pub(crate) fn post(&mut self, access: &Access) {
        (self.died, self.settled) = (0, None);
        self.due = clock::deadline_in(self.patience);
        if self.requester.post(access) {
            self.ringer.ring();
        }
    }

    /// Waits for the answer to what was sent. `None` = kicked: look at the commands, and wait again.
    pub(crate) fn wait(&mut self, kicks: &mut KickWatch) -> Result<Option<Reply>, Trouble> {
        if let Some(reply) = self.settled.take() {
            return Ok(Some(reply));
        }
        match self.requester.wait(kicks, self.spin, self.due)? {
            Outcome::Replied(reply) => {
                // SYNC POINT: none; a count for people, no other memory hangs on it.
                self.served.fetch_add(1, Ordering::Relaxed);
                Ok(Some(reply))
            }
            Outcome::Kicked => Ok(None),
            Outcome::Deadline => {
                Err(Trouble::Missed { request: self.outstanding(), seconds: self.patience.as_secs() })
            }
        }
    }

    /// Goes on with `successor`; the worker before it is gone. What was sent is sent again, unless it was answered at the
    /// last moment or is poison: that is told by `true`, and reads as all ones, or is a write that was dropped.
    pub(crate) fn succeed(&mut self, successor: Successor) -> bool {
        let poison = self.is_poison();
        let Successor { requests, replies, generation } = successor;
        match self.requester.succeed(requests, replies, generation) {
            Ok(Succession::Answered(reply)) => self.settled = Some(reply),
            Ok(Succession::Idle) => {}
            Ok(Succession::Reposted { ring }) => {
                self.due = clock::deadline_in(self.patience);
                if ring {
                    self.ringer.ring();
                }
            }
            // The successor's memory is fresh and of the right size; if it were not, the deadline would tell.
            Err(_) => {}
        }
        poison
    }

    /// Counts a death; the request that caused too many is settled, if it was not answered after all.
    fn is_poison(&mut self) -> bool {
        if self.requester.outstanding().is_none() {
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
    let Request { sequence, generation, size, .. } = *request;
    Reply { sequence, generation, action: Action::None, data: mask(u64::MAX, size) }
}
