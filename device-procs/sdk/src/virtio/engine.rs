//! Who serves the queues. A device is a few posts, each a [`Work`] with the queues and descriptors that it looks after; an
//! [`Engine`] gives each post its turns: [`Inline`](super::inline::Inline) on the caller's thread,
//! [`Threads`](super::threads::Threads) each on one of its own.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use super::chain::Chain;
use super::inflight::Region;
use super::interrupt::Interrupt;
use super::queue::{QueueError, Virtqueue};
use crate::host::Traffic;

/// The most descriptors that one post may wait for beside its queues: two for each port of a console, and some.
pub const MAX_SOURCES: usize = 16;
/// A request during which so many workers have ended is not tried again.
const POISONOUS: u8 = 2;
/// Requests that [`OneByOne`] serves in one turn.
const TURN: usize = 64;

/// What one post does with its queues.
///
/// A queue is named by its slot: its position among the post's queues.
pub trait Work {
    /// Queue `slot` is the driver's from now on, and these are the features that it agreed to.
    fn begin(&mut self, slot: usize, features: u64);

    /// Queue `slot` is taken away (a reset, or the driver made it unready): every chain that is held of it is forgotten.
    fn end(&mut self, slot: usize);

    /// Does what there is to do, bounded and without blocking, and says what to wait for. Called after [`begin`](Self::begin),
    /// after a kick, when a source is ready, when the time has come, and now and then for nothing; only while there is a queue.
    ///
    /// Who wants kicks of a queue calls its `listen` before it returns, and looks again if that says `true`.
    ///
    /// # Errors
    /// A queue makes no sense: all of the post's queues are taken away, and the device needs a reset.
    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError>;

    /// Whether its queues carry streams, where what is passed in a second may matter more than when the next buffer is.
    fn streams(&self) -> bool {
        false
    }
}

impl<W: Work + ?Sized> Work for Box<W> {
    fn begin(&mut self, slot: usize, features: u64) {
        (**self).begin(slot, features);
    }

    fn end(&mut self, slot: usize) {
        (**self).end(slot);
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        (**self).work(queues)
    }

    fn streams(&self) -> bool {
        (**self).streams()
    }
}

/// What a post waits for; kicks of its queues end every wait. The default is to wait for kicks alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait {
    /// A bit for each source: until it can be read, or has come to its end.
    pub readable: u32,
    /// A bit for each source: until it can be written, or nobody reads it any more.
    pub writable: u32,
    /// Until then, as `Clock::monotonic`. May be a millisecond late.
    pub until: Option<u64>,
    /// Not at all: there is more to do.
    pub again: bool,
}

impl Wait {
    /// There is more to do.
    pub fn again() -> Self {
        Wait { again: true, ..Wait::default() }
    }

    /// Until `time`, or a kick.
    pub fn until(time: u64) -> Self {
        Wait { until: Some(time), ..Wait::default() }
    }
}

/// A post's queues, as far as they are ready.
#[derive(Debug)]
pub struct Queues {
    slots: Vec<Slot>,
    interrupt: Interrupt,
    traffic: Arc<Traffic>,
    /// A bit for each source.
    ready: u32,
    /// The post is to rest, and keeps its queues.
    park: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Slot {
    number: u16,
    queue: Option<Virtqueue>,
    stop: Arc<AtomicBool>,
}

impl Queues {
    /// No queue is ready. For each slot: its queue's number, and what says that it is to be taken away.
    pub(super) fn new(slots: impl IntoIterator<Item = (u16, Arc<AtomicBool>)>, interrupt: Interrupt) -> Self {
        let slots = slots.into_iter().map(|(number, stop)| Slot { number, queue: None, stop }).collect();
        Queues { slots, interrupt, traffic: Arc::default(), ready: u32::MAX, park: Arc::default() }
    }

    /// `park` says that the post is to rest.
    #[must_use]
    pub(super) fn parked_by(self, park: Arc<AtomicBool>) -> Self {
        Queues { park, ..self }
    }

    /// What all their queues passed.
    pub(super) fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Queue `slot`, if it is ready.
    pub fn get(&mut self, slot: usize) -> Option<&mut Virtqueue> {
        self.slots.get_mut(slot)?.queue.as_mut()
    }

    /// Queues of the post, ready or not.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the post has none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether queue `slot` is about to be taken away, or the post to rest: nothing new should be begun in it, and the turn end
    /// soon. What is held is kept until [`Work::end`]; after a rest there is a turn in any case.
    pub fn stopping(&self, slot: usize) -> bool {
        // SYNC POINT: Acquire pairs with the Release in `Threads::stop` and `Threads::park`.
        self.park.load(Ordering::Acquire)
            || self.slots.get(slot).is_some_and(|slot| slot.stop.load(Ordering::Acquire))
    }

    /// Interrupts the driver, if it wants to know of what was pushed to queue `slot` since the last call.
    ///
    /// # Errors
    /// The queue makes no sense.
    pub fn signal(&mut self, slot: usize) -> Result<(), QueueError> {
        let Some(Slot { number, queue: Some(queue), .. }) = self.slots.get_mut(slot) else { return Ok(()) };
        if queue.wants_interrupt()? {
            self.interrupt.used_buffer_of(usize::from(*number));
        }
        Ok(())
    }

