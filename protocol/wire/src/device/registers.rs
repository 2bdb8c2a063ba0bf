//! A virtio-mmio device's registers (Virtio 1.3 §4.2.2), as its driver has written them.

use serde::{Deserialize, Serialize};

/// Bytes of configuration space whose writes are kept: more than any device lets its driver write.
pub const KEPT_CONFIG_BYTES: usize = 64;

/// What a driver has written since it reset its device last; what it has not written is 0. The supervisor notes it from the
/// accesses that pass through it, so it is the guest's word and no worker's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverRegisters {
    /// `Status`.
    pub status: u8,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `DriverFeatures` 0 to 63.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// The queues, at most [`MAX_QUEUES`](super::MAX_QUEUES).
    pub queues: Vec<DriverQueue>,
    /// What was written to configuration space: offset below [`KEPT_CONFIG_BYTES`], byte.
    pub config: Vec<(u8, u8)>,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverQueue {
    /// `QueueSize`; 0 = not written.
    pub size: u32,
    /// `QueueDesc`.
    pub desc: u64,
    /// `QueueDriver`.
    pub driver: u64,
    /// `QueueDevice`.
    pub device: u64,
    /// `QueueReady`.
    pub ready: bool,
}
