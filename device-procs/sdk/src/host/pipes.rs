//! A far end made of a pipe for output and a socket for input, each with a thread that does its I/O, so that the register
//! thread never does.
//!
//! What the guest gave, and the host has not taken, lies in memory that outlives the worker. What the host gave stays in its
//! socket until the guest has it for good, that is until the device's state that says so is committed. A successor goes on with
//! both.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, Thread};
use std::time::Duration;

use cellblock_channel::clock;
use cellblock_channel::memory::{Mapping, Writable};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::bytes::{Consumer, LEFT, Producer, SETTLED, Shared, ring, ring_in};
use super::{Crew, Port, Tally};
use crate::fail_point::{Step, reach};

/// Bytes on the way from the host to the device: one FIFO's worth.
const INPUT_BYTES: usize = 16;
/// After a write the output thread lets bytes gather for so long, so that a chatty guest wakes it a thousand times a
/// second at most.
const GATHER: Duration = Duration::from_millis(1);
/// Bytes per write.
const CHUNK: usize = 2048;

/// Wakes the register thread: it gets an [`Event::Host`](crate::device::Event::Host).
#[derive(Debug, Clone)]
pub struct WakeLine(Arc<OwnedFd>);

impl WakeLine {
    pub(crate) fn new(eventfd: Arc<OwnedFd>) -> Self {
        WakeLine(eventfd)
    }

