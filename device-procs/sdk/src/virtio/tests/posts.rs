//! Posts with several queues and descriptors, on threads and inline.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::rings::pages;
use crate::device::Device as _;
use crate::host::{Crew, WakeLine};
use crate::testing::Harness;
use crate::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};
use crate::virtio::engine::{Engine, MAX_SOURCES};
use crate::virtio::inflight::Pages;
use crate::virtio::spec::{register, status};
use crate::virtio::{
    Buffers, Chain, Identity, Inline, Interrupt, Kicker, Limiter, OneByOne, Post, QueueError, Queues, Ram,
    Serve, Space, Threads, Transport, Wait, Work,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a [`Relay`] does, for the test to see.
#[derive(Debug, PartialEq, Eq)]
enum Note {
    Begin(usize, u64),
    End(usize),
    /// A turn, with how many chains were held at its end.
    Turn(usize),
}

/// What it is told to do.
#[derive(Debug, Default)]
struct Order {
    /// Wait for the source even without a chain to fill.
    always_wait: bool,
    fail: bool,
    until: Option<u64>,
}

/// Fills chains of queue 0 with what comes from its source, and holds them until something does. Queue 1 is only answered.
struct Relay {
    source: Arc<OwnedFd>,
    held: Vec<(u16, Buffers)>,
    notes: Sender<Note>,
    order: Arc<Mutex<Order>>,
}

impl Work for Relay {
    fn begin(&mut self, slot: usize, features: u64) {
        let _ = self.notes.send(Note::Begin(slot, features));
    }

    fn end(&mut self, slot: usize) {
        if slot == 0 {
            self.held.clear();
        }
        let _ = self.notes.send(Note::End(slot));
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let order = std::mem::take(&mut *self.order.lock().unwrap());
        if order.fail {
            return Err(QueueError::Order { head: 0 });
        }
        if let Some(queue) = queues.get(1) {
            while let Some(head) = queue.pop()? {
                queue.push(head, 0)?;
            }
            queue.listen()?;
        }
        queues.signal(1)?;
        if let Some(queue) = queues.get(0) {
            let mut buffers = Buffers::default();
            while let Some(head) = queue.pop_into(&mut buffers)? {
                self.held.push((head, std::mem::take(&mut buffers)));
            }
            queue.listen()?;
            while let Some((head, buffers)) = self.held.first() {
                match queue.chain_of(buffers).fill_from(rustix::fd::AsFd::as_fd(&*self.source), None, 4) {
                    Ok(count) if count > 0 => queue.push(*head, count as u32)?,
                    _ => break,
                }
                self.held.remove(0);
            }
        }
        queues.signal(0)?;
        let _ = self.notes.send(Note::Turn(self.held.len()));
        let readable = u32::from(order.always_wait || !self.held.is_empty());
        Ok(Wait { readable, until: order.until, ..Wait::default() })
    }
}

struct Bench<E> {
    driver: Driver<Harness<Transport<E>>>,
    notes: Receiver<Note>,
    order: Arc<Mutex<Order>>,
    far_end: Option<OwnedFd>,
    kicker: Kicker,
}

fn bench<E: Engine>(make: impl FnOnce(Relay, Arc<OwnedFd>, &Interrupt) -> (E, Kicker)) -> Bench<E> {
    let (source, far_end) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
    let (sender, notes) = channel();
    let source = Arc::new(source);
    let order = Arc::new(Mutex::new(Order::default()));
    let relay = Relay { source: Arc::clone(&source), held: vec![], notes: sender, order: Arc::clone(&order) };
    let interrupt = Interrupt::new(Edges::default());
    let (engine, kicker) = make(relay, source, &interrupt);
    let identity = Identity { id: 42, features: 0, queues: 2, queue_size: 16, config: Space::fixed(vec![]) };
    let ram = shared_ram().0;
    let device = Transport::new(identity, engine, ram.clone(), interrupt);
    Bench { driver: Driver::new(Harness::new(device), ram), notes, order, far_end: Some(far_end), kicker }
}

fn threads() -> Bench<Threads> {
    bench(|work, source, interrupt| {
        let kick = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let wake = WakeLine::new(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
        let post = Post { work, queues: vec![0, 1], sources: vec![source] };
        let threads =
            Threads::start(&mut Crew::default(), vec![(post, vec![kick(), kick()])], interrupt, &wake)
                .unwrap();
        let threads = threads.with_pages(Some(pages(2).1));
        let kicker = threads.kicker(0);
        (threads, kicker)
    })
}

fn inline() -> Bench<Inline<Relay>> {
    bench(|work, _, interrupt| {
        let engine = Inline::new(vec![(work, vec![0, 1])], interrupt.clone()).with_pages(pages(2).1);
        let kicker = engine.kicker(0);
        (engine, kicker)
    })
}

impl<E: Engine> Bench<E> {
    fn wait_for(&self, wanted: &Note) {
        loop {
            let note = self.notes.recv_timeout(PATIENCE);
            if note.unwrap_or_else(|_| panic!("{wanted:?} does not come")) == *wanted {
                return;
            }
        }
    }

    fn give(&mut self, bytes: &[u8]) {
        rustix::io::write(self.far_end.as_ref().unwrap(), bytes).unwrap();
    }

    /// The device runs, and holds two chains.
    fn begin(&mut self) -> [u16; 2] {
        self.driver.begin(u64::MAX, 2, 16);
        let heads = [0, 1].map(|at| self.driver.push(0, &[Segment::write(DATA + 16 * at, 8)]));
        self.driver.kick(0);
        self.wait_for(&Note::Turn(2));
        heads
    }
}

fn chains_wait_for_bytes<E: Engine>(bench: &mut Bench<E>, poll: impl Fn(&mut Bench<E>)) {
    let heads = bench.begin().map(u32::from);
    bench.give(b"abcdef");
    poll(bench);
    assert_eq!(bench.driver.wait_used(0), (heads[0], 4));
    assert_eq!(bench.driver.wait_used(0), (heads[1], 2));
    assert_eq!(bench.driver.peek(DATA, 4), b"abcd");
    assert_eq!(bench.driver.peek(DATA + 16, 3), b"ef\0");
    bench.driver.push(1, &[Segment::read(DATA, 1)]);
    bench.driver.kick(1);
    bench.driver.wait_used(1);
    assert_ne!(bench.driver.get(register::INTERRUPT_STATUS) & 1, 0);
}

#[test]
fn a_source_fills_chains_that_wait() {
    chains_wait_for_bytes(&mut threads(), |_| {});
    chains_wait_for_bytes(&mut inline(), |bench| bench.driver.host.device.engine().poll());
}

fn a_reset_forgets<E: Engine>(bench: &mut Bench<E>) {
    for _ in 0..3 {
        bench.begin();
        bench.driver.reset();
        bench.wait_for(&Note::End(0));
        bench.wait_for(&Note::End(1));
        assert_eq!(bench.driver.peek(DATA, 8), [0; 8]);
    }
    let heads = bench.begin();
    // One queue alone: the other goes on.
    bench.driver.set(register::QUEUE_SEL, 0);
    bench.driver.set(register::QUEUE_READY, 0);
    assert_eq!(bench.driver.get(register::QUEUE_READY), 0);
    bench.wait_for(&Note::End(0));
    bench.give(b"lost?");
    bench.driver.push(1, &[Segment::read(DATA, 1)]);
    bench.driver.kick(1);
    bench.driver.wait_used(1);
    assert_eq!(bench.driver.used(0), None);
    assert_eq!(heads, [0, 1]);
    // And on again, from its beginning.
    for area in Driver::<Harness<Transport<E>>>::areas(0) {
        bench.driver.poke(area, &[0; 0x1000]);
    }
    bench.driver.rewind(0);
    assert!(bench.driver.place_queue(0, 16, Driver::<Harness<Transport<E>>>::areas(0)));
    bench.driver.push(0, &[Segment::write(DATA, 8)]);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0), (0, 4));
    assert_eq!(bench.driver.peek(DATA, 5), b"lost\0");
}

