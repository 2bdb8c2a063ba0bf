//! A thread for each post. KVM kicks it through an eventfd, and it raises the interrupt itself: the data path touches
//! neither the register thread nor the supervisor.
//!
//! A thread that waits for the kicks of one queue alone sleeps in a `read` of their eventfd, which costs least. Any other
//! sleeps in one `epoll_pwait` on all that its post waits for. Kicks are edges, which need no read to be silent; a
//! post's sources are levels, and in the set only while it waits for them (one that is not would end every wait by
//! `EPOLLHUP`).

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cellblock_channel::clock;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::engine::{Engine, MAX_SOURCES, Queues, Wait, Work};
use super::inflight::{Pages, Region};
use super::interrupt::Interrupt;
use super::queue::Virtqueue;
use super::waking::Wakes;
use crate::device::SECOND;
use crate::fail_point::{Step, reach};
use crate::host::{Crew, Traffic, WakeLine};

/// The longest sleep of a post that waits for a time: longer ones would take another system call.
const LONGEST_SLEEP: u64 = 3600 * SECOND;
/// As long as kicks cannot be waited for, for want of the kernel's memory, they are looked for so often.
const BLIND: u64 = SECOND / 1000;
/// What one wait tells of. It need not be all: the next tells of the rest.
const EVENTS: usize = 4;
/// What kicks tell of themselves; sources tell their number.
const KICK: u64 = u64::MAX;

/// A thread's work, the numbers of its queues, and what else it waits for: at most [`MAX_SOURCES`].
#[derive(Debug)]
pub struct Post<W> {
    /// What it does.
    pub work: W,
    /// Its queues; slot 0 is the first of them.
    pub queues: Vec<u16>,
    /// Descriptors; bit 0 of a [`Wait`] is the first of them.
    pub sources: Vec<Arc<OwnedFd>>,
}

/// Wakes a post; clones wake the same one.
#[derive(Debug, Clone)]
pub struct Kicker(Option<Arc<OwnedFd>>);

impl Kicker {
    /// Wakes nobody.
    pub fn none() -> Self {
        Kicker(None)
    }

