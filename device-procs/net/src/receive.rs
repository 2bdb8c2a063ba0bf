//! Frames to the driver: a queue pair's receive queue (§5.1.6.4).

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::{QueueError, Ram, Scatter, Taken, Virtqueue};

use crate::backend::{Backend, Received};
use crate::limit::Flow;
use crate::spec::{ETHERNET_BYTES, QUEUE_SIZE, feature, header};
use crate::turn::{Rest, Turn};

/// The receive queue's side of a pair.
#[derive(Debug)]
pub(crate) struct Receiver<C> {
    room: Scatter,
    /// A frame may lie in several buffers.
    merges: bool,
    flow: Flow<C>,
    /// For one frame's buffers.
    used: Vec<(u16, u32)>,
}

/// What the driver offers.
enum Offer {
    /// Room for a frame, or as much as there can be before some of it is used.
    Room,
    /// Too little; it will kick.
    None,
    /// A chain that is of no use, which has been given back.
    Useless,
}

impl<C: Clock> Receiver<C> {
    pub(crate) fn new(ram: Ram, flow: Flow<C>) -> Self {
        let used = Vec::with_capacity(usize::from(QUEUE_SIZE) + 1);
        Receiver { room: Scatter::new(ram, QUEUE_SIZE), merges: false, flow, used }
    }

    pub(crate) fn begin(&mut self, features: u64) {
        self.merges = features & feature::MRG_RXBUF != 0;
        self.room.forget();
    }

    pub(crate) fn end(&mut self) {
        self.room.forget();
    }

    /// Fills the driver's buffers with what `backend` has.
    pub(crate) fn work(
        &mut self,
        queue: &mut Virtqueue,
        backend: &mut impl Backend,
    ) -> Result<Rest, QueueError> {
        let mut turn = Turn::default();
        loop {
            if let Some(time) = self.flow.not_before() {
                queue.count_limit(time);
                return Ok(turn.rest(Rest { until: Some(time), ..Rest::default() }));
            }
            if turn.is_over() {
                return Ok(turn.rest(Rest { again: true, ..Rest::default() }));
            }
            let Some(wanted) = backend.wanted() else {
                return Ok(turn.rest(Rest { source: true, ..Rest::default() }));
            };
            match self.gather(queue, wanted, &mut turn)? {
                Offer::Room => {}
                Offer::None => return Ok(turn.rest(Rest::default())),
                Offer::Useless => continue,
            }
            match backend.receive(&self.room) {
                Received::Frame(bytes) => {
                    self.pass(queue, bytes)?;
                    self.flow.take(bytes - header::BYTES);
                    turn.count(bytes, true);
                }
                Received::Dropped => turn.count(header::BYTES, false),
                Received::Nothing => return Ok(turn.rest(Rest { source: true, ..Rest::default() })),
                Received::Dead => return Ok(turn.rest(Rest { dead: true, ..Rest::default() })),
            }
        }
    }

    /// Takes chains until there is room for `wanted` bytes. A driver that does not merge gives each frame a chain of its own,
    /// as large as it thinks fit.
    fn gather(&mut self, queue: &mut Virtqueue, wanted: u64, turn: &mut Turn) -> Result<Offer, QueueError> {
        let enough = |room: &Scatter| {
            if self.merges { room.bytes() >= wanted || room.is_full() } else { room.chains() > 0 }
        };
        // What the first bytes of any frame need, in any buffer (§5.1.6.3.1, §5.1.6.3.2).
        let least = if self.merges { header::BYTES } else { header::BYTES + ETHERNET_BYTES };
        while !enough(&self.room) {
            match self.room.take(queue, least)? {
                Taken::Chain => {}
                Taken::None if queue.listen()? => {}
                Taken::None => return Ok(Offer::None),
                // Chains are given back in their order: what a successor does again is told by the used index alone.
                Taken::Useless(_) if self.room.chains() > 0 => {
                    queue.unpop(1);
                    break;
                }
                Taken::Useless(head) => {
                    queue.push(head, 0)?;
                    turn.count(header::BYTES, true);
                    return Ok(Offer::Useless);
                }
            }
        }
        Ok(Offer::Room)
    }

    /// Gives the driver the frame of `bytes` bytes at the beginning of the room.
    fn pass(&mut self, queue: &mut Virtqueue, bytes: u64) -> Result<(), QueueError> {
        let chains = self.room.chains_of(bytes) as u16;
        // §5.1.6.4.1: 1 also where nothing was said of merging. There is room for it in the first buffer.
        let _ = self.room.write_at(header::NUM_BUFFERS, &chains.to_le_bytes());
        self.used.clear();
        self.room.give(bytes, &mut self.used);
        queue.push_all(&self.used)
    }
}