#[test]
fn chains_that_are_held_end_with_their_queue() {
    a_reset_forgets(&mut threads());
    a_reset_forgets(&mut inline());
}

/// Has the device come to rest.
fn rest<E: Engine>(bench: &mut Bench<E>) {
    bench.driver.host.device.quiesce();
    let end = std::time::Instant::now() + PATIENCE;
    while !bench.driver.host.device.is_quiet() {
        assert!(std::time::Instant::now() < end, "it does not come to rest");
        std::thread::yield_now();
    }
}

fn a_post_at_rest_has_no_turns<E: Engine>(bench: &mut Bench<E>) {
    let mut heads = bench.begin().map(u32::from);
    for round in 0..20u8 {
        rest(bench);
        while bench.notes.try_recv().is_ok() {}
        bench.give(&[round; 4]);
        bench.driver.push(1, &[Segment::read(DATA, 1)]);
        for queue in [0, 1] {
            bench.driver.kick(queue);
        }
        bench.kicker.kick();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bench.notes.try_recv().ok(), None, "round {round}: a turn at rest");
        bench.driver.host.device.resume();
        // All that came meanwhile is there.
        bench.driver.wait_used(1);
        assert_eq!(bench.driver.wait_used(0), (heads[usize::from(round % 2)], 4));
        let at = DATA + 16 * u64::from(round % 2);
        assert_eq!(bench.driver.peek(at, 4), [round; 4]);
        heads[usize::from(round % 2)] = bench.driver.push(0, &[Segment::write(at, 8)]).into();
        bench.driver.kick(0);
        bench.wait_for(&Note::Turn(2));
    }
    // A reset is possible at rest.
    rest(bench);
    bench.driver.reset();
    bench.wait_for(&Note::End(1));
    bench.driver.host.device.resume();
    for area in [0, 1].into_iter().flat_map(Driver::<Harness<Transport<E>>>::areas) {
        bench.driver.poke(area, &[0; 0x1000]);
    }
    bench.begin();
}

