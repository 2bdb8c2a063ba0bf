//! Who serves the queues, and how one is served.

use std::time::Duration;

use super::chain::Chain;
use super::interrupt::Interrupt;
use super::queue::{QueueError, Virtqueue};

/// Serves the requests of one queue.
pub trait Serve {
    /// The driver is ready, and these are the features that it agreed to.
    fn begin(&mut self, features: u64);

    /// Serves one request; returns how many bytes were written from the beginning of its writable part on.
    fn serve(&mut self, chain: &mut Chain<'_>) -> u32;
}

/// Has each queue of a device served.
pub trait Engine {
    /// Serves queue `index` from now on, and first what is in it already. It is not being served.
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64);

    /// There may be something new in queue `index`.
    fn kick(&mut self, index: usize);

    /// Asks for the end of queue `index`'s service, after the request that is being served.
    fn stop(&mut self, index: usize);

    /// Whether queue `index`'s memory may still be touched.
    fn busy(&self, index: usize) -> bool;

    /// Waits at most `limit` until queue `index` is not busy any more; whether it is not.
    fn settle(&self, index: usize, limit: Duration) -> bool;
}

/// Serves `queue` until it is empty, or `stopped` says so between two requests.
///
/// # Errors
/// The queue makes no sense; it is not to be touched again.
pub fn drain(
    queue: &mut Virtqueue,
    server: &mut impl Serve,
    interrupt: &Interrupt,
    stopped: impl Fn() -> bool,
) -> Result<(), QueueError> {
    loop {
        queue.silence()?;
        while !stopped() {
            let Some(head) = queue.pop()? else { break };
            let written = server.serve(&mut queue.chain());
            queue.push(head, written)?;
            if queue.wants_interrupt()? {
                interrupt.used_buffer();
            }
        }
        if stopped() || !queue.listen()? {
            return Ok(());
        }
    }
}

/// Serves each queue at once, on the caller's thread: for tests, benches and fuzzers.
#[derive(Debug)]
pub struct Inline<S> {
    servers: Vec<S>,
    queues: Vec<Option<Virtqueue>>,
    interrupt: Interrupt,
}

impl<S: Serve> Inline<S> {
    /// A server for each queue.
    pub fn new(servers: Vec<S>, interrupt: Interrupt) -> Self {
        let queues = servers.iter().map(|_| None).collect();
        Inline { servers, queues, interrupt }
    }
}

impl<S: Serve> Engine for Inline<S> {
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64) {
        if let (Some(slot), Some(server)) = (self.queues.get_mut(index), self.servers.get_mut(index)) {
            server.begin(features);
            *slot = Some(queue);
        }
        self.kick(index);
    }

    fn kick(&mut self, index: usize) {
        let (Some(slot), Some(server)) = (self.queues.get_mut(index), self.servers.get_mut(index)) else {
            return;
        };
        let Some(queue) = slot else { return };
        if drain(queue, server, &self.interrupt, || false).is_err() {
            *slot = None;
            self.interrupt.needs_reset();
        }
    }

    fn stop(&mut self, index: usize) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = None;
        }
    }

    fn busy(&self, _index: usize) -> bool {
        false
    }

    fn settle(&self, _index: usize, _limit: Duration) -> bool {
        true
    }
}
