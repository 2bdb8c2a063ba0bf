//! What becomes of requests.

use cellblock_sdk::virtio::{Chain, QueueError, Queues, Wait, Work};
use cellblock_wire::device::DeviceConfig;

use crate::spec::{FAILED, vsock};

/// Requests of one queue that are answered in one turn.
const TURN: usize = 64;

/// What becomes of a queue's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Given back with [`FAILED`] as the last byte.
    Fail,
    /// Given back with nothing written.
    Drop,
    /// Left in the queue: what they wait for does not come.
    Leave,
    /// A socket device's packets: dropped, and answered by resets.
    Reset,
    /// A socket device's events: one, that all connections are gone.
    Tell,
}

/// Serves all queues of a device that has failed.
#[derive(Debug)]
pub struct Refusing {
    fates: Vec<Fate>,
    /// The driver was told that its connections are gone, or never had any.
    told: bool,
}

impl Refusing {
    /// In the place of `device`.
    pub fn new(device: &DeviceConfig) -> Self {
        let queues = usize::from(device.queues());
        let fate = |queue: usize| match device {
            DeviceConfig::Block(_) => Fate::Fail,
            // The control queue is behind all pairs, which receive by their first.
            DeviceConfig::Net(net) if queue == 2 * usize::from(net.pairs) => Fate::Fail,
            DeviceConfig::Net(_) | DeviceConfig::Console(_) if queue.is_multiple_of(2) => Fate::Leave,
            // Statistics are given back when somebody asks for them.
            DeviceConfig::Balloon(_) if queue == 2 => Fate::Leave,
            DeviceConfig::Vsock(_) => match queue {
                vsock::RX => Fate::Leave,
                vsock::TX => Fate::Reset,
                _ => Fate::Tell,
            },
            _ => Fate::Drop,
        };
        Refusing { fates: (0..queues).map(fate).collect(), told: false }
    }

    /// A turn for one queue; whether there is more to do.
    fn serve(&mut self, queues: &mut Queues, slot: usize, fate: Fate) -> Result<bool, QueueError> {
        let Some(queue) = queues.get(slot) else { return Ok(false) };
        queue.silence()?;
        if fate == Fate::Leave || fate == Fate::Tell && (self.told || !queue.is_resumed()) {
            return Ok(false);
        }
        for _ in 0..TURN {
            if queues.stopping(slot) {
                return Ok(false);
            }
            let Some(queue) = queues.get(slot) else { return Ok(false) };
            let Some(head) = queue.pop()? else { return queue.listen() };
            let mut chain = queue.chain();
            let written = match fate {
                Fate::Fail => fail(&mut chain),
                Fate::Tell => written_whole(&mut chain, &vsock::TRANSPORT_RESET),
                Fate::Reset => {
                    let answer = reset(&mut chain);
                    answer.map_or(Ok(()), |answer| send(queues, &answer))?;
                    0
                }
                Fate::Drop | Fate::Leave => 0,
            };
            let Some(queue) = queues.get(slot) else { return Ok(false) };
            queue.count_failure();
            queue.push(head, written)?;
            queues.signal(slot)?;
            if fate == Fate::Tell {
                self.told = true;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Work for Refusing {
    fn begin(&mut self, slot: usize, _features: u64) {
        if self.fates.get(slot) == Some(&Fate::Tell) {
            self.told = false;
        }
    }

    fn end(&mut self, _slot: usize) {}

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let mut again = false;
        for slot in 0..queues.len() {
            let Some(fate) = self.fates.get(slot).copied() else { break };
            again |= self.serve(queues, slot, fate)?;
        }
        Ok(Wait { again, ..Wait::default() })
    }
}

/// Writes the last byte; returns how many bytes are written from the beginning on: that one, if it is the only one.
fn fail(chain: &mut Chain<'_>) -> u32 {
    chain.fail();
    let Ok(last) = chain.reserve_last() else { return 0 };
    let told = chain.write_last(last, FAILED).is_ok();
    u32::from(told && chain.writable() == 0)
}

fn written_whole(chain: &mut Chain<'_>, bytes: &[u8]) -> u32 {
    chain.write(bytes).map_or(0, |()| chain.written())
}

/// The reset that answers the packet in `chain`; none answers a reset (§5.10.6.1).
fn reset(chain: &mut Chain<'_>) -> Option<[u8; vsock::HEADER_BYTES]> {
    let mut packet = [0; vsock::HEADER_BYTES];
    chain.read(&mut packet).ok()?;
    let mut answer = [0; vsock::HEADER_BYTES];
    let mut put = |to: usize, bytes: &[u8]| {
        let place = answer.get_mut(to..).unwrap_or_default();
        place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    };
    let field = |at: usize, length: usize| packet.get(at..at + length).unwrap_or_default();
    if field(vsock::OP, 2) == vsock::RST.to_le_bytes() {
        return None;
    }
    for (to, from, length) in [
        (vsock::SOURCE_CID, vsock::DESTINATION_CID, 8),
        (vsock::DESTINATION_CID, vsock::SOURCE_CID, 8),
        (vsock::SOURCE_PORT, vsock::DESTINATION_PORT, 4),
        (vsock::DESTINATION_PORT, vsock::SOURCE_PORT, 4),
        (vsock::TYPE, vsock::TYPE, 2),
    ] {
        put(to, field(from, length));
    }
    put(vsock::OP, &vsock::RST.to_le_bytes());
    Some(answer)
}

/// Sends `packet`, if the driver has a buffer for it. If not the sender has to find out by itself.
fn send(queues: &mut Queues, packet: &[u8]) -> Result<(), QueueError> {
    let Some(queue) = queues.get(vsock::RX) else { return Ok(()) };
    let Some(head) = queue.pop()? else { return Ok(()) };
    let written = written_whole(&mut queue.chain(), packet);
    queue.push(head, written)?;
    queues.signal(vsock::RX)
}