#[test]
fn posts_rest_between_two_turns() {
    a_post_at_rest_has_no_turns(&mut threads());
    a_post_at_rest_has_no_turns(&mut inline());
}

/// One that stops and starts faster than its threads can follow is never taken for one at rest that works.
#[test]
fn rest_that_is_asked_for_again_is_reached_again() {
    let mut bench = threads();
    bench.begin();
    for _ in 0..500 {
        bench.driver.host.device.quiesce();
        bench.driver.host.device.resume();
        bench.kicker.kick();
        rest(&mut bench);
        while bench.notes.try_recv().is_ok() {}
        std::thread::yield_now();
        assert_eq!(bench.notes.try_recv().ok(), None, "a turn at rest");
        bench.driver.host.device.resume();
    }
    bench.wait_for(&Note::Turn(2));
}

fn a_bad_queue_takes_the_post_along<E: Engine>(bench: &mut Bench<E>, poll: impl Fn(&mut Bench<E>)) {
    bench.begin();
    bench.order.lock().unwrap().fail = true;
    bench.driver.kick(1);
    bench.wait_for(&Note::End(0));
    bench.wait_for(&Note::End(1));
    bench.driver.wait_needs_reset();
    let complaint = bench.driver.host.device.complaint().unwrap();
    assert!(complaint.starts_with("virtqueue [0, 1]: chain at descriptor 0 has a readable"), "{complaint}");
    assert_eq!(bench.driver.host.device.complaint(), None, "once");
    bench.begin();
    bench.give(b"x");
    poll(bench);
    bench.driver.wait_used(0);
    assert_eq!(bench.driver.status(), 15);
}

#[test]
fn an_error_ends_all_queues_of_a_post() {
    a_bad_queue_takes_the_post_along(&mut threads(), |_| {});
    a_bad_queue_takes_the_post_along(&mut inline(), |bench| bench.driver.host.device.engine().poll());
}

#[test]
fn a_post_is_woken_by_its_kicker_and_its_clock() {
    let mut bench = threads();
    bench.begin();
    bench.kicker.kick();
    bench.wait_for(&Note::Turn(2));
    let now = cellblock_channel::clock::now();
    bench.order.lock().unwrap().until = Some(now + 20_000_000);
    bench.kicker.kick();
    // Turns for nothing may come before; one comes when it is time.
    while cellblock_channel::clock::now() < now + 20_000_000 {
        bench.wait_for(&Note::Turn(2));
    }
    bench.kicker.kick();
    bench.wait_for(&Note::Turn(2));
    // What has passed is no reason to wait, what never comes none to fail.
    for until in [0, u64::MAX] {
        bench.order.lock().unwrap().until = Some(until);
        bench.kicker.kick();
        bench.wait_for(&Note::Turn(2));
    }
    Kicker::none().kick();
}