    /// Gives the post a turn. Never blocks.
    pub fn kick(&self) {
        if let Some(eventfd) = &self.0 {
            // Would take 2^64 kicks to block.
            let _ = rustix::io::write(&**eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// Where the register thread and a post's thread meet.
#[derive(Debug)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// For each slot: its service is to end.
    stops: Vec<Arc<AtomicBool>>,
    /// The post is to rest: for a turn that goes on for long.
    park: Arc<AtomicBool>,
    /// There is an order or a stop that the thread has not seen.
    news: AtomicBool,
}

/// What the register thread wants.
#[derive(Debug)]
struct Orders {
    slots: Vec<Order>,
    /// The post is to rest,
    park: bool,
    /// and does.
    parked: bool,
}

/// What the register thread wants of one slot.
#[derive(Debug, Default)]
struct Order {
    next: Option<(Virtqueue, u64)>,
    /// From the order until the queue is not touched any more.
    busy: bool,
}

impl Desk {
    fn new(slots: usize) -> Self {
        let orders = (0..slots).map(|_| Order::default()).collect();
        Desk {
            orders: Mutex::new(Orders { slots: orders, park: false, parked: false }),
            changed: Condvar::new(),
            stops: (0..slots).map(|_| Arc::default()).collect(),
            park: Arc::default(),
            news: AtomicBool::new(false),
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, slot: usize) -> bool {
        self.stops.get(slot).is_some_and(|stop| stop.load(Ordering::Acquire))
    }

    fn busy(&self, slot: usize) -> bool {
        self.orders().slots.get(slot).is_some_and(|order| order.busy)
    }

    /// Slot `slot` is not touched any more; whether it was busy.
    fn done(&self, slot: usize) -> bool {
        let mut orders = self.orders();
        // With a new order it is busy again already.
        let order = orders.slots.get_mut(slot).filter(|order| order.next.is_none());
        let busy = order.is_some_and(|order| std::mem::replace(&mut order.busy, false));
        drop(orders);
        self.changed.notify_all();
        busy
    }

    /// Has the post rest, or go on.
    fn park(&self, park: bool) {
        let mut orders = self.orders();
        // A thread that goes on says so itself when it rests again: not that it still does.
        (orders.park, orders.parked) = (park, orders.parked && park);
        // SYNC POINT: Release before the eventfd's write, as for a stop.
        self.park.store(park, Ordering::Release);
    }

    /// The thread is between two turns: whether it is to rest now, and whether that is news.
    fn rest(&self) -> (bool, bool) {
        let mut orders = self.orders();
        let news = orders.park && !orders.parked;
        orders.parked = orders.park;
        (orders.park, news)
    }
}

/// The threads of a device.
#[derive(Debug)]
pub struct Threads {
    seats: Vec<Seat>,
    pages: Option<Pages>,
}

/// A post's thread, as the register thread sees it.
#[derive(Debug)]
struct Seat {
    numbers: Vec<u16>,
    desk: Arc<Desk>,
    kicker: Kicker,
    /// Where the thread sleeps.
    epoll: Arc<OwnedFd>,
    /// Somebody else's eventfds have been in that set, too.
    guests: Arc<AtomicBool>,
    traffic: Arc<Traffic>,
}

impl Threads {
    /// Has `crew` start a thread for each of `posts`, with the eventfds of its queues' kicks. `wake` tells the register thread when a
    /// queue is not served any more.
    ///
    /// # Errors
    /// A thread or an epoll set cannot be made, a post has no queue or too many sources, or not as many kicks as queues.
    pub fn start<W: Work + Send + 'static>(
        crew: &mut Crew,
        posts: Vec<(Post<W>, Vec<OwnedFd>)>,
        interrupt: &Interrupt,
        wake: &WakeLine,
    ) -> io::Result<Threads> {
        let seat = |(number, (post, kicks))| Self::start_one(crew, number, post, kicks, interrupt, wake);
        let seats = posts.into_iter().enumerate().map(seat).collect::<io::Result<_>>()?;
        Ok(Threads { seats, pages: None })
    }

    /// Records requests in flight in `pages`.
    #[must_use]
    pub fn with_pages(mut self, pages: Option<Pages>) -> Self {
        self.pages = pages;
        self
    }

    fn start_one<W: Work + Send + 'static>(
        crew: &mut Crew,
        number: usize,
        post: Post<W>,
        kicks: Vec<OwnedFd>,
        interrupt: &Interrupt,
        wake: &WakeLine,
    ) -> io::Result<Seat> {
        let Post { work, queues: numbers, sources } = post;
        if sources.len() > MAX_SOURCES || kicks.is_empty() || kicks.len() != numbers.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let kicks: Vec<_> = kicks.into_iter().map(Arc::new).collect();
        let kicker = Kicker(kicks.first().cloned());
        let desk = Arc::new(Desk::new(numbers.len()));
        let sleep = Sleep::new(kicks, sources)?;
        let (epoll, guests) = (Arc::clone(&sleep.epoll), Arc::clone(&sleep.guests));
        let queues = Queues::new(numbers.iter().copied().zip(desk.stops.iter().cloned()), interrupt.clone())
            .parked_by(Arc::clone(&desk.park));
        let traffic = queues.traffic();
        let wakes = Wakes::new(Arc::clone(&traffic), work.streams());
        let thread = Thread {
            work,
            queues,
            desk: Arc::clone(&desk),
            sleep,
            wakes,
            interrupt: interrupt.clone(),
            wake: wake.clone(),
            parked: false,
        };
        crew.start(&format!("queue {number}"), move || thread.run())?;
        Ok(Seat { numbers, desk, kicker, epoll, guests, traffic })
    }

    /// What each post's queues passed.
    pub fn traffic(&self) -> impl Iterator<Item = Arc<Traffic>> {
        self.seats.iter().map(|seat| Arc::clone(&seat.traffic))
    }

    /// Wakes post `post`, from any thread.
    pub fn kicker(&self, post: usize) -> Kicker {
        self.seats.get(post).map_or_else(Kicker::none, |seat| seat.kicker.clone())
    }

    /// The seat and the slot of queue `index`.
    fn place(&self, index: usize) -> Option<(&Seat, usize)> {
        let slot = |seat: &Seat| seat.numbers.iter().position(|number| usize::from(*number) == index);
        self.seats.iter().find_map(|seat| Some((seat, slot(seat)?)))
    }
}

impl Engine for Threads {
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64) {
        let Some((seat, slot)) = self.place(index) else { return };
        if let Some(stop) = seat.desk.stops.get(slot) {
            stop.store(false, Ordering::Release);
        }
        if let Some(order) = seat.desk.orders().slots.get_mut(slot) {
            *order = Order { next: Some((queue, features)), busy: true };
        }
        seat.tell();
    }

    fn kick(&mut self, index: usize) {
        if let Some((seat, _)) = self.place(index) {
            seat.kicker.kick();
        }
    }

    fn listen_to(&mut self, index: usize, kick: BorrowedFd<'_>) -> io::Result<()> {
        let (seat, _) = self.place(index).ok_or(io::ErrorKind::InvalidInput)?;
        add_kick(&seat.epoll, kick)?;
        // SYNC POINT: Release before the eventfd's write, which ends the wait of a thread that did not see it.
        seat.guests.store(true, Ordering::Release);
        seat.kicker.kick();
        Ok(())
    }

    fn deafen(&mut self, index: usize, kick: BorrowedFd<'_>) {
        if let Some((seat, _)) = self.place(index) {
            let _ = epoll::delete(&*seat.epoll, kick);
        }
    }

    fn stop(&mut self, index: usize) {
        let Some((seat, slot)) = self.place(index).filter(|(seat, slot)| seat.desk.busy(*slot)) else {
            return;
        };
        if let Some(stop) = seat.desk.stops.get(slot) {
            // SYNC POINT: Release before the eventfd's write, which ends the wait of a thread that did not see it.
            stop.store(true, Ordering::Release);
        }
        seat.tell();
    }

    fn busy(&self, index: usize) -> bool {
        self.place(index).is_some_and(|(seat, slot)| seat.desk.busy(slot))
    }

    fn settle(&self, index: usize, limit: Duration) -> bool {
        let Some((seat, slot)) = self.place(index) else { return true };
        let end = Instant::now() + limit;
        let mut orders = seat.desk.orders();
        while orders.slots.get(slot).is_some_and(|order| order.busy) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let woken = seat.desk.changed.wait_timeout(orders, left);
            orders = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn park(&mut self, park: bool) {
        for seat in &self.seats {
            seat.desk.park(park);
            seat.tell();
        }
    }

    fn is_parked(&self) -> bool {
        self.seats.iter().all(|seat| seat.desk.orders().parked)
    }

    fn record(&self, index: usize) -> Option<Region> {
        self.pages.as_ref()?.region(index)
    }
}

impl Seat {
    fn tell(&self) {
        // SYNC POINT: pairs with the swap in `Thread::take_orders`; the order comes before, the eventfd's write after it.
        self.desk.news.store(true, Ordering::Release);
        self.kicker.kick();
    }
}

/// What a post's thread works with.
struct Thread<W> {
    work: W,
    queues: Queues,
    desk: Arc<Desk>,
    sleep: Sleep,
    wakes: Wakes,
    interrupt: Interrupt,
    wake: WakeLine,
    /// It rests: no turns.
    parked: bool,
}

impl<W: Work> Thread<W> {
    /// Works as ordered, for ever: ending a thread takes system calls that serving does not have.
    fn run(mut self) -> Infallible {
        loop {
            self.take_orders();
            let works = self.queues.any() && !self.parked;
            let wait = if works { self.turn() } else { Wait::default() };
            let wait = self.wakes.turned(wait);
            reach(Step::PostSleeps);
            let ready = self.sleep.until(&wait);
            // A source that was not waited for may be ready.
            self.queues.set_ready(if works { ready } else { u32::MAX });
        }
    }

    fn take_orders(&mut self) {
        if !self.desk.news.swap(false, Ordering::AcqRel) {
            return;
        }
        for slot in 0..self.queues.len() {
            let next = self.desk.orders().slots.get_mut(slot).and_then(|order| order.next.take());
            if self.desk.stopped(slot) {
                self.take_away(slot);
            } else if let Some((queue, features)) = next {
                reach(Step::OrderTaken);
                self.work.begin(slot, features);
                self.queues.put(slot, queue);
            }
        }
        let (parked, news) = self.desk.rest();
        self.parked = parked;
        if news {
            reach(Step::PostRests);
            self.wake.wake();
        }
    }

    fn turn(&mut self) -> Wait {
        self.work.work(&mut self.queues).unwrap_or_else(|error| {
            self.interrupt.broken(&self.queues.numbers(), &error);
            (0..self.queues.len()).for_each(|slot| self.take_away(slot));
            Wait::default()
        })
    }

    fn take_away(&mut self, slot: usize) {
        if self.queues.take(slot).is_some() {
            self.work.end(slot);
        }
        reach(Step::TakenAway);
        if self.desk.done(slot) {
            // The register thread may wait for the end of a reset, or save that the device needs one.
            self.wake.wake();
        }
    }
}

/// Kicks are edges: they need not be read to be silent.
fn add_kick(epoll: &OwnedFd, kick: BorrowedFd<'_>) -> io::Result<()> {
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(epoll, kick, epoll::EventData::new_u64(KICK), edge)?)
}

/// Where a post's thread sleeps.
#[derive(Debug)]
struct Sleep {
    epoll: Arc<OwnedFd>,
    /// Open as long as they are in the set.
    kicks: Vec<Arc<OwnedFd>>,
    /// They are in the set: not before that is needed, for whoever kicks would have two to wake.
    listens: bool,
    /// There are, or were, other eventfds in the set.
    guests: Arc<AtomicBool>,
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    fd: Arc<OwnedFd>,
    /// What it is in the set for.
    armed: epoll::EventFlags,
    /// It cannot be waited for, which means that it never blocks.
    always: bool,
}

impl Sleep {
    fn new(kicks: Vec<Arc<OwnedFd>>, sources: Vec<Arc<OwnedFd>>) -> io::Result<Sleep> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let listens = kicks.len() != 1 || !sources.is_empty();
        for kick in kicks.iter().filter(|_| listens) {
            add_kick(&epoll, kick.as_fd())?;
        }
        let source = |fd| Source { fd, armed: epoll::EventFlags::empty(), always: false };
        let sources = sources.into_iter().map(source).collect();
        Ok(Sleep { epoll, kicks, listens, guests: Arc::default(), sources })
    }

