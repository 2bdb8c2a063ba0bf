//! The devices there are, and what each is told at its start.

use serde::{Deserialize, Serialize};

mod check;
mod registers;
mod virtio;

pub(crate) use check::{check, check_fallback};
pub use registers::{DriverQueue, DriverRegisters, KEPT_CONFIG_BYTES};
pub use virtio::{
    BalloonConfig, BlockConfig, Bucket, CacheMode, ConsoleConfig, DISK_ID_BYTES, EntropyConfig, Format,
    IN_FLIGHT_BYTES, Limits, MAX_BACKING, MAX_PAIRS, MAX_PORTS, MAX_QUEUE_SIZE, MAX_QUEUES, NetConfig,
    PORT_NAME_BYTES, SECTOR, VsockConfig,
};

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
    /// Virtio network device.
    Net,
    /// Virtio console.
    Console,
    /// Virtio memory balloon.
    Balloon,
    /// Virtio socket device.
    Vsock,
}

impl DeviceKind {
    /// Every kind, in the order in which they are numbered.
    pub const ALL: [DeviceKind; 10] = [
        DeviceKind::Serial,
        DeviceKind::Rtc,
        DeviceKind::I8042,
        DeviceKind::AcpiPower,
        DeviceKind::Block,
        DeviceKind::Entropy,
        DeviceKind::Net,
        DeviceKind::Console,
        DeviceKind::Balloon,
        DeviceKind::Vsock,
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
            DeviceKind::Net => "net",
            DeviceKind::Console => "console",
            DeviceKind::Balloon => "balloon",
            DeviceKind::Vsock => "vsock",
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
    /// A stream socket: bytes from the host to the guest (serial input), which stay in it until they are the guest's for good.
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
    /// What the guest reads its registers from: a memfd of one page, which the worker and the supervisor write.
    Registers,
    /// An ioeventfd's eventfd: counts the guest's kicks of virtqueue number N.
    QueueKick(u16),
    /// The disk's image, opened and locked by the front.
    Image,
    /// The image that the disk's image (0) or backing file N - 1 is based on, opened for reading and locked by the front.
    Backing(u8),
    /// Queue N of a tap that the front opened and set up: with a virtio-net header of 12 bytes before each packet. It serves
    /// queue pair N.
    Tap(u8),
    /// A Unix stream socket to a user-mode network: a big-endian length of 4 bytes before each packet.
    NetStream,
    /// A stream socket: bytes from the host to console port N, which stay in it until they are the guest's for good.
    PortInput(u8),
    /// Write end of a pipe: bytes from console port N to the host.
    PortOutput(u8),
    /// A SEQPACKET socket to the front, which makes connections for a vsock device and passes them.
    Broker,
    /// Which requests are in flight: a memfd in the layout of vhost-user's in-flight buffer, of all queues.
    InFlight,
    /// A connected vhost-user socket, in place of guest memory, kicks and interrupts.
    VhostUser,
    /// Memory for bytes on their way between the guest and `HostInput` and `HostOutput`, which outlives the worker: a memfd of
    /// [`host_bytes`] bytes.
    HostBytes,
}

/// Words of [`Role::HostBytes`] before the bytes themselves: see `cellblock_sdk::host`.
pub const HOST_BYTES_HEADER: usize = 4;

/// Bytes of [`Role::HostBytes`] for a device that buffers `buffer` bytes of output: 1 to 1 MiB, rounded up to a power of
/// two of at least 8, behind the header.
pub const fn host_bytes(buffer: u32) -> usize {
    const MOST: usize = 1 << 20;
    let room = (buffer as usize).next_power_of_two();
    let room = if room < 8 {
        8
    } else if room > MOST {
        MOST
    } else {
        room
    };
    HOST_BYTES_HEADER * size_of::<u64>() + room
}

/// A device's static configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// 16550A; output that a full sink cannot take is kept up to this many bytes, then dropped and counted.
    Serial {
        /// Bytes buffered between guest and sink, 1 to 1 MiB.
        buffer: u32,
        /// Of output; the transmitter stays busy past them.
        limits: Limits,
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
    Entropy(EntropyConfig),
    /// Virtio network device.
    Net(NetConfig),
    /// Virtio console.
    Console(ConsoleConfig),
    /// Virtio memory balloon.
    Balloon(BalloonConfig),
    /// Virtio socket device.
    Vsock(VsockConfig),
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
            DeviceConfig::Entropy(_) => DeviceKind::Entropy,
            DeviceConfig::Net(_) => DeviceKind::Net,
            DeviceConfig::Console(_) => DeviceKind::Console,
            DeviceConfig::Balloon(_) => DeviceKind::Balloon,
            DeviceConfig::Vsock(_) => DeviceKind::Vsock,
        }
    }

    /// Its virtqueues; 0 = it is no virtio device.
    pub fn queues(&self) -> u16 {
        match self {
            DeviceConfig::Block(disk) => disk.queues,
            DeviceConfig::Entropy(_) => 1,
            // Pairs; the control queue tells how many of several are used.
            DeviceConfig::Net(net) => 2 * net.pairs + u16::from(net.pairs > 1),
            DeviceConfig::Console(console) => console.queues(),
            DeviceConfig::Balloon(balloon) => balloon.queues(),
            DeviceConfig::Vsock(_) => 3,
            DeviceConfig::Serial { .. }
            | DeviceConfig::Rtc
            | DeviceConfig::I8042
            | DeviceConfig::AcpiPower => 0,
        }
    }
}
