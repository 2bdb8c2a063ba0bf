//! What stands in the place of each virtio device that has failed.

use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, fresh};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_tombstone::{Refusing, identity};
use cellblock_wire::device::{
    BalloonConfig, BlockConfig, CacheMode, ConsoleConfig, DeviceConfig, DriverQueue, DriverRegisters,
    EntropyConfig, Format, Limits, NetConfig, VsockConfig,
};

fn device(number: u8) -> DeviceConfig {
    let limits = Limits::default();
    match number % 6 {
        0 => DeviceConfig::Block(BlockConfig {
            sectors: 1000,
            block_size: 512,
            read_only: false,
            cache: CacheMode::Writeback,
            queues: 3,
            id: String::new(),
            format: Format::Raw,
            backing: 0,
            limits,
        }),
        1 => DeviceConfig::Net(NetConfig {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1400,
            pairs: 2,
            offloads: false,
            receive: limits,
            transmit: limits,
        }),
        2 => DeviceConfig::Console(ConsoleConfig { ports: vec!["port".into(); 2], columns: 80, rows: 25 }),
        3 => DeviceConfig::Entropy(EntropyConfig::default()),
        4 => DeviceConfig::Balloon(BalloonConfig {
            reporting: true,
            statistics: true,
            ..BalloonConfig::default()
        }),
        _ => DeviceConfig::Vsock(VsockConfig { cid: 9 }),
    }
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let config = device(script.u8());
    let queue = DriverQueue { size: script.value() as u32 | 8, ..DriverQueue::default() };
    let driver = DriverRegisters {
        driver_features: script.u64() | 1 << 32,
        queues: vec![queue],
        ..DriverRegisters::default()
    };
    let memory = ram.clone();
    let make = || {
        let (identity, interrupt) = (identity(&config, &driver).expect("it is virtio"), Interrupt::new(Line));
        let queues = (0..identity.queues).collect();
        let engine = Inline::new(vec![(Refusing::new(&config), queues)], interrupt.clone());
        Transport::new(identity, engine, memory.clone(), interrupt).in_order()
    };
    Guest::new(ram, config.queues(), make).run(&mut script, |_| ());
}
