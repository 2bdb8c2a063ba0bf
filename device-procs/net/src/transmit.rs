//! Frames of the driver's: a queue pair's transmit queue (§5.1.6.2).

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::{Gather, QueueError, Ram, Virtqueue};

use crate::backend::{Backend, Sent};
use crate::limit::Flow;
use crate::spec::{ETHERNET_BYTES, LARGEST_FRAME, QUEUE_SIZE, header};
use crate::turn::{Rest, Turn};

/// The transmit queue's side of a pair.
#[derive(Debug)]
pub(crate) struct Transmitter<C> {
    chain: Gather,
    flow: Flow<C>,
}

impl<C: Clock> Transmitter<C> {
    pub(crate) fn new(ram: Ram, flow: Flow<C>) -> Self {
        Transmitter { chain: Gather::new(ram, QUEUE_SIZE), flow }
    }

    /// Sends what the driver has by `backend`; to one that is `dead`, nothing gets.
    pub(crate) fn work(
        &mut self,
        queue: &mut Virtqueue,
        backend: &mut impl Backend,
        dead: bool,
    ) -> Result<Rest, QueueError> {
        queue.silence()?;
        let mut turn = Turn::default();
        let mut rest = self.send_all(queue, backend, dead, &mut turn)?;
        match backend.flush() {
            Sent::Gone => {}
            Sent::Later => rest.source = true,
            Sent::Dead => rest.dead = true,
        }
        Ok(turn.rest(rest))
    }

    fn send_all(
        &mut self,
        queue: &mut Virtqueue,
        backend: &mut impl Backend,
        dead: bool,
        turn: &mut Turn,
    ) -> Result<Rest, QueueError> {
        loop {
            if let Some(time) = self.flow.not_before() {
                queue.count_limit(time);
                return Ok(Rest { until: Some(time), ..Rest::default() });
            }
            if turn.is_over() {
                return Ok(Rest { again: true, ..Rest::default() });
            }
            let Some(head) = self.chain.pop(queue)? else {
                if queue.listen()? {
                    continue;
                }
                return Ok(Rest::default());
            };
            let bytes = self.chain.bytes();
            let smallest = header::BYTES + ETHERNET_BYTES;
            let makes_sense =
                (smallest..=header::BYTES + LARGEST_FRAME).contains(&bytes) && self.chain.is_whole();
            let sent = if makes_sense && !dead { backend.send(&self.chain) } else { Sent::Gone };
            if sent == Sent::Later {
                queue.unpop(1);
                return Ok(Rest { source: true, ..Rest::default() });
            }
            queue.push(head, 0)?;
            turn.count(bytes, true);
            if makes_sense {
                self.flow.take(bytes - header::BYTES);
            }
            if sent == Sent::Dead {
                return Ok(Rest { dead: true, again: true, ..Rest::default() });
            }
        }
    }
}
