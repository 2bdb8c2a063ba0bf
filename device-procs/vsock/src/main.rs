//! The socket device's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_sdk::virtio::{Interrupt, Post, Transport};
use cellblock_sdk::virtio_worker;
use cellblock_sdk::worker::Refusal;
use cellblock_vsock::{Host, Vsock, identity};
use cellblock_wire::device::{DeviceConfig, DeviceKind};

virtio_worker!(DeviceKind::Vsock, |parts| {
    // The kind was checked; another configuration cannot come.
    let DeviceConfig::Vsock(config) = *parts.config() else { return Err(Refusal::NoGrant) };
    let ram = parts.guest_memory()?;
    let host = Host::new(parts.broker()?).map_err(|source| Refusal::system("watching the front", source))?;
    let sources = vec![host.source()];
    let work = Vsock::new(&config, host, parts.clock());
    let interrupt = Interrupt::new(parts.interrupt(0));
    let post = Post { work, queues: vec![0, 1, 2], sources };
    let threads = parts.posts(vec![post], &interrupt)?;
    Ok(Transport::new(identity(&config), threads, ram, interrupt))
});
