//! The entropy device's worker.
#![no_main]

use cellblock_entropy::{HostRandom, Requests, identity};
use cellblock_sdk::virtio::{Interrupt, Transport};
use cellblock_sdk::virtio_worker;
use cellblock_wire::device::DeviceKind;

virtio_worker!(DeviceKind::Entropy, |parts| {
    let ram = parts.guest_memory()?;
    let interrupt = Interrupt::new(parts.interrupt(0));
    let threads = parts.queue_threads(vec![Requests::new(HostRandom)], &interrupt)?;
    Ok(Transport::new(identity(), threads, ram, interrupt))
});