    /// As [`signal`](Self::signal) for several queues, with one interrupt for all of them where they share a line.
    ///
    /// # Errors
    /// A queue makes no sense.
    pub fn signal_all(&mut self, slots: &[usize]) -> Result<(), QueueError> {
        let mut numbers = SmallVec::<[u16; 4]>::new();
        for slot in slots {
            let Some(Slot { number, queue: Some(queue), .. }) = self.slots.get_mut(*slot) else { continue };
            if queue.wants_interrupt()? {
                numbers.push(*number);
            }
        }
        if !numbers.is_empty() {
            self.interrupt.used_buffers_of(&numbers);
        }
        Ok(())
    }

    /// Whether source `number` may be ready. `false` = it was waited for, and was not when the wait ended: to try it now is in
    /// vain, to wait for it again is not.
    pub fn source_ready(&self, number: u32) -> bool {
        self.ready.checked_shr(number).is_none_or(|bits| bits & 1 != 0)
    }

    pub(super) fn set_ready(&mut self, sources: u32) {
        self.ready = sources;
    }

    /// The device's interrupt, for changes of its configuration space.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Their numbers among the device's.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.slots.iter().map(|slot| slot.number).collect()
    }

    pub(super) fn any(&self) -> bool {
        self.slots.iter().any(|slot| slot.queue.is_some())
    }

    pub(super) fn put(&mut self, slot: usize, mut queue: Virtqueue) {
        queue.count_in(Arc::clone(&self.traffic));
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.queue = Some(queue);
        }
    }

    pub(super) fn take(&mut self, slot: usize) -> Option<Virtqueue> {
        self.slots.get_mut(slot)?.queue.take()
    }
}

/// Has the queues of a device served.
pub trait Engine {
    /// Serves queue `index` from now on, and first what is in it already. It is not being served.
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64);

    /// There may be something new in queue `index`.
    fn kick(&mut self, index: usize);

    /// Asks for the end of queue `index`'s service, at the next moment at which the post can.
    fn stop(&mut self, index: usize);

    /// Whether queue `index`'s memory may still be touched.
    fn busy(&self, index: usize) -> bool;

    /// Waits at most `limit` until queue `index` is not busy any more; whether it is not.
    fn settle(&self, index: usize, limit: Duration) -> bool;

    /// Gives the posts no turns any more, as soon as each has ended the one that it is at (`true`); or lets them go on, each with a
    /// turn (`false`). They keep their queues and what they hold; [`stop`](Self::stop) and [`start`](Self::start) work meanwhile.
    fn park(&mut self, park: bool);

    /// Whether no post has a turn now, nor will have one before `park(false)`.
    fn is_parked(&self) -> bool;

    /// Has queue `index` kicked by `kick`, too, from now on: an eventfd that stays open until [`deafen`](Self::deafen).
    ///
    /// # Errors
    /// It cannot be waited for, or this engine has nobody who waits.
    fn listen_to(&mut self, _index: usize, _kick: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends what [`listen_to`](Self::listen_to) began.
    fn deafen(&mut self, _index: usize, _kick: BorrowedFd<'_>) {}

    /// Something happened that is not a queue's: every post gets a turn, where that is not their own affair.
    fn nudge(&mut self) {}

    /// Where requests in flight in queue `index` are recorded, if they are.
    fn record(&self, _index: usize) -> Option<Region> {
        None
    }
}

/// Serves the requests of one queue, one after the other: each is answered before the next is begun.
pub trait Serve {
    /// The driver is ready, and these are the features that it agreed to.
    fn begin(&mut self, features: u64);

    /// Serves one request; returns how many bytes were written from the beginning of its writable part on.
    fn serve(&mut self, chain: &mut Chain<'_>) -> u32;

    /// Answers a request with an error, instead of serving it: workers have ended while they did. Returns as [`serve`](Self::serve).
    fn refuse(&mut self, _chain: &mut Chain<'_>) -> u32 {
        0
    }

    /// Before this time, as `Clock::monotonic`, no request may be begun. `None` once it has come.
    fn not_before(&self) -> Option<u64> {
        None
    }
}

/// A [`Serve`] at work on the one queue of its post.
#[derive(Debug)]
pub struct OneByOne<S>(pub S);

impl<S: Serve> Work for OneByOne<S> {
    fn begin(&mut self, _slot: usize, features: u64) {
        self.0.begin(features);
    }

    fn end(&mut self, _slot: usize) {}

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let Some(queue) = queues.get(0) else { return Ok(Wait::default()) };
        queue.silence()?;
        for _ in 0..TURN {
            if queues.stopping(0) {
                return Ok(Wait::default());
            }
            let Some(queue) = queues.get(0) else { break };
            if let Some(time) = self.0.not_before() {
                queue.count_limit(time);
                return Ok(Wait::until(time));
            }
            let Some(head) = queue.pop()? else {
                return Ok(Wait { again: queue.listen()?, ..Wait::default() });
            };
            let poisonous = queue.died() >= POISONOUS;
            let mut chain = queue.chain();
            let written = if poisonous {
                chain.fail();
                self.0.refuse(&mut chain)
            } else {
                self.0.serve(&mut chain)
            };
            if chain.is_failed() {
                queue.count_failure();
            }
            queue.push(head, written)?;
            queues.signal(0)?;
        }
        Ok(Wait::again())
    }
}
