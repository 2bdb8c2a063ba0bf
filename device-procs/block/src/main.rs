//! A disk's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_block::Disk;
use cellblock_block::image::Stored;
use cellblock_sdk::virtio::{Interrupt, Transport};
use cellblock_sdk::virtio_worker;
use cellblock_sdk::worker::Refusal;
use cellblock_wire::device::{DeviceConfig, DeviceKind};

virtio_worker!(DeviceKind::Block, |parts| {
    // The kind was checked; another configuration cannot come.
    let DeviceConfig::Block(config) = parts.config().clone() else { return Err(Refusal::NoGrant) };
    let ram = parts.guest_memory()?;
    let image = Stored::granted(parts, &config)?;
    let interrupt = Interrupt::new(parts.interrupt(0));
    let disk = Disk::new(&config, &image, &parts.clock(), &interrupt);
    let threads = parts.queue_threads(disk.servers, &interrupt)?;
    Ok(Transport::new(disk.identity, threads, ram, interrupt).in_order())
});
