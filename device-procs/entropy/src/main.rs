//! The entropy device's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_entropy::{HostRandom, Requests, identity};
use cellblock_sdk::virtio::{Interrupt, Transport};
use cellblock_sdk::virtio_worker;
use cellblock_wire::device::{DeviceConfig, DeviceKind, Limits};

virtio_worker!(DeviceKind::Entropy, |parts| {
    let ram = parts.guest_memory()?;
    let interrupt = Interrupt::new(parts.interrupt(0));
    let limits = match parts.config() {
        DeviceConfig::Entropy(entropy) => entropy.limits,
        // The kind was checked; another configuration cannot come.
        _ => Limits::default(),
    };
    let requests = Requests::new(HostRandom, parts.clock(), &limits);
    let threads = parts.queue_threads(vec![requests], &interrupt)?;
    Ok(Transport::new(identity(), threads, ram, interrupt).in_order())
});
