//! A driver on one side of a console, the far ends of its ports' pipes on the other; and what it does, on whatever host.
#![allow(clippy::unwrap_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.
#![allow(dead_code)] // Each test binary uses its part.

pub(crate) mod bytes;
pub(crate) mod messages;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cellblock_console::control::Message;
use cellblock_console::spec::{QUEUE_SIZE, event, feature, queue};
use cellblock_sdk::testing::Host;
use cellblock_sdk::testing::conformance;
use cellblock_sdk::testing::virtio::{Driver, RAM_BYTES, Segment};
use cellblock_wire::device::ConsoleConfig;
use rustix::io::Errno;

const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors in each queue.
pub(crate) const SIZE: u16 = 16;
/// Bytes of a buffer that the driver offers.
pub(crate) const ROOM: u32 = 256;
/// What is meant for the device as a whole.
pub(crate) const NO_PORT: u32 = u32::MAX;
/// Where buffers lie.
pub(crate) const HEAP: u64 = 2 << 20;

/// The host's ends of one port's pipes.
#[derive(Default)]
pub(crate) struct Far {
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: Option<OwnedFd>,
}

/// A console with a driver and far ends.
pub(crate) struct Rig<H> {
    pub(crate) driver: Driver<H>,
    pub(crate) far: Vec<Far>,
    /// Gives the device a turn, where it does not take one by itself.
    pub(crate) turn: fn(&mut H),
    /// The supervisor's word of the terminal's size.
    pub(crate) resize: fn(&mut H, u32, u16, u16),
    /// The next buffer's address.
    next: u64,
}

/// The console, and two ports with names, of which the last has no pipes.
pub(crate) fn three_ports() -> ConsoleConfig {
    let ports = vec![String::new(), "org.cellblock.1".into(), "second".into()];
    ConsoleConfig { ports, columns: 80, rows: 25 }
}

/// What a driver finds of `three_ports`.
pub(crate) fn conforming() -> conformance::Device<'static> {
    let features = feature::SIZE | feature::MULTIPORT;
    conformance::Device {
        id: 3,
        features,
        queues: three_ports().queues(),
        queue_size: QUEUE_SIZE,
        eager: &[1, 3],
    }
}

/// A lone console.
pub(crate) fn one_port() -> ConsoleConfig {
    ConsoleConfig { ports: vec![String::new()], columns: 132, rows: 43 }
}

/// A port's input: the worker's end, which does not block, and the host's.
pub(crate) fn socket() -> (OwnedFd, OwnedFd) {
    let (worker, host) = UnixStream::pair().unwrap();
    worker.set_nonblocking(true).unwrap();
    (worker.into(), host.into())
}

/// Bytes that are nowhere the same.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

/// What follows a `RESIZE`.
pub(crate) fn size(columns: u16, rows: u16) -> Vec<u8> {
    [columns.to_le_bytes(), rows.to_le_bytes()].concat()
}

/// Queues of port `port`: to the driver, and from it.
pub(crate) fn pair(port: usize) -> (usize, usize) {
    (queue::receive(port), queue::receive(port) + 1)
}

impl<H: Host> Rig<H> {
    pub(crate) fn new(
        driver: Driver<H>,
        far: Vec<Far>,
        turn: fn(&mut H),
        resize: fn(&mut H, u32, u16, u16),
    ) -> Self {
        far.iter().flat_map(|far| [&far.input, &far.output]).flatten().for_each(|fd| {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        });
        Rig { driver, far, turn, resize, next: HEAP }
    }