    /// Waits; a bit for each source that may be ready then.
    fn until(&mut self, wait: &Wait) -> u32 {
        if wait.again {
            return u32::MAX;
        }
        if self.read_kick(wait) {
            return 0;
        }
        let always = self.arm(wait);
        let pause = wait.until.map(|time| time.saturating_sub(clock::now()).min(LONGEST_SLEEP));
        let pause = match (always, self.listen()) {
            (0, true) => pause,
            (0, false) => Some(pause.map_or(BLIND, |pause| pause.min(BLIND))),
            _ => Some(0),
        };
        let pause = pause.map(|ns| Timespec { tv_sec: (ns / SECOND) as i64, tv_nsec: (ns % SECOND) as i64 });
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(KICK) };
        let mut events = [none; EVENTS];
        // Interrupted or not: work finds out what there is to do.
        let count = epoll::wait(&self.epoll, &mut events[..], pause.as_ref()).unwrap_or(0);
        let source = |event: &epoll::Event| u32::try_from(event.data.u64()).ok();
        let bit = |number| 1u32.checked_shl(number).unwrap_or(0);
        events.iter().take(count).filter_map(source).fold(always, |ready, number| ready | bit(number))
    }

    /// Has kicks end the waits in the set; whether they do.
    fn listen(&mut self) -> bool {
        self.listens =
            self.listens || self.kicks.iter().all(|kick| add_kick(&self.epoll, kick.as_fd()).is_ok());
        self.listens
    }

    /// Sleeps until the one queue's kick, if nothing else is waited for.
    fn read_kick(&self, wait: &Wait) -> bool {
        let alone = self.sources.is_empty() && wait.until.is_none() && !self.guests.load(Ordering::Acquire);
        let Some(kick) = self.kicks.first().filter(|_| alone && self.kicks.len() == 1) else { return false };
        // One that does not block is left to the set.
        rustix::io::read(&**kick, &mut [0; 8]) != Err(Errno::AGAIN)
    }

    /// A bit for each source that is waited for and always ready.
    fn arm(&mut self, wait: &Wait) -> u32 {
        let mut always = 0;
        for (number, source) in (0u32..).zip(&mut self.sources) {
            let wanted = |bits: u32, flag| {
                if bits.checked_shr(number).unwrap_or(0) & 1 != 0 { flag } else { epoll::EventFlags::empty() }
            };
            let wanted =
                wanted(wait.readable, epoll::EventFlags::IN) | wanted(wait.writable, epoll::EventFlags::OUT);
            source.arm(&self.epoll, number, wanted);
            if source.always && !wanted.is_empty() {
                always |= 1u32.checked_shl(number).unwrap_or(0);
            }
        }
        always
    }
}

impl Source {
    fn arm(&mut self, epoll: &OwnedFd, number: u32, wanted: epoll::EventFlags) {
        if wanted == self.armed || self.always {
            return;
        }
        let data = epoll::EventData::new_u64(number.into());
        let done = match (self.armed.is_empty(), wanted.is_empty()) {
            (true, _) => epoll::add(epoll, &*self.fd, data, wanted),
            (false, true) => epoll::delete(epoll, &*self.fd),
            (false, false) => epoll::modify(epoll, &*self.fd, data, wanted),
        };
        match done {
            Ok(()) => self.armed = wanted,
            Err(Errno::PERM) => self.always = true,
            // What cannot be waited for is not: the next turn tries again.
            Err(_) => {}
        }
    }
}