    /// Does it. Never blocks.
    pub fn wake(&self) {
        // The counter cannot overflow in this life, and the eventfd does not block.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The far end of a byte device: output and input, either of which may be missing.
#[derive(Debug)]
pub struct Pipes {
    output: Option<Output>,
    input: Option<Input>,
    tally: Arc<Tally>,
    /// The threads have begun: not before the first commit, for until then the far end may be a predecessor's.
    begun: bool,
    begin: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Output {
    ring: Producer,
    thread: Thread,
    /// The thread rests until it is woken; if not, it looks by itself soon.
    resting: Arc<AtomicBool>,
    fresh: bool,
}

impl Output {
    /// Whether the thread must be woken for what is in the ring.
    fn needs_waking(&self) -> bool {
        // SYNC POINT: pairs with the fence in `rest`: either the thread sees the bytes, or we see that it rests.
        fence(Ordering::SeqCst);
        self.resting.load(Ordering::Relaxed) || self.ring.is_half_full()
    }
}

#[derive(Debug)]
struct Input {
    ring: Consumer,
    thread: Thread,
    shared: Shared,
    /// Bytes that the device took since the last commit.
    took: u64,
    /// There was a commit of some, of which the thread does not know.
    settled: bool,
}

impl Pipes {
    /// Has `crew` start one thread for each of the two that there is. `buffer` bytes of output are kept for a sink that is slow, in
    /// `kept` if there is such memory, of [`host_bytes`](cellblock_wire::device::host_bytes) bytes.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn start(
        crew: &mut Crew,
        (input, output): (Option<OwnedFd>, Option<OwnedFd>),
        buffer: usize,
        kept: Option<Mapping<Writable>>,
        wake: WakeLine,
        tally: Arc<Tally>,
    ) -> io::Result<Pipes> {
        let shared = kept.map_or_else(|| Shared::own(buffer), Shared::Kept);
        let begin = Arc::new(AtomicBool::new(false));
        let when = || Begin(Arc::clone(&begin));
        let start = |sink| Output::start(crew, sink, shared.clone(), when(), Arc::clone(&tally));
        let output = output.map(start).transpose()?;
        let start = |source| Input::start(crew, source, shared.clone(), when(), wake, Arc::clone(&tally));
        let input = input.map(start).transpose()?;
        Ok(Pipes { output, input, tally, begun: false, begin })
    }

    /// A handle that waits for the output's end.
    pub(crate) fn is_flushed(&self) -> bool {
        self.output.as_ref().is_none_or(|output| output.ring.is_empty())
    }
}

impl Port for Pipes {
    fn put(&mut self, byte: u8) {
        let Some(output) = &mut self.output else { return };
        if output.ring.put(byte) {
            output.fresh = true;
        } else {
            self.tally.dropped.add(1);
        }
    }

    fn take(&mut self) -> Option<u8> {
        let input = self.input.as_mut()?;
        let mut byte = [0];
        if input.ring.take(&mut byte) == 0 {
            return None;
        }
        input.took += 1;
        Some(byte[0])
    }

    fn lose(&mut self) {
        self.tally.dropped.add(1);
    }

    fn hold(&mut self) {
        self.tally.limited.add(1);
    }

    fn commit(&mut self) {
        if let Some(input) = &mut self.input
            && input.took > 0
        {
            let settled = input.shared.look(SETTLED).wrapping_add(std::mem::take(&mut input.took));
            // SYNC POINT: pairs with the look in `leave`; nothing but the count hangs on it.
            input.shared.publish(SETTLED, settled);
            input.settled = true;
        }
    }

    fn settle(&mut self) {
        if !self.begun {
            self.begun = true;
            self.begin.store(true, Ordering::Release);
            self.output.iter().for_each(|output| output.thread.unpark());
            self.input.iter().for_each(|input| input.thread.unpark());
        }
        if let Some(output) = &mut self.output
            && std::mem::take(&mut output.fresh)
            && output.needs_waking()
        {
            output.thread.unpark();
        }
        if let Some(input) = &mut self.input
            && std::mem::take(&mut input.settled)
        {
            input.thread.unpark();
        }
    }

    /// Waits until the sink has all bytes.
    fn flush(&mut self, limit: Duration) -> bool {
        let end = clock::now().saturating_add(limit.as_nanos() as u64);
        if let Some(output) = &self.output {
            output.thread.unpark();
        }
        while !self.is_flushed() {
            if clock::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_micros(500));
        }
        true
    }
}

/// What a thread waits for before it touches the far end.
struct Begin(Arc<AtomicBool>);

impl Begin {
    fn wait(&self) {
        // SYNC POINT: pairs with the Release in `settle`.
        while !self.0.load(Ordering::Acquire) {
            thread::park();
        }
    }
}

impl Output {
    fn start(
        crew: &mut Crew,
        sink: OwnedFd,
        shared: Shared,
        begin: Begin,
        tally: Arc<Tally>,
    ) -> io::Result<Output> {
        let (producer, consumer) = ring_in(shared);
        let resting = Arc::new(AtomicBool::new(false));
        let rests = Arc::clone(&resting);
        let thread = crew.start("host output", move || {
            begin.wait();
            write_out(consumer, &sink, &rests, &tally)
        })?;
        Ok(Output { ring: producer, thread, resting, fresh: false })
    }
}

impl Input {
    fn start(
        crew: &mut Crew,
        source: OwnedFd,
        shared: Shared,
        begin: Begin,
        wake: WakeLine,
        tally: Arc<Tally>,
    ) -> io::Result<Input> {
        let (producer, consumer) = ring(INPUT_BYTES);
        let counts = shared.clone();
        let thread = crew.start("host input", move || {
            begin.wait();
            read_in(producer, LookedAt::new(source, counts, tally), &wake)
        })?;
        Ok(Input { ring: consumer, thread, shared, took: 0, settled: false })
    }
}

/// Writes what the guest gives, for ever: ending a thread takes system calls that serving does not have. The first byte
/// goes at once, those that follow in batches. A sink that is gone takes nothing; what comes is dropped and counted.
fn write_out(mut ring: Consumer, sink: &OwnedFd, resting: &AtomicBool, tally: &Tally) -> Infallible {
    let mut chunk = [0; CHUNK];
    loop {
        let count = ring.peek(&mut chunk);
        if count == 0 {
            rest(&ring, resting);
            continue;
        }
        let written = chunk.get(..count).map_or(0, |bytes| write_all(sink, bytes));
        reach(Step::SinkTook);
        tally.host_out.add(written as u64);
        tally.dropped.add((count - written) as u64);
        ring.consume(count);
        // Woken before its time if the ring fills up.
        thread::park_timeout(GATHER);
    }
}

/// Rests until there is something in the ring.
fn rest(ring: &Consumer, resting: &AtomicBool) {
    resting.store(true, Ordering::Relaxed);
    // SYNC POINT: pairs with the fence in `Output::needs_waking`.
    fence(Ordering::SeqCst);
    if ring.is_empty() {
        thread::park();
    }
    resting.store(false, Ordering::Relaxed);
}

/// How many of `bytes` the sink took before it failed for good.
fn write_all(sink: &OwnedFd, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(sink, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or(&[]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(sink, PollFlags::OUT),
            Err(_) => break,
        }
    }
    bytes.len() - rest.len()
}

/// Shows the guest what waits in the source, as much as its ring holds, and takes it from there when the guest has it for good.
/// After the source's end it rests for ever.
fn read_in(mut ring: Producer, mut source: LookedAt, wake: &WakeLine) -> Infallible {
    let mut space = [0; INPUT_BYTES];
    loop {
        source.leave();
        if source.shown > 0 {
            thread::park();
            continue;
        }
        match super::peek(&source.socket, &mut space) {
            Ok(0) => break,
            Ok(count) => {
                space.iter().take(count).for_each(|&byte| {
                    ring.put(byte);
                });
                source.shown = count as u64;
                wake.wake();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&source.socket, PollFlags::IN),
            Err(_) => break,
        }
    }
    loop {
        thread::park();
    }
}

/// The host's socket, and how much of what waits in it the guest was shown.
#[derive(Debug)]
struct LookedAt {
    socket: OwnedFd,
    shared: Shared,
    shown: u64,
    tally: Arc<Tally>,
}

impl LookedAt {
    /// With what a predecessor was to take from it, and did not. More than it can have shown is a stranger's word.
    fn new(socket: OwnedFd, shared: Shared, tally: Arc<Tally>) -> Self {
        let settled = shared.look(SETTLED);
        let owed = settled.wrapping_sub(shared.look(LEFT));
        if owed > INPUT_BYTES as u64 {
            shared.publish(LEFT, settled);
        }
        let shown = if owed > INPUT_BYTES as u64 { 0 } else { owed };
        LookedAt { socket, shared, shown, tally }
    }

