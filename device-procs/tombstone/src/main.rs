//! The worker that answers for a device that has failed, whatever that is.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_sdk::device::Device;
use cellblock_sdk::virtio::{Interrupt, Post, Transport};
use cellblock_sdk::worker;
use cellblock_tombstone::{Refusing, Silent, identity};
use cellblock_wire::device::DeviceKind;

worker!(None::<DeviceKind>, |parts| {
    let config = parts.config().clone();
    let line = parts.interrupt(0);
    let Some(identity) = identity(&config, &parts.driver()) else {
        let device: Box<dyn Device> = Box::new(Silent);
        return Ok(device);
    };
    let (ram, interrupt) = (parts.guest_memory()?, Interrupt::new(line));
    let post = Post { work: Refusing::new(&config), queues: (0..identity.queues).collect(), sources: vec![] };
    let threads = parts.posts(vec![post], &interrupt)?;
    let device: Box<dyn Device> = Box::new(Transport::new(identity, threads, ram, interrupt).in_order());
    Ok(device)
});
