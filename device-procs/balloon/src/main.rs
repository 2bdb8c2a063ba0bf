//! The balloon's worker.
#![no_main]
#![forbid(unsafe_code)]

use cellblock_balloon::{Balloon, Desk, Front, Pages, identity, space};
use cellblock_sdk::virtio::{Interrupt, Post, Transport};
use cellblock_sdk::worker;
use cellblock_wire::device::{BalloonConfig, DeviceConfig, DeviceKind};

/// Bytes of the host's pages: small, and huge (`memfd_create` with `MFD_HUGE_2MB`).
const UNITS: [u64; 2] = [4 << 10, 2 << 20];

worker!(DeviceKind::Balloon, |parts| {
    let config = match parts.config() {
        DeviceConfig::Balloon(balloon) => *balloon,
        // The kind was checked; another configuration cannot come.
        _ => BalloonConfig::default(),
    };
    let ram = parts.guest_memory()?;
    let interrupt = Interrupt::new(parts.interrupt(0));
    let [small, huge] = UNITS;
    let pages = Pages::new(ram.clone(), if config.huge_pages { huge } else { small });
    let (space, desk, wake) = (space(&config, &pages), Desk::default(), parts.wake_line());
    let work = Balloon::new(pages.clone(), desk.clone(), parts.clock(), move || wake.wake());
    let post = Post { work, queues: (0..config.queues()).collect(), sources: vec![] };
    let threads = parts.posts(vec![post], &interrupt)?;
    let front = Front::new(space.clone(), interrupt.clone(), desk, threads.kicker(0), &pages);
    let reporter = front.clone();
    let transport = Transport::new(identity(&config, space), threads, ram, interrupt);
    Ok(transport.on_event(move |event| front.event(event)).on_question(move || reporter.report()))
});
