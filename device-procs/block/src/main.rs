//! A disk's worker.
#![no_main]

use cellblock_block::image::RawImage;
use cellblock_block::{identity, servers};
use cellblock_sdk::virtio::{Interrupt, Transport};
use cellblock_sdk::virtio_worker;
use cellblock_sdk::worker::Refusal;
use cellblock_wire::device::{DeviceConfig, DeviceKind};

virtio_worker!(DeviceKind::Block, |parts| {
    // The kind was checked; another configuration cannot come.
    let DeviceConfig::Block(disk) = parts.config().clone() else { return Err(Refusal::NoGrant) };
    let ram = parts.guest_memory()?;
    let image = RawImage::new(parts.image(!disk.read_only)?);
    let interrupt = Interrupt::new(parts.interrupt(0));
    let threads = parts.queue_threads(servers(&disk, &image), &interrupt)?;
    Ok(Transport::new(identity(&disk), threads, ram, interrupt))
});
