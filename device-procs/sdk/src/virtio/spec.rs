//! Numbers of Virtio 1.3 (OASIS): registers of virtio-mmio (§4.2.2), device status (§2.1), reserved features (§6).

/// Register offsets in bytes; each is 32 bits wide and accessed whole (§4.2.2.2).
pub mod register {
    /// `virt`.
    pub const MAGIC_VALUE: u64 = 0x000;
    /// 2: not legacy.
    pub const VERSION: u64 = 0x004;
    /// Which device.
    pub const DEVICE_ID: u64 = 0x008;
    /// Whose.
    pub const VENDOR_ID: u64 = 0x00c;
    /// 32 of the device's features.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// 32 of the features that the driver accepts.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Which queue the queue registers are of.
    pub const QUEUE_SEL: u64 = 0x030;
    /// The queue's largest size; 0 = there is no such queue.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// The queue's size.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// Whether the queue may be used.
    pub const QUEUE_READY: u64 = 0x044;
    /// A queue's number: there are new buffers in it.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Why it interrupts.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// What of that is dealt with.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Device status.
    pub const STATUS: u64 = 0x070;
    /// Descriptor table, low half.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Descriptor table, high half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Driver area (available ring), low half.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Driver area, high half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Device area (used ring), low half.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Device area, high half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Shared memory regions (there are none): length and base, low and high halves, read as all ones.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// The last of these.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes when the configuration space has.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Configuration space; accessed in any width.
    pub const CONFIG: u64 = 0x100;
}

/// `MagicValue`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// `Version`.
pub const MMIO_VERSION: u32 = 2;
/// `VendorID`: ours.
pub const VENDOR: u32 = u32::from_le_bytes(*b"Cell");

/// Device status bits (§2.1).
pub mod status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// And knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met an error that only a reset mends.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// `InterruptStatus` bits (§4.2.2).
pub mod interrupt {
    /// The device used a buffer.
    pub const USED_BUFFER: u32 = 1;
    /// Configuration space or status changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Reserved feature bits (§6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device ids (§5).
pub mod device_id {
    /// Network device.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const ENTROPY: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
}

/// VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.6).
pub const NO_INTERRUPT: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::{virtio_config, virtio_ids, virtio_mmio, virtio_ring};

    #[test]
    fn the_numbers_are_linuxs() {
        for (ours, linux) in [
            (register::DEVICE_FEATURES_SEL, virtio_mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL),
            (register::DRIVER_FEATURES_SEL, virtio_mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL),
            (register::QUEUE_SEL, virtio_mmio::VIRTIO_MMIO_QUEUE_SEL),
            (register::QUEUE_SIZE_MAX, virtio_mmio::VIRTIO_MMIO_QUEUE_NUM_MAX),
            (register::QUEUE_SIZE, virtio_mmio::VIRTIO_MMIO_QUEUE_NUM),
            (register::QUEUE_READY, virtio_mmio::VIRTIO_MMIO_QUEUE_READY),
            (register::QUEUE_NOTIFY, virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY),
            (register::INTERRUPT_STATUS, virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS),
            (register::INTERRUPT_ACK, virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK),
            (register::STATUS, virtio_mmio::VIRTIO_MMIO_STATUS),
            (register::QUEUE_DESC_LOW, virtio_mmio::VIRTIO_MMIO_QUEUE_DESC_LOW),
            (register::QUEUE_DRIVER_HIGH, virtio_mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
            (register::QUEUE_DEVICE_HIGH, virtio_mmio::VIRTIO_MMIO_QUEUE_USED_HIGH),
            (register::SHM_LEN_LOW, virtio_mmio::VIRTIO_MMIO_SHM_LEN_LOW),
            (register::SHM_BASE_HIGH, virtio_mmio::VIRTIO_MMIO_SHM_BASE_HIGH),
            (register::CONFIG_GENERATION, virtio_mmio::VIRTIO_MMIO_CONFIG_GENERATION),
            (register::CONFIG, virtio_mmio::VIRTIO_MMIO_CONFIG),
            (status::FEATURES_OK.into(), virtio_config::VIRTIO_CONFIG_S_FEATURES_OK),
            (status::DEVICE_NEEDS_RESET.into(), virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET),
            (feature::INDIRECT_DESC, 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
            (feature::EVENT_IDX, 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            (device_id::NET.into(), virtio_ids::VIRTIO_ID_NET),
            (device_id::BLOCK.into(), virtio_ids::VIRTIO_ID_BLOCK),
            (device_id::CONSOLE.into(), virtio_ids::VIRTIO_ID_CONSOLE),
            (device_id::BALLOON.into(), virtio_ids::VIRTIO_ID_BALLOON),
            (device_id::VSOCK.into(), virtio_ids::VIRTIO_ID_VSOCK),
            (device_id::ENTROPY.into(), virtio_ids::VIRTIO_ID_RNG),
            (NO_INTERRUPT.into(), virtio_ring::VRING_AVAIL_F_NO_INTERRUPT),
        ] {
            assert_eq!(ours, u64::from(linux));
        }
    }
}
