//! The transport on threads: what is in flight when the driver wants it gone.
#![allow(clippy::unwrap_used, clippy::panic)] // All of this is test code.

mod posts;
mod reconstruct;
mod recovery;
mod rings;
mod space;
mod vectored;

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::spec::{feature, register, status};
use super::threads::{Post, Threads};
use super::{Chain, Identity, Interrupt, OneByOne, Serve, Space, Transport};
use crate::device::Event;
use crate::host::{Crew, WakeLine};
use crate::testing::Harness;
use crate::testing::virtio::{DATA, Driver, Edges, Segment, shared_ram};

/// Says that it has a request, and serves it when it is told to.
struct Slow {
    taken: Sender<()>,
    go_on: Receiver<()>,
    features: Arc<Mutex<u64>>,
}

impl Serve for Slow {
    fn begin(&mut self, features: u64) {
        *self.features.lock().unwrap() = features;
    }

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        self.taken.send(()).unwrap();
        self.go_on.recv().unwrap();
        chain.write(&[7]).map_or(0, |()| 1)
    }
}

struct Bench {
    driver: Driver<Harness<Transport<Threads>>>,
    taken: Receiver<()>,
    go_on: Sender<()>,
    wake: Arc<OwnedFd>,
    features: Arc<Mutex<u64>>,
}

fn bench() -> Bench {
    let (taken_sender, taken) = channel();
    let (go_on, go_on_receiver) = channel();
    let features = Arc::new(Mutex::new(0));
    let slow = Slow { taken: taken_sender, go_on: go_on_receiver, features: Arc::clone(&features) };
    let interrupt = Interrupt::new(Edges::default());
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let post = Post { work: OneByOne(slow), queues: vec![0], sources: vec![] };
    let wake_line = WakeLine::new(Arc::clone(&wake));
    let threads =
        Threads::start(&mut Crew::default(), vec![(post, vec![kick])], &interrupt, &wake_line).unwrap();
    let identity = Identity { id: 42, features: 0, queues: 1, queue_size: 16, config: Space::fixed(vec![]) };
    let ram = shared_ram().0;
    let device = Transport::new(identity, threads, ram.clone(), interrupt);
    Bench { driver: Driver::new(Harness::new(device), ram), taken, go_on, wake, features }
}

impl Bench {
    fn in_flight(&mut self) {
        self.driver.begin(u64::MAX, 1, 16);
        self.driver.push(0, &[Segment::write(DATA, 1)]);
        self.driver.push(0, &[Segment::write(DATA + 1, 1)]);
        self.driver.kick(0);
        self.taken.recv().unwrap();
    }

    fn wait_for_wake(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while rustix::io::read(&*self.wake, &mut [0; 8]).is_err() {
            assert!(Instant::now() < end, "the register thread is not woken");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_reset_shows_itself_pending_until_nothing_is_in_flight() {
    let mut bench = bench();
    bench.in_flight();
    let before = Instant::now();
    bench.driver.set(register::STATUS, 0);
    assert!(before.elapsed() < Duration::from_secs(20), "it does not wait for ever");
    assert_eq!(bench.driver.status(), 15, "pending");
    // A driver that does not wait changes nothing.
    bench.driver.set(register::STATUS, u32::from(status::ACKNOWLEDGE));
    bench.driver.set(register::QUEUE_SEL, 5);
    bench.driver.set(register::QUEUE_READY, 0);
    assert_eq!(bench.driver.status(), 15);
    bench.go_on.send(()).unwrap();
    bench.wait_for_wake();
    bench.driver.host.event(Event::Host);
    assert_eq!(bench.driver.status(), 0);
    assert_eq!(bench.driver.get(register::INTERRUPT_STATUS), 0);
    assert_eq!(bench.driver.used(0), Some((0, 1)), "the request in flight was finished");
    assert_eq!(bench.driver.used(0), None, "the one after it was not begun");
    assert_eq!(bench.driver.peek(DATA, 2), [7, 0]);
    bench.go_on.send(()).unwrap();
    bench.in_flight();
    bench.driver.wait_used(0);
}

#[test]
fn a_reset_of_an_idle_device_is_done_at_once() {
    let mut bench = bench();
    bench.driver.begin(u64::MAX, 1, 16);
    for _ in 0..20 {
        bench.driver.set(register::STATUS, 0);
        assert_eq!(bench.driver.status(), 0);
        bench.driver.begin(u64::MAX, 1, 16);
    }
}

#[test]
fn a_queue_stays_ready_until_nothing_is_in_flight() {
    let mut bench = bench();
    bench.in_flight();
    bench.driver.set(register::QUEUE_READY, 0);
    assert_eq!(bench.driver.get(register::QUEUE_READY), 1);
    bench.go_on.send(()).unwrap();
    bench.wait_for_wake();
    assert_eq!(bench.driver.get(register::QUEUE_READY), 0);
    assert_eq!(bench.driver.status(), 15, "the device itself runs on");
}

#[test]
fn servers_are_told_what_was_negotiated() {
    let mut bench = bench();
    let wanted = feature::VERSION_1 | feature::EVENT_IDX;
    assert!(bench.driver.negotiate(wanted));
    assert!(bench.driver.add_queue(16));
    bench.driver.run();
    bench.driver.push(0, &[Segment::write(DATA, 1)]);
    bench.driver.kick(0);
    bench.taken.recv().unwrap();
    assert_eq!(*bench.features.lock().unwrap(), wanted);
    bench.go_on.send(()).unwrap();
    assert_eq!(bench.driver.wait_used(0), (0, 1));
}

#[test]
fn a_kick_before_the_driver_is_ready_does_nothing() {
    let mut bench = bench();
    assert!(bench.driver.negotiate(feature::VERSION_1));
    assert!(bench.driver.add_queue(16));
    bench.driver.push(0, &[Segment::write(DATA, 1)]);
    bench.driver.kick(0);
    assert!(bench.taken.recv_timeout(Duration::from_millis(20)).is_err());
    bench.driver.run();
    bench.taken.recv_timeout(Duration::from_secs(10)).unwrap();
    bench.go_on.send(()).unwrap();
    assert_eq!(bench.driver.wait_used(0), (0, 1), "DRIVER_OK is as good as a kick");
}

#[test]
fn saved_registers_are_a_strangers() {
    let mut bench = bench();
    bench.driver.begin(u64::MAX, 1, 16);
    let saved = bench.driver.host.saved();
    let mut successor = self::bench().driver.host.device;
    use crate::device::Device as _;
    for at in 0..saved.len() {
        let mut altered = saved.clone();
        altered[at] ^= 0xff;
        // Refused, or taken as a device that works or needs a reset: nothing panics.
        let _ = successor.restore(&altered);
        assert!(successor.restore(&saved[..at]).is_err());
    }
    assert!(successor.restore(&saved).is_ok());
}