/// A far end that is gone ends a wait for it, and only that.
#[test]
fn a_source_that_is_not_waited_for_is_silent() {
    let mut bench = threads();
    bench.driver.begin(u64::MAX, 2, 16);
    bench.wait_for(&Note::Turn(0));
    bench.give(b"there is something");
    bench.far_end = None;
    std::thread::sleep(Duration::from_millis(50));
    assert!(bench.notes.try_iter().count() < 10, "it spins");
    bench.order.lock().unwrap().always_wait = true;
    bench.kicker.kick();
    bench.wait_for(&Note::Turn(0));
    bench.wait_for(&Note::Turn(0));
    std::thread::sleep(Duration::from_millis(50));
    assert!(bench.notes.try_iter().count() < 10, "it spins");
}

#[test]
fn descriptors_that_cannot_be_waited_for_never_block() {
    let file = Arc::new(rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    rustix::io::write(&*file, b"12345678").unwrap();
    rustix::fs::seek(&*file, rustix::fs::SeekFrom::Start(0)).unwrap();
    let mut bench = bench(|work, _, interrupt| {
        let kick = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let wake = WakeLine::new(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
        let work = Relay { source: Arc::clone(&file), ..work };
        let post = Post { work, queues: vec![0, 1], sources: vec![Arc::clone(&file)] };
        let threads =
            Threads::start(&mut Crew::default(), vec![(post, vec![kick(), kick()])], interrupt, &wake)
                .unwrap();
        (threads, Kicker::none())
    });
    bench.driver.begin(u64::MAX, 2, 16);
    bench.order.lock().unwrap().always_wait = true;
    bench.driver.push(0, &[Segment::write(DATA, 4)]);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0), (0, 4));
}

#[test]
fn posts_that_cannot_work_are_refused() {
    let interrupt = Interrupt::new(Edges::default());
    let wake = WakeLine::new(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
    let kick = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let start = |queues: Vec<u16>, sources, kicks| {
        let work = OneByOne(Slow(Limiter::default(), Edges::default(), SharedClock::default()));
        let sources = (0..sources).map(|_| Arc::new(kick())).collect();
        let kicks = (0..kicks).map(|_| kick()).collect();
        Threads::start(&mut Crew::default(), vec![(Post { work, queues, sources }, kicks)], &interrupt, &wake)
            .map(|_| ())
    };
    assert!(start(vec![0], MAX_SOURCES, 1).is_ok());
    assert!(start(vec![0], MAX_SOURCES + 1, 1).is_err());
    assert!(start(vec![], 0, 0).is_err());
    assert!(start(vec![0, 1], 0, 1).is_err());
}

/// Time that moves by hand, for threads too.
#[derive(Clone, Default)]
struct SharedClock(Arc<Mutex<u64>>);

/// Serves as fast as its limit allows.
struct Slow(Limiter, Edges, SharedClock);

impl Serve for Slow {
    fn begin(&mut self, _features: u64) {}

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        self.0.take(chain.writable(), *self.2.0.lock().unwrap());
        crate::virtio::Raise::raise(&self.1);
        0
    }

    fn not_before(&self) -> Option<u64> {
        self.0.ready_at(*self.2.0.lock().unwrap())
    }
}

