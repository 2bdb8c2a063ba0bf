//! The console's worker.
#![no_main]
#![forbid(unsafe_code)]

use std::sync::Arc;

use cellblock_console::port::{End, Pipes};
use cellblock_console::state::Standing;
use cellblock_console::{Console, Screen, handler, identity};
use cellblock_sdk::virtio::{Interrupt, Post, Transport};
use cellblock_sdk::worker;
use cellblock_sdk::worker::Refusal;
use cellblock_wire::device::{DeviceConfig, DeviceKind, Role};

worker!(DeviceKind::Console, |parts| {
    // The kind was checked; another configuration cannot come.
    let DeviceConfig::Console(config) = parts.config().clone() else { return Err(Refusal::NoGrant) };
    let ram = parts.guest_memory()?;
    let interrupt = Interrupt::new(parts.interrupt(0));
    let (mut pipes, mut sources) = (Vec::new(), Vec::new());
    for port in 0..config.ports.len() as u8 {
        let mut end = |fd: Arc<_>| {
            sources.push(Arc::clone(&fd));
            End { fd, bit: 1 << (sources.len() - 1) }
        };
        let input = parts.port_end(Role::PortInput(port), true)?.map(&mut end);
        let output = parts.port_end(Role::PortOutput(port), false)?.map(&mut end);
        pipes.push(Pipes { input, output });
    }
    let (identity, screen) = (identity(&config), Screen::new(&config));
    let kept = parts.kept(Standing::legal(config.ports.len()));
    let work = Console::new(&config, pipes, screen.clone(), kept.clone(), &parts.tally());
    let post = Post { work, queues: (0..config.queues()).collect(), sources };
    let threads = parts.posts(vec![post], &interrupt)?;
    let on_event = handler(&identity, screen, interrupt.clone(), threads.kicker(0));
    Ok(Transport::new(identity, threads, ram, interrupt).on_event(on_event).keeping(kept))
});
