//! The devices there are, and what each is told at its start.

use serde::{Deserialize, Serialize};

/// Which device model a worker runs. The name is also its binary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceKind {
    /// 16550A serial port.
    Serial,
    /// CMOS real-time clock.
    Rtc,
    /// i8042 keyboard controller: the reset line.
    I8042,
    /// ACPI sleep, reset and power-button registers.
    AcpiPower,
    /// Virtio block device.
    Block,
    /// Virtio entropy device.
    Entropy,
}

impl DeviceKind {
    /// Every kind, in the order in which they are numbered.
    pub const ALL: [DeviceKind; 6] = [
        DeviceKind::Serial,
        DeviceKind::Rtc,
        DeviceKind::I8042,
        DeviceKind::AcpiPower,
        DeviceKind::Block,
        DeviceKind::Entropy,
    ];

    /// The name in messages, policies and `libexec/cellblock/`.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Serial => "serial",
            DeviceKind::Rtc => "rtc",
            DeviceKind::I8042 => "i8042",
            DeviceKind::AcpiPower => "acpi-power",
            DeviceKind::Block => "block",
            DeviceKind::Entropy => "entropy",
        }
    }

    /// Room for the device's own state in its state page, in bytes: the `device_bytes` of the page's shape, on both sides.
    pub const fn state_bytes(self) -> usize {
        512
    }
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a descriptor granted to a worker is for. A role is granted at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Read end of a pipe: bytes from the host to the guest (serial input).
    HostInput,
    /// Write end of a pipe: bytes from the guest to the host (serial output).
    HostOutput,
    /// An irqfd's eventfd: write 1 to raise interrupt line number N of the device (0-based), edge-triggered.
    Interrupt(u8),
    /// Guest memory that is mapped at guest-physical `address`: `bytes` of the descriptor's sealed memfd from `offset` on. One
    /// role for each piece, all with the same memfd.
    GuestMemory {
        /// Guest-physical address of the first byte.
        address: u64,
        /// Length in bytes.
        bytes: u64,
        /// Where it begins in the memfd.
        offset: u64,
    },
    /// An ioeventfd's eventfd: counts the guest's kicks of virtqueue number N.
    QueueKick(u16),
    /// The disk's image, opened and locked by the front.
    Image,
}

/// A device's static configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// 16550A; output that a full sink cannot take is kept up to this many bytes, then dropped and counted.
    Serial {
        /// Bytes buffered between guest and sink, 1 to 1 MiB.
        buffer: u32,
    },
    /// CMOS RTC; time is UTC, and `CLOCK_REALTIME` its source.
    Rtc,
    /// i8042.
    I8042,
    /// ACPI power registers.
    AcpiPower,
    /// Virtio block device.
    Block(BlockConfig),
    /// Virtio entropy device.
    Entropy,
}

/// The most virtqueues that one device may have.
pub const MAX_QUEUES: u16 = 16;
/// A disk's capacity is a multiple of this many bytes, whatever its blocks.
pub const SECTOR: u64 = 512;
/// The longest name of a disk, in bytes (Virtio 1.3 §5.2.6: VIRTIO_BLK_T_GET_ID).
pub const DISK_ID_BYTES: usize = 20;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// The disk's logical block size in bytes: a power of two from 512 to 4096. Requests to a `Direct` image must be
    /// aligned to it.
    pub block_size: u32,
    /// The guest may not write.
    pub read_only: bool,
    /// What a completed write and a completed flush promise.
    pub cache: CacheMode,
    /// Virtqueues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// What the guest reads as the disk's name: at most [`DISK_ID_BYTES`] ASCII characters.
    pub id: String,
}

/// What the host's page cache does for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CacheMode {
    /// A completed write is in the host's page cache, a completed flush on stable storage.
    #[default]
    Writeback,
    /// As `Writeback`, past the page cache: the image is opened with `O_DIRECT`.
    Direct,
    /// A flush promises nothing: what a crash of the host leaves is undefined.
    Unsafe,
}

impl DeviceConfig {
    /// The kind that this configures.
    pub const fn kind(&self) -> DeviceKind {
        match self {
            DeviceConfig::Serial { .. } => DeviceKind::Serial,
            DeviceConfig::Rtc => DeviceKind::Rtc,
            DeviceConfig::I8042 => DeviceKind::I8042,
            DeviceConfig::AcpiPower => DeviceKind::AcpiPower,
            DeviceConfig::Block(_) => DeviceKind::Block,
            DeviceConfig::Entropy => DeviceKind::Entropy,
        }
    }
}
