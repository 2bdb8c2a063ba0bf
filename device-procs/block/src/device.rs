//! A disk as its driver finds it, and who serves its queues.

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Interrupt, Space};
use cellblock_wire::device::{BlockConfig, CacheMode};

use crate::image::Image;
use crate::request::{Requests, Shared};
use crate::spec::{CONFIG_BYTES, MAX_RANGE_SECTORS, MAX_RANGES, QUEUE_SIZE, SEG_MAX, WRITEBACK, feature};

/// A disk: what its driver is told, and who serves its queues.
#[derive(Debug)]
pub struct Disk<I, C> {
    /// What the driver is told.
    pub identity: Identity,
    /// A server for each queue.
    pub servers: Vec<Requests<I, C>>,
}

impl<I: Image + Clone, C: Clock + Clone> Disk<I, C> {
    /// The disk that `config` describes, kept in `image`. It may raise `interrupt` for a change of its configuration space.
    pub fn new(config: &BlockConfig, image: &I, clock: &C, interrupt: &Interrupt) -> Self {
        let space = Space::with_writable(configuration_space(config), WRITEBACK..WRITEBACK + 1);
        let shared = Shared::new(config, space.clone(), interrupt.clone());
        let server = |_| Requests::new(config, image.clone(), clock.clone(), shared.clone());
        let identity = Identity {
            id: device_id::BLOCK,
            features: features(config),
            queues: config.queues,
            queue_size: QUEUE_SIZE,
            config: space,
        };
        Disk { identity, servers: (0..config.queues).map(server).collect() }
    }
}

fn features(config: &BlockConfig) -> u64 {
    let always = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY;
    let kind = if config.read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES };
    let queues = if config.queues > 1 { feature::MQ } else { 0 };
    // Where a flush promises nothing there is no choice either.
    let choice = if config.read_only || config.cache == CacheMode::Unsafe { 0 } else { feature::CONFIG_WCE };
    always | kind | queues | choice
}

/// §5.2.4. Fields of features that are not offered are zero.
fn configuration_space(config: &BlockConfig) -> Vec<u8> {
    let block_sectors = config.block_size / 512;
    let mut space = Vec::with_capacity(CONFIG_BYTES);
    space.extend(config.sectors.to_le_bytes());
    space.extend(0u32.to_le_bytes()); // size_max
    space.extend(SEG_MAX.to_le_bytes());
    space.extend([0; 4]); // geometry
    space.extend(config.block_size.to_le_bytes());
    // Topology, in logical blocks: physical blocks of 4 KiB, aligned, with 4 KiB at least and 1 MiB at best.
    space.extend([(4096 / config.block_size.max(512)).max(1).ilog2() as u8, 0]);
    space.extend(((8 / block_sectors.clamp(1, 8)) as u16).to_le_bytes());
    space.extend((2048 / block_sectors.max(1)).to_le_bytes());
    space.extend([1, 0]); // writeback, unused
    space.extend(config.queues.to_le_bytes());
    if !config.read_only {
        space.extend(MAX_RANGE_SECTORS.to_le_bytes()); // discard
        space.extend(MAX_RANGES.to_le_bytes());
        space.extend(block_sectors.to_le_bytes()); // its alignment
        space.extend(MAX_RANGE_SECTORS.to_le_bytes()); // write-zeroes
        space.extend(MAX_RANGES.to_le_bytes());
        space.push(1); // may unmap
    }
    space.resize(CONFIG_BYTES, 0);
    space
}
