//! The control queue (§5.1.6.5): over how many queue pairs frames come.

use cellblock_sdk::virtio::{Chain, QueueError, Virtqueue};

use crate::backend::Steer;
use crate::spec::control::{CLASS_MQ, ERR, MQ_VQ_PAIRS_SET, OK};

/// Commands in one turn, at most.
const MOST_COMMANDS: u32 = 16;

/// Serves the control queue.
pub(crate) struct Commands {
    steer: Box<dyn Steer + Send>,
    pairs: u16,
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commands").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

impl Commands {
    /// For a device of `pairs` pairs.
    pub(crate) fn new(steer: Box<dyn Steer + Send>, pairs: u16) -> Self {
        Commands { steer, pairs }
    }

    /// As after a reset: one pair is used (§5.1.5).
    pub(crate) fn reset(&mut self) {
        self.steer.use_pairs(1);
    }

    /// Serves what is there; (the driver got buffers back, there may be more).
    pub(crate) fn work(&mut self, queue: &mut Virtqueue) -> Result<(bool, bool), QueueError> {
        let mut used = false;
        queue.silence()?;
        for _ in 0..MOST_COMMANDS {
            let Some(head) = queue.pop()? else {
                if queue.listen()? {
                    continue;
                }
                return Ok((used, false));
            };
            let written = self.serve(&mut queue.chain());
            queue.push(head, written)?;
            used = true;
        }
        Ok((used, true))
    }

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        let mut command = [0; 4];
        let ack = match chain.read(&mut command) {
            Ok(()) if chain.readable() == 0 => self.perform(command),
            _ => ERR,
        };
        chain.write(&[ack]).map_or(0, |()| 1)
    }

    fn perform(&mut self, [class, command, low, high]: [u8; 4]) -> u8 {
        let pairs = u16::from_le_bytes([low, high]);
        let known = class == CLASS_MQ && command == MQ_VQ_PAIRS_SET && (1..=self.pairs).contains(&pairs);
        if known && self.steer.use_pairs(pairs) { OK } else { ERR }
    }
}
