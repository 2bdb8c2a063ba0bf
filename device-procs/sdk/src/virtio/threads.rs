//! A thread for each queue. KVM kicks it through an eventfd, and it raises the interrupt itself: the data path touches
//! neither the register thread nor the supervisor.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::engine::{Engine, Serve, drain};
use super::interrupt::Interrupt;
use super::queue::{QueueError, Virtqueue};
use crate::host::{WakeLine, start_thread};

/// Where the register thread and one queue's thread meet.
#[derive(Debug, Default)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
    /// The service is to end.
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Orders {
    next: Option<(Virtqueue, u64)>,
    /// From the order until the queue is not touched any more.
    busy: bool,
}

impl Desk {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        // SYNC POINT: Acquire pairs with the Release in `Threads::stop`; the eventfd's write comes after it.
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for an order.
    fn order(&self) -> (Virtqueue, u64) {
        let mut orders = self.orders();
        loop {
            match orders.next.take() {
                Some(order) => return order,
                None => orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn done(&self) {
        self.orders().busy = false;
        self.changed.notify_all();
    }
}

/// The threads of a device.
#[derive(Debug)]
pub struct Threads {
    queues: Vec<Seat>,
}

#[derive(Debug)]
struct Seat {
    desk: Arc<Desk>,
    kick: Arc<OwnedFd>,
}

/// What one queue's thread works with.
struct Post<S> {
    server: S,
    desk: Arc<Desk>,
    kick: Arc<OwnedFd>,
    interrupt: Interrupt,
    wake: WakeLine,
}

impl Threads {
    /// Starts a thread for each of `servers`, with the eventfd of its kicks, which blocks.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn start<S: Serve + Send + 'static>(
        servers: Vec<(S, OwnedFd)>,
        interrupt: &Interrupt,
        wake: &WakeLine,
    ) -> io::Result<Threads> {
        let seat = |(number, (server, kick)): (usize, (S, OwnedFd))| {
            let (desk, kick) = (Arc::new(Desk::default()), Arc::new(kick));
            let post = Post {
                server,
                desk: Arc::clone(&desk),
                kick: Arc::clone(&kick),
                interrupt: interrupt.clone(),
                wake: wake.clone(),
            };
            start_thread(&format!("queue {number}"), move || post.work())?;
            Ok(Seat { desk, kick })
        };
        let queues = servers.into_iter().enumerate().map(seat).collect::<io::Result<_>>()?;
        Ok(Threads { queues })
    }

    fn kick_eventfd(&self, index: usize) {
        if let Some(seat) = self.queues.get(index) {
            // Would take 2^64 kicks to block.
            let _ = rustix::io::write(&*seat.kick, &1u64.to_ne_bytes());
        }
    }
}

impl Engine for Threads {
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64) {
        let Some(seat) = self.queues.get(index) else { return };
        seat.desk.stop.store(false, Ordering::Release);
        *seat.desk.orders() = Orders { next: Some((queue, features)), busy: true };
        seat.desk.changed.notify_all();
    }

    fn kick(&mut self, index: usize) {
        self.kick_eventfd(index);
    }

    fn stop(&mut self, index: usize) {
        if let Some(seat) = self.queues.get(index).filter(|_| self.busy(index)) {
            // SYNC POINT: Release before the eventfd's write, which ends the wait of a thread that did not see it.
            seat.desk.stop.store(true, Ordering::Release);
            self.kick_eventfd(index);
        }
    }

    fn busy(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(|seat| seat.desk.orders().busy)
    }

    fn settle(&self, index: usize, limit: Duration) -> bool {
        let Some(seat) = self.queues.get(index) else { return true };
        let end = Instant::now() + limit;
        let mut orders = seat.desk.orders();
        while orders.busy {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let woken = seat.desk.changed.wait_timeout(orders, left);
            orders = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl<S: Serve> Post<S> {
    /// Serves as ordered, for ever: ending a thread takes system calls that serving does not have.
    fn work(mut self) -> Infallible {
        loop {
            let (queue, features) = self.desk.order();
            self.server.begin(features);
            if self.serve(queue).is_err() {
                self.interrupt.needs_reset();
            }
            self.desk.done();
            // The register thread may wait for the end of a reset, or save that the device needs one.
            self.wake.wake();
        }
    }

    fn serve(&mut self, mut queue: Virtqueue) -> Result<(), QueueError> {
        while !self.desk.stopped() {
            drain(&mut queue, &mut self.server, &self.interrupt, || self.desk.stopped())?;
            if !self.desk.stopped() {
                // Interrupted or not: the ring tells whether there is something.
                let _ = rustix::io::read(&*self.kick, &mut [0u8; 8]);
            }
        }
        Ok(())
    }
}
