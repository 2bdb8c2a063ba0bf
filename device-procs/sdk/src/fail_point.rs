//! Steps of a worker's life at which a test has it end, as a kill at just that moment would end it.
//!
//! Only with the feature `fail-points`, which no shipped program has (`tests/layers`, `tests/e2e/tests/fail_points.rs`); without
//! it [`reach`] is nothing. A worker that has it carries a table in its binary, behind a mark and the steps' names, all zero:
//! a test writes into its own copy of the binary where each incarnation is to end. So nothing has to reach a jailed process.
//!
//! | bytes | the table |
//! |---|---|
//! | 0–23 | [`MARK`] |
//! | 24–535 | the incarnations' ends, little-endian: number of the step from 1 (low 16 bits; 0 = it lives), and at which visit, from 1 (high) |
//! | 536– | the steps' names in their order, each with a newline behind it; then a zero |

/// What the table begins with.
pub const MARK: &[u8; 24] = b"CELLBLOCK-FAIL-POINTS-1\n";
/// Incarnations that the table has room for; later ones live.
pub const INCARNATIONS: usize = 128;
/// The exit status of a worker that ended at its step.
pub const STATUS: i32 = 86;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A step; what is written of it is what was done by then.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[$doc])* $name,)*
        }

        impl Step {
            /// All of them, in order.
            pub const ALL: &'static [Step] = &[$(Step::$name,)*];
            /// Their names, as in the table.
            pub const NAMES: &'static str = concat!($(stringify!($name), "\n",)*);
        }
    };
}

steps! {
    /// The grant came.
    Granted,
    /// The predecessor's state page was read.
    PageOpened,
    /// The device was built of what was granted, and its threads started.
    Built,
    /// A virtio device's registers are the predecessor's; no queue is served yet.
    RegistersRestored,
    /// One queue was handed to its thread, where the predecessor had left it.
    QueueResumed,
    /// The device has the predecessor's state.
    Restored,
    /// It was committed anew.
    FirstCommit,
    /// The sandbox is closed.
    Sealed,
    /// The supervisor was told that the worker serves.
    Ready,
    /// A request was taken from a lane.
    Received,
    /// The device has done it: register state in this process alone; what it gave to its threads may be outside already.
    Accessed,
    /// State and reply are committed.
    Committed,
    /// The reply is in the lane.
    Replied,
    /// What was put off until after the reply is done.
    Settled,
    /// The device has taken an event.
    EventTaken,
    /// The state after it is committed.
    EventCommitted,
    /// The register thread is about to sleep; whoever has a request rings.
    Sleeps,
    /// It was woken, and has handled nothing.
    Awake,
    /// A thread has found its order to serve a queue.
    OrderTaken,
    /// A chain was taken off the available ring.
    Popped,
    /// The record of requests in flight is about to be changed: each store of it.
    RecordStore,
    /// The requests of a batch are done, outside too; nothing says so yet.
    Done,
    /// The entries of a batch are in the used ring; its index is as before.
    UsedWritten,
    /// The driver can see them; the record cannot.
    UsedPublished,
    /// The record is as the used ring; the driver has no interrupt.
    Given,
    /// The cause of an interrupt can be read; the line was not raised.
    CauseNoted,
    /// The line was raised.
    Raised,
    /// A post's thread is about to sleep.
    PostSleeps,
    /// A queue was taken away from its post; who waits for that does not know.
    TakenAway,
    /// The device was asked to come to rest.
    RestAsked,
    /// A post rests; who asked for it does not know.
    PostRests,
    /// The device rests, and its state is committed.
    Rests,
    /// The supervisor was told so.
    RestTold,
    /// The device goes on, and has not looked yet at what came meanwhile.
    Resumed,
    /// The host's sink has bytes; the output still has them as waiting.
    SinkTook,
    /// Bytes that the guest has for good count as taken from the host's socket; they are still in it.
    SourceCounted,
}

/// Nothing: this build has no fail-points.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub(crate) fn reach(_step: Step) {}

/// Nothing: this build has no fail-points.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub(crate) fn arm(_generation: u32) {}

#[cfg(feature = "fail-points")]
pub(crate) use armed::{arm, reach};

#[cfg(feature = "fail-points")]
mod armed {
    use std::hint::black_box;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{INCARNATIONS, MARK, STATUS, Step};

    const NAMES: usize = Step::NAMES.len() + 1;

    #[repr(C)]
    struct Table {
        mark: [u8; 24],
        ends: [AtomicU32; INCARNATIONS],
        names: [u8; NAMES],
    }

    static TABLE: Table =
        Table { mark: *MARK, ends: [const { AtomicU32::new(0) }; INCARNATIONS], names: names() };
    /// This incarnation's end.
    static END: AtomicU32 = AtomicU32::new(0);
    static VISITS: AtomicU32 = AtomicU32::new(0);

    const fn names() -> [u8; NAMES] {
        let (mut names, from) = ([0; NAMES], Step::NAMES.as_bytes());
        let mut at = 0;
        while at < from.len() {
            names[at] = from[at];
            at += 1;
        }
        names
    }

    /// This is incarnation `generation`, from 1.
    pub(crate) fn arm(generation: u32) {
        // Whoever patches the binary is not seen by the compiler.
        let table = black_box(&TABLE);
        let end = (generation as usize).checked_sub(1).and_then(|index| table.ends.get(index));
        END.store(end.map_or(0, |end| u32::from_le(end.load(Ordering::Relaxed))), Ordering::Relaxed);
        // Each of its parts is there as long as it is used.
        black_box((&table.mark, &table.names));
    }

    /// `step` is done; the process ends if that is its end.
    pub(crate) fn reach(step: Step) {
        let end = END.load(Ordering::Relaxed);
        if end & 0xffff == step as u32 + 1 && VISITS.fetch_add(1, Ordering::Relaxed) + 1 == end >> 16 {
            // As by a kill, this thread does nothing more, and the others for some microseconds at most; nothing is cleaned up.
            std::process::exit(STATUS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Step;

    #[test]
    fn names_and_numbers_are_in_one_order() {
        let names: Vec<_> = Step::NAMES.lines().collect();
        assert_eq!(names.len(), Step::ALL.len());
        for (number, (step, name)) in Step::ALL.iter().zip(names).enumerate() {
            assert_eq!((*step as usize, format!("{step:?}").as_str()), (number, name));
        }
    }
}
