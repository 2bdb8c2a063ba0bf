//! A network device's worker.
#![no_main]
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cellblock_net::backend::{OnePair, Passt, Tap, TapQueues};
use cellblock_net::{identity, pairs};
use cellblock_sdk::virtio::{Identity, Interrupt, Post, Ram, Threads, Transport, Work};
use cellblock_sdk::virtio_worker;
use cellblock_sdk::worker::{Parts, Refusal};
use cellblock_wire::device::{DeviceConfig, DeviceKind, NetConfig};

virtio_worker!(DeviceKind::Net, |parts| {
    // The kind was checked; another configuration cannot come.
    let DeviceConfig::Net(config) = parts.config().clone() else { return Err(Refusal::NoGrant) };
    let (ram, identity) = (parts.guest_memory()?, identity(&config));
    let interrupt = Interrupt::new(parts.interrupt(0));
    let threads = threads(parts, &config, &identity, &ram, &interrupt)?;
    Ok(Transport::new(identity, threads, ram, interrupt))
});

/// A thread for each queue pair, over the stream or the tap that was granted.
fn threads(
    parts: &mut Parts,
    config: &NetConfig,
    identity: &Identity,
    ram: &Ram,
    interrupt: &Interrupt,
) -> Result<Threads, Refusal> {
    let clock = parts.clock();
    if let Some(stream) = parts.net_stream() {
        let stream = Arc::new(stream);
        let backends = vec![Passt::new(Arc::clone(&stream))];
        let pairs = pairs(config, identity, ram, &clock, backends, Box::new(OnePair));
        return parts.posts(posts(pairs, &[stream]), interrupt);
    }
    let taps: Vec<_> =
        (0..config.pairs as u8).map(|pair| parts.tap(pair).map(Arc::new)).collect::<Result<_, _>>()?;
    let backends = taps.iter().map(|tap| Tap::new(Arc::clone(tap), config.mtu)).collect();
    let steer = Box::new(TapQueues::new(taps.clone()));
    let pairs = pairs(config, identity, ram, &clock, backends, steer);
    parts.posts(posts(pairs, &taps), interrupt)
}

fn posts<W: Work>(pairs: Vec<(W, Vec<u16>)>, ends: &[Arc<OwnedFd>]) -> Vec<Post<W>> {
    let post = |((work, queues), end)| Post { work, queues, sources: vec![Arc::clone(end)] };
    pairs.into_iter().zip(ends).map(post).collect()
}
