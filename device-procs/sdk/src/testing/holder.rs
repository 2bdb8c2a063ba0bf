//! A device for tests whose requests end in whatever order the driver says.

use super::Host;
use super::conformance::Device;
use super::virtio::{DATA, Driver, Segment};
use crate::virtio::{
    Buffers, Identity, Interrupt, QueueError, Queues, Ram, Space, Transport, Wait, Work, engine::Engine,
};

/// Its number, which no device has.
pub const ID: u32 = 42;

/// What a driver finds.
pub const CONFORMS: Device<'static> =
    Device { id: ID, features: 0, queues: 2, queue_size: 64, eager: &[0, 1] };

/// What the first byte of a chain is once it was given back.
pub const FILLED: u8 = 7;

/// Holds each chain of queue 0, until its head is named in queue 1 (two bytes, little-endian): then it writes [`FILLED`] and
/// gives it back.
#[derive(Debug, Default)]
pub struct Holder {
    held: Vec<(u16, Buffers)>,
    named: Vec<u16>,
}

/// Makes a chain available for the device to hold: one byte at `at` in the driver's data. Its head.
pub fn offer<H: Host>(driver: &mut Driver<H>, at: u64) -> u32 {
    driver.poke(DATA + at, &[0]);
    driver.push(0, &[Segment::write(DATA + at, 1)]).into()
}

/// Has the device give `head` back. `number` counts what was named, in a ring of `size` descriptors.
pub fn name<H: Host>(driver: &mut Driver<H>, number: &mut u64, size: u16, head: u32) {
    let at = DATA + 0x1000 + 2 * (*number % u64::from(size));
    *number += 1;
    driver.poke(at, &(head as u16).to_le_bytes());
    driver.push(1, &[Segment::read(at, 2)]);
}

impl Work for Holder {
    fn begin(&mut self, _slot: usize, _features: u64) {}

    fn end(&mut self, slot: usize) {
        if slot == 0 {
            self.held.clear();
            self.named.clear();
        }
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        if let Some(queue) = queues.get(0) {
            let mut buffers = Buffers::default();
            while let Some(head) = queue.pop_into(&mut buffers)? {
                self.held.push((head, std::mem::take(&mut buffers)));
            }
        }
        if let Some(queue) = queues.get(1) {
            while let Some(head) = queue.pop()? {
                let mut name = [0; 2];
                if queue.chain().read(&mut name).is_ok() {
                    self.named.push(u16::from_le_bytes(name));
                }
                queue.push(head, 0)?;
            }
        }
        if let Some(queue) = queues.get(0) {
            for name in self.named.drain(..) {
                let Some(at) = self.held.iter().position(|(head, _)| *head == name) else { continue };
                let (head, buffers) = self.held.remove(at);
                let written = queue.chain_of(&buffers).write(&[FILLED]).map_or(0, |()| 1);
                queue.push(head, written)?;
            }
        }
        let mut again = false;
        for slot in [0, 1] {
            queues.signal(slot)?;
            if let Some(queue) = queues.get(slot) {
                again |= queue.listen()?;
            }
        }
        Ok(Wait { again, ..Wait::default() })
    }
}

/// A device over an engine that has a [`Holder`] at work on queues 0 and 1.
pub fn device<E: Engine>(engine: E, ram: Ram, interrupt: Interrupt) -> Transport<E> {
    let config = Space::fixed(vec![]);
    let identity = Identity { id: ID, features: 0, queues: 2, queue_size: 64, config };
    Transport::new(identity, engine, ram, interrupt)
}
