//! A far end made of two pipes, each with a thread that does its I/O, so that the register thread never does.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::Duration;

use cellblock_channel::clock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::bytes::{Consumer, Producer, ring};
use super::{Port, Tally};

/// Bytes on the way from the host to the device: one FIFO's worth.
const INPUT_BYTES: usize = 16;
/// After a write the output thread lets bytes gather for so long, so that a chatty guest wakes it a thousand times a
/// second at most.
const GATHER: Duration = Duration::from_millis(1);
/// Bytes per write.
const CHUNK: usize = 2048;
/// Enough for what the threads keep on it; a page is taken when it is touched.
const STACK: usize = 256 << 10;

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

/// The far end of a byte device: output and input pipe, either of which may be missing.
#[derive(Debug)]
pub struct Pipes {
    output: Option<Output>,
    input: Option<Input>,
    tally: Arc<Tally>,
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
    took: bool,
}

impl Pipes {
    /// Starts one thread for each pipe there is. `buffer` bytes of output are kept for a sink that is slow.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn start(
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
        buffer: usize,
        wake: WakeLine,
        tally: Arc<Tally>,
    ) -> io::Result<Pipes> {
        let output = output.map(|sink| Output::start(sink, buffer, Arc::clone(&tally))).transpose()?;
        let input = input.map(|source| Input::start(source, wake, Arc::clone(&tally))).transpose()?;
        Ok(Pipes { output, input, tally })
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
        input.took = true;
        Some(byte[0])
    }

    fn lose(&mut self) {
        self.tally.dropped.add(1);
    }

    fn hold(&mut self) {
        self.tally.limited.add(1);
    }

    fn settle(&mut self) {
        if let Some(output) = &mut self.output
            && std::mem::take(&mut output.fresh)
            && output.needs_waking()
        {
            output.thread.unpark();
        }
        if let Some(input) = &mut self.input
            && std::mem::take(&mut input.took)
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

/// Starts a thread and waits until it runs: what a thread's start takes is not allowed once the sandbox is closed.
pub(crate) fn start_thread(
    name: &str,
    work: impl FnOnce() -> Infallible + Send + 'static,
) -> io::Result<Thread> {
    let (running, wait) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    let handle = builder.spawn(move || {
        let _ = running.send(());
        drop(running);
        work()
    })?;
    wait.recv().map_err(io::Error::other)?;
    Ok(handle.thread().clone())
}

impl Output {
    fn start(sink: OwnedFd, buffer: usize, tally: Arc<Tally>) -> io::Result<Output> {
        let (producer, consumer) = ring(buffer);
        let resting = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&resting);
        let thread = start_thread("host output", move || write_out(consumer, &sink, &shared, &tally))?;
        Ok(Output { ring: producer, thread, resting, fresh: false })
    }
}

impl Input {
    fn start(source: OwnedFd, wake: WakeLine, tally: Arc<Tally>) -> io::Result<Input> {
        let (producer, consumer) = ring(INPUT_BYTES);
        let thread = start_thread("host input", move || read_in(producer, &source, &wake, &tally))?;
        Ok(Input { ring: consumer, thread, took: false })
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

/// Reads only what the ring, and so the guest, has room for. After the source's end it rests for ever.
fn read_in(mut ring: Producer, source: &OwnedFd, wake: &WakeLine, tally: &Tally) -> Infallible {
    let mut space = [0; INPUT_BYTES];
    loop {
        let room = ring.room().min(INPUT_BYTES);
        let Some(space) = space.get_mut(..room).filter(|space| !space.is_empty()) else {
            thread::park();
            continue;
        };
        match rustix::io::read(source, &mut *space) {
            Ok(0) => break,
            Ok(count) => {
                space.iter().take(count).for_each(|&byte| {
                    ring.put(byte);
                });
                tally.host_in.add(count as u64);
                wake.wake();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(source, PollFlags::IN),
            Err(_) => break,
        }
    }
    loop {
        thread::park();
    }
}

/// Whoever shares the pipe may have made it non-blocking.
fn wait_for(fd: &OwnedFd, flags: PollFlags) {
    let _ = poll(&mut [PollFd::new(fd, flags)], None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe, pipe_with};

    fn wake_line() -> (Arc<OwnedFd>, WakeLine) {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        (Arc::clone(&fd), WakeLine::new(fd))
    }

    fn pipes(input: Option<OwnedFd>, output: Option<OwnedFd>, buffer: usize) -> (Pipes, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        (Pipes::start(input, output, buffer, wake_line().1, Arc::clone(&tally)).unwrap(), tally)
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

    #[test]
    fn input_waits_in_the_pipe_until_it_is_wanted() {
        let (read, write) = pipe().unwrap();
        rustix::io::write(&write, &[5; 100]).unwrap();
        let (mut pipes, tally) = pipes(Some(read), None, 64);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(tally.host_in.get(), INPUT_BYTES as u64);
        let mut got = 0;
        while got < 100 {
            match pipes.take() {
                Some(byte) => got += usize::from(byte == 5),
                None => thread::sleep(Duration::from_millis(1)),
            }
            pipes.settle();
        }
        drop(write);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(pipes.take(), None, "the end of the source is no byte");
    }
}