    /// Takes what the guest has for good.
    fn leave(&mut self) {
        let settled = self.shared.look(SETTLED);
        let count = settled.wrapping_sub(self.shared.look(LEFT)).min(self.shown);
        if count == 0 {
            return;
        }
        // Before it is: of a worker that dies in this moment the guest gets bytes twice, rather than never.
        self.shared.publish(LEFT, settled);
        reach(Step::SourceCounted);
        super::consume(&self.socket, count as usize);
        self.shown -= count;
        self.tally.host_in.add(count);
    }
}

/// Whoever shares the pipe may have made it non-blocking.
fn wait_for(fd: &OwnedFd, flags: PollFlags) {
    let _ = poll(&mut [PollFd::new(fd, flags)], None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_channel::memory;
    use cellblock_wire::device::host_bytes;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe, pipe_with};
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    fn wake_line() -> (Arc<OwnedFd>, WakeLine) {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        (Arc::clone(&fd), WakeLine::new(fd))
    }

    fn pipes(input: Option<OwnedFd>, output: Option<OwnedFd>, buffer: usize) -> (Pipes, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        (
            Pipes::start(
                &mut Crew::default(),
                (input, output),
                buffer,
                None,
                wake_line().1,
                Arc::clone(&tally),
            )
            .unwrap(),
            tally,
        )
    }

    #[test]
    fn output_arrives_in_order_and_is_counted() {
        let (read, write) = pipe().unwrap();
        let (mut pipes, tally) = pipes(None, Some(write), 4096);
        for byte in 0..200 {
            pipes.put(byte);
            pipes.settle();
        }
        assert!(pipes.flush(Duration::from_secs(5)));
        let (mut got, mut space) = (vec![], [0; 64]);
        while got.len() < 200 {
            let count = rustix::io::read(&read, &mut space).unwrap();
            got.extend_from_slice(&space[..count]);
        }
        assert!(got.into_iter().eq(0..200));
        assert_eq!(tally.host_out.get(), 200);
        assert_eq!(tally.dropped.get(), 0);
    }

    #[test]
    fn a_blocked_sink_costs_dropped_bytes_and_no_time() {
        for flags in [PipeFlags::empty(), PipeFlags::NONBLOCK] {
            let (read, write) = pipe_with(flags).unwrap();
            let capacity = fcntl_getpipe_size(&write).unwrap();
            let (mut pipes, tally) = pipes(None, Some(write), 4096);
            for _ in 0..capacity / 4096 + 20 {
                (0..4096).for_each(|_| pipes.put(7));
                pipes.settle();
                thread::sleep(2 * GATHER);
            }
            assert!(tally.dropped.get() > 0, "{capacity} bytes and 20 times the buffer went nowhere");
            assert!(!pipes.flush(Duration::from_millis(20)));
            drop(read);
        }
    }

    #[test]
    fn a_sink_that_is_gone_drops_all() {
        let (read, write) = pipe().unwrap();
        drop(read);
        let (mut pipes, tally) = pipes(None, Some(write), 64);
        pipes.put(1);
        pipes.settle();
        assert!(pipes.flush(Duration::from_secs(5)));
        assert_eq!(tally.dropped.get(), 1);
    }

    fn socket(bytes: &[u8]) -> (UnixStream, OwnedFd) {
        let (mut host, worker) = UnixStream::pair().unwrap();
        host.write_all(bytes).unwrap();
        (host, worker.into())
    }

    fn taken(pipes: &mut Pipes, count: usize) -> Vec<u8> {
        let (mut got, end) = (vec![], Instant::now() + Duration::from_secs(10));
        while got.len() < count {
            match pipes.take() {
                Some(byte) => got.push(byte),
                None => thread::sleep(Duration::from_millis(1)),
            }
            pipes.commit();
            pipes.settle();
            assert!(Instant::now() < end, "{got:?}");
        }
        got
    }

    #[test]
    fn input_is_the_guests_before_it_leaves_the_socket() {
        let (host, worker) = socket(&[5; 100]);
        let (mut pipes, tally) = pipes(Some(worker.try_clone().unwrap()), None, 64);
        assert_eq!(taken(&mut pipes, 100), [5; 100]);
        drop(host);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(pipes.take(), None, "the end of the source is no byte");
        wait_until(|| tally.host_in.get() == 100);
        assert_eq!(left_of(&worker), 0);
    }

    #[test]
    fn what_a_dead_worker_has_not_settled_its_successor_has_again_and_nothing_else() {
        let memory = memory::create_replies("bytes", host_bytes(64)).unwrap();
        let kept = || Some(memory::open_write(&memory.fd, host_bytes(64)).unwrap());
        let (_host, worker) = socket(b"0123456789abcdefghij");
        let start = || {
            let input = Some(worker.try_clone().unwrap());
            Pipes::start(&mut Crew::default(), (input, None), 64, kept(), wake_line().1, Arc::default())
                .unwrap()
        };
        // Its threads stay; what they would do yet is what a dead one's do not.
        let mut first = start();
        assert_eq!(taken(&mut first, 3), b"012");
        wait_until(|| left_of(&worker) == 17);
        let end = Instant::now() + Duration::from_secs(10);
        while first.take() != Some(b'3') {
            assert!(Instant::now() < end);
        }
        // Taken, but not committed: not settled.
        drop(first);
        let mut second = start();
        assert_eq!(taken(&mut second, 17), b"3456789abcdefghij");
    }

    #[test]
    fn nothing_is_touched_before_the_first_commit() {
        let memory = memory::create_replies("bytes", host_bytes(64)).unwrap();
        let kept = || Some(memory::open_write(&memory.fd, host_bytes(64)).unwrap());
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (mut left, _) = ring_in(Shared::Kept(kept().unwrap()));
        b"left".iter().for_each(|byte| assert!(left.put(*byte)));
        let (_host, worker) = socket(b"typed");
        let mut pipes = Pipes::start(
            &mut Crew::default(),
            (Some(worker), Some(write)),
            64,
            kept(),
            wake_line().1,
            Arc::default(),
        )
        .unwrap();
        thread::sleep(Duration::from_millis(30));
        assert_eq!(rustix::io::read(&read, &mut [0; 8]), Err(Errno::AGAIN));
        assert_eq!(pipes.take(), None);
        assert_eq!(taken(&mut pipes, 5), b"typed");
        wait_until(|| rustix::io::ioctl_fionread(&read) == Ok(4));
    }

    #[test]
    fn what_was_settled_leaves_the_socket_although_the_worker_died() {
        let memory = memory::create_replies("bytes", host_bytes(64)).unwrap();
        let map = || memory::open_write(&memory.fd, host_bytes(64)).unwrap();
        for (settled, left, then) in [(5, 2, b"3456"), (9, 9, b"0123"), (99, 9, b"0123"), (2, 9, b"0123")] {
            let (_host, worker) = socket(b"0123456789abcdefghij");
            let shared = Shared::Kept(map());
            shared.publish(SETTLED, settled);
            shared.publish(LEFT, left);
            let start = Pipes::start(
                &mut Crew::default(),
                (Some(worker), None),
                64,
                Some(map()),
                wake_line().1,
                Arc::default(),
            );
            assert_eq!(taken(&mut start.unwrap(), 4), then, "settled {settled}, left {left}");
        }
    }

    /// How much waits in `socket`.
    fn left_of(socket: &OwnedFd) -> usize {
        super::super::peek(socket, &mut [0; 64]).unwrap()
    }

    fn wait_until(done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }
}
