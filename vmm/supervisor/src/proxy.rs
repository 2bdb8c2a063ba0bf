//! A device, as a vCPU's thread sees it: one lane of the worker's ring, and what to make of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cellblock_channel::doorbell::Ringer;
use cellblock_channel::{KickWatch, Requester, clock};
use cellblock_ring::{Access, Outcome, Violation};
use cellblock_wire::slot::{Op, Reply};
use thiserror::Error;

/// One vCPU's way to one worker.
pub(crate) struct Proxy {
    requester: Requester,
    ringer: Arc<Ringer>,
    served: Arc<AtomicU64>,
    spin: Duration,
    deadline: Duration,
}

/// Why there is no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The vCPU was told to end.
    #[error("the vCPU was told to end")]
    Stopped,
    /// The worker is silent.
    #[error("no answer to {op} of {size} bytes at offset {offset:#x} of region {region} within {seconds} s")]
    Missed { op: &'static str, size: u8, offset: u64, region: u32, seconds: u64 },
    /// The worker wrote what no honest worker writes.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
}

impl Proxy {
    pub(crate) fn new(
        requester: Requester,
        ringer: Arc<Ringer>,
        served: Arc<AtomicU64>,
        spin: Duration,
        deadline: Duration,
    ) -> Self {
        Proxy { requester, ringer, served, spin, deadline }
    }

    /// Sends `access` and waits for the reply, at most until the deadline. A kick interrupts the wait: then `stopped` is
    /// asked whether to give up.
    pub(crate) fn access(
        &mut self,
        access: &Access,
        kicks: &mut KickWatch,
        mut stopped: impl FnMut() -> bool,
    ) -> Result<Reply, NoAnswer> {
        let deadline = clock::deadline_in(self.deadline);
        if self.requester.post(access) {
            self.ringer.ring();
        }
        loop {
            match self.requester.wait(kicks, self.spin, deadline)? {
                Outcome::Replied(reply) => {
                    // SYNC POINT: none; a count for people, no other memory hangs on it.
                    self.served.fetch_add(1, Ordering::Relaxed);
                    return Ok(reply);
                }
                Outcome::Kicked if stopped() => return Err(NoAnswer::Stopped),
                Outcome::Kicked => {}
                Outcome::Deadline => {
                    return Err(NoAnswer::Missed {
                        op: match access.op {
                            Op::Read => "a read",
                            Op::Write => "a write",
                        },
                        size: access.size,
                        offset: access.offset,
                        region: access.region,
                        seconds: self.deadline.as_secs(),
                    });
                }
            }
        }
    }
}