#[test]
fn a_limit_holds_requests_back_and_loses_none() {
    use cellblock_wire::device::{Bucket, Limits};
    let limits = Limits { bytes: Some(Bucket { per_second: 1000, burst: 100 }), operations: None };
    let (served, clock) = (Edges::default(), SharedClock::default());
    let interrupt = Interrupt::new(Edges::default());
    let engine =
        Inline::servers(vec![Slow(Limiter::new(&limits), served.clone(), clock.clone())], interrupt.clone());
    let identity = Identity { id: 42, features: 0, queues: 1, queue_size: 64, config: Space::fixed(vec![]) };
    let ram = shared_ram().0;
    let device = Transport::new(identity, engine, ram.clone(), interrupt);
    let mut driver = Driver::new(Harness::new(device), ram);
    driver.begin(u64::MAX, 1, 64);
    for _ in 0..20 {
        driver.push(0, &[Segment::write(DATA, 50)]);
    }
    driver.kick(0);
    assert_eq!(served.take(), 3, "the burst, and what makes a debt");
    driver.kick(0);
    assert_eq!(served.take(), 0, "a kick does not help");
    assert_eq!(driver.host.device.engine().wait(0), Wait::until(50_000_000));
    *clock.0.lock().unwrap() = 49_999_999;
    driver.host.device.engine().poll();
    assert_eq!(served.take(), 0);
    let mut all = 3;
    for turn in 1..=17 {
        *clock.0.lock().unwrap() = turn * 50_000_000;
        driver.host.device.engine().poll();
        all += served.take();
    }
    assert_eq!(all, 20);
    // A reset goes first.
    driver.reset();
    assert_eq!(driver.status(), 0);
}

/// With the real clock.
#[test]
fn a_thread_held_back_goes_on_by_itself_and_is_stopped_nevertheless() {
    use cellblock_wire::device::{Bucket, Limits};

    struct Real(Limiter);
    impl Serve for Real {
        fn begin(&mut self, _features: u64) {}
        fn serve(&mut self, _chain: &mut Chain<'_>) -> u32 {
            self.0.take(1, cellblock_channel::clock::now());
            0
        }
        fn not_before(&self) -> Option<u64> {
            self.0.ready_at(cellblock_channel::clock::now())
        }
    }
    let limits = |per_second| Limits { bytes: None, operations: Some(Bucket { per_second, burst: 1 }) };
    let device = |limits: Limits, ram: &Ram| {
        let interrupt = Interrupt::new(Edges::default());
        let wake = WakeLine::new(Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()));
        let post = Post { work: OneByOne(Real(Limiter::new(&limits))), queues: vec![0], sources: vec![] };
        let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let threads =
            Threads::start(&mut Crew::default(), vec![(post, vec![kick])], &interrupt, &wake).unwrap();
        let identity =
            Identity { id: 42, features: 0, queues: 1, queue_size: 64, config: Space::fixed(vec![]) };
        Driver::new(Harness::new(Transport::new(identity, threads, ram.clone(), interrupt)), ram.clone())
    };
    let ram = shared_ram().0;
    let mut driver = device(limits(200), &ram);
    driver.begin(u64::MAX, 1, 16);
    let before = cellblock_channel::clock::now();
    for _ in 0..12 {
        driver.push(0, &[Segment::write(DATA, 1)]);
    }
    driver.kick(0);
    for _ in 0..12 {
        driver.wait_used(0);
    }
    // The first two are the burst and the debt; the rest take 5 ms each.
    assert!(cellblock_channel::clock::now() - before >= 50_000_000);

    let mut driver = device(limits(1), &ram);
    driver.begin(u64::MAX, 1, 16);
    for _ in 0..12 {
        driver.push(0, &[Segment::write(DATA, 1)]);
    }
    driver.kick(0);
    driver.wait_used(0);
    driver.set(register::STATUS, 0);
    assert_eq!(driver.status() & status::DRIVER_OK, 0, "no second has to pass");
}

/// Sources are edges of nothing: a far end that gives bytes while the post is at work is not missed.
#[test]
fn bytes_that_come_at_any_time_arrive() {
    let mut bench = threads();
    bench.begin();
    let far_end = bench.far_end.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for byte in 0..200u8 {
                while rustix::io::write(&far_end, &[byte; 4]) == Err(Errno::AGAIN) {}
            }
        });
        let mut got = 0;
        while got < 800 {
            let (_, length) = bench.driver.wait_used(0);
            got += length;
            bench.driver.push(0, &[Segment::write(DATA, 8)]);
            bench.driver.kick(0);
        }
    });
}

#[test]
fn pages_are_found_by_queue() {
    let (_fd, pages): (_, Pages) = pages(2);
    let engine: Inline<Relay> = Inline::new(vec![], Interrupt::new(Edges::default())).with_pages(pages);
    assert!(engine.record(1).is_some());
    assert!(engine.record(2).is_none());
}