    /// Waits until `done`; the device gets turns.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            (self.turn)(&mut self.driver.host);
            if let Some(value) = done(self) {
                return value;
            }
            let status = self.driver.status();
            assert!(Instant::now() < end, "{what}; the device's status is {status:#x}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets the device do what it can.
    pub(crate) fn settle(&mut self) {
        for _ in 0..3 {
            (self.turn)(&mut self.driver.host);
            self.driver.status();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A fresh piece of guest memory.
    pub(crate) fn place(&mut self, bytes: u64) -> u64 {
        if self.next + bytes > RAM_BYTES {
            self.next = HEAP;
        }
        let at = self.next;
        self.next += bytes.next_multiple_of(0x100);
        at
    }

    /// Drives the device with what it offers of `features`, with buffers in the control queue.
    pub(crate) fn begin(&mut self, features: u64, queues: u16) {
        self.driver.begin(features, queues, SIZE);
        if usize::from(queues) > queue::CONTROL_RECEIVE {
            (0..SIZE - 1).for_each(|_| self.offer(queue::CONTROL_RECEIVE, ROOM));
        }
    }

    /// Makes `segments` available in `queue` and kicks; the head.
    pub(crate) fn push(&mut self, queue: usize, segments: &[Segment]) -> u32 {
        let head = self.driver.push(queue as u16, segments);
        self.driver.kick(queue as u16);
        head.into()
    }

    /// Offers a buffer of `bytes` to be filled.
    pub(crate) fn offer(&mut self, queue: usize, bytes: u32) {
        let at = self.place(bytes.into());
        self.push(queue, &[Segment::write(at, bytes)]);
    }

    /// Gives bytes to be sent, in one buffer; its head.
    pub(crate) fn give(&mut self, queue: usize, bytes: &[u8]) -> u32 {
        let at = self.place(bytes.len() as u64);
        self.driver.poke(at, bytes);
        self.push(queue, &[Segment::read(at, bytes.len() as u32)])
    }

    /// Waits until a buffer of `queue` comes back: its head, and its length.
    pub(crate) fn back(&mut self, queue: usize) -> (u32, u32) {
        self.until("no buffer comes back", |rig| rig.driver.used(queue as u16))
    }

    /// No buffer of `queue` comes back.
    #[track_caller]
    pub(crate) fn none_back(&mut self, queue: usize) {
        self.settle();
        assert_eq!(self.driver.used(queue as u16), None, "a buffer of queue {queue} comes back");
    }

    /// Waits until a buffer of `queue` comes back, and takes what is in it.
    pub(crate) fn filled(&mut self, queue: usize) -> Vec<u8> {
        let (head, length) = self.back(queue);
        self.bytes_of(queue, head, length)
    }

    /// The first `length` bytes of the one buffer `head`, which came back.
    pub(crate) fn bytes_of(&self, queue: usize, head: u32, length: u32) -> Vec<u8> {
        let table = Driver::<H>::areas(queue as u16)[0];
        let at = self.driver.peek(table + 16 * u64::from(head), 8);
        let at = u64::from_le_bytes(at.try_into().unwrap());
        self.driver.peek(at, length as usize)
    }

    /// A control message of the driver, which is taken.
    pub(crate) fn say(&mut self, port: u32, event: u16, value: u16) {
        self.say_bytes(&Message { port, event, value }.bytes());
    }

    /// As [`say`](Self::say), whatever it is.
    #[track_caller]
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        let head = self.give(queue::CONTROL_TRANSMIT, bytes);
        assert_eq!(self.back(queue::CONTROL_TRANSMIT), (head, 0));
    }

    /// The device's next control message, and what follows it; another buffer is offered.
    pub(crate) fn hear(&mut self) -> (Message, Vec<u8>) {
        let bytes = self.filled(queue::CONTROL_RECEIVE);
        self.offer(queue::CONTROL_RECEIVE, ROOM);
        let field = |at: usize, count: usize| {
            bytes[at..at + count].iter().rev().fold(0, |whole, byte| whole << 8 | u32::from(*byte))
        };
        let message = Message { port: field(0, 4), event: field(4, 2) as u16, value: field(6, 2) as u16 };
        (message, bytes[8..].to_vec())
    }

    /// The device's next control message is this one.
    #[track_caller]
    pub(crate) fn expect(&mut self, port: u32, event: u16, value: u16, tail: &[u8]) {
        let (message, follows) = self.hear();
        assert_eq!((message, follows.as_slice()), (Message { port, event, value }, tail));
    }

    /// What the device says of a port that is ready.
    #[track_caller]
    pub(crate) fn expect_introduction(&mut self, config: &ConsoleConfig, port: u32) {
        let name = &config.ports[port as usize];
        if port == 0 {
            self.expect(port, event::CONSOLE_PORT, 1, &[]);
        }
        if !name.is_empty() {
            self.expect(port, event::PORT_NAME, 1, name.as_bytes());
        }
        if port == 0 {
            self.expect(port, event::RESIZE, 0, &size(config.columns, config.rows));
        }
        self.expect(port, event::PORT_OPEN, 1, &[]);
    }

    /// Driver and device get to know each other, up to open ports.
    pub(crate) fn introduce(&mut self, config: &ConsoleConfig) {
        let ports = config.ports.len() as u32;
        self.say(NO_PORT, event::DEVICE_READY, 1);
        (0..ports).for_each(|port| self.expect(port, event::DEVICE_ADD, 1, &[]));
        for port in 0..ports {
            self.say(port, event::PORT_READY, 1);
            self.expect_introduction(config, port);
            self.say(port, event::PORT_OPEN, 1);
        }
    }

    /// Takes exactly `count` bytes from port `port`'s far end.
    pub(crate) fn collect(&mut self, port: usize, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(&format!("port {port} does not give {count} bytes"), |rig| {
            let mut piece = vec![0; (count - all.len()).min(64 << 10)];
            match rustix::io::read(rig.far[port].output.as_ref().unwrap().as_fd(), &mut piece) {
                Ok(length) => all.extend(&piece[..length]),
                Err(Errno::AGAIN) => {}
                Err(error) => panic!("{error}"),
            }
            (all.len() == count).then_some(())
        });
        all
    }

    /// Nothing is at port `port`'s far end.
    #[track_caller]
    pub(crate) fn nothing(&mut self, port: usize) {
        self.settle();
        let read = rustix::io::read(self.far[port].output.as_ref().unwrap(), &mut [0; 64]);
        assert_eq!(read, Err(Errno::AGAIN));
    }

    /// Gives bytes to port `port` from its far end.
    pub(crate) fn feed(&mut self, port: usize, bytes: &[u8]) {
        assert_eq!(rustix::io::write(self.far[port].input.as_ref().unwrap(), bytes), Ok(bytes.len()));
        (self.turn)(&mut self.driver.host);
    }
}
