//! What the virtio devices are told.

use serde::{Deserialize, Serialize};

/// A token bucket: so much a second, and so much more at once after a time of rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// What flows in each second, 1 and up.
    pub per_second: u64,
    /// What the bucket holds, 1 and up. It is full at the start.
    pub burst: u64,
}

/// What a device may do; `None` = as much as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub bytes: Option<Bucket>,
    /// Requests or packets.
    pub operations: Option<Bucket>,
}

/// The most virtqueues that one device may have.
pub const MAX_QUEUES: u16 = 16;
/// The most descriptors that one virtqueue may have.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Bytes of one queue in the memory of [`Role::InFlight`](super::Role::InFlight): vhost-user's region of a split queue of
/// [`MAX_QUEUE_SIZE`] descriptors, which is 16 bytes and 16 for each, in whole cache lines. Queue N's begins at N times this.
pub const IN_FLIGHT_BYTES: usize = (16 + 16 * MAX_QUEUE_SIZE as usize).next_multiple_of(64);
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
    /// How the image holds the disk's bytes.
    pub format: Format,
    /// Backing images granted: [`Role::Backing`](super::Role::Backing) 0 and up, at most [`MAX_BACKING`].
    pub backing: u8,
    /// Of all queues together.
    pub limits: Limits,
}

/// How an image holds a disk's bytes. It is told, never guessed from the image, whose content is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Format {
    /// As they are.
    #[default]
    Raw,
    /// In QEMU's copy-on-write format.
    Qcow2,
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

/// The longest chain of backing images.
pub const MAX_BACKING: u8 = 8;
/// The most queue pairs of a network device: with the control queue they are 15 queues.
pub const MAX_PAIRS: u16 = 7;
/// The most ports of a console: with two control queues they are 16 queues.
pub const MAX_PORTS: usize = 7;
/// The longest name of a console port, in bytes.
pub const PORT_NAME_BYTES: usize = 32;

/// An entropy device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntropyConfig {
    /// Of what the guest is given.
    pub limits: Limits,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// The largest packet without its Ethernet header, in bytes, 68 to 65535; 0 = the guest is told none.
    pub mtu: u16,
    /// Queue pairs, 1 to [`MAX_PAIRS`].
    pub pairs: u16,
    /// Checksums and segmentation may be left to the other side. Only with a tap.
    pub offloads: bool,
    /// Of packets to the guest.
    pub receive: Limits,
    /// Of packets from the guest.
    pub transmit: Limits,
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Its ports' names, 1 to [`MAX_PORTS`] of at most [`PORT_NAME_BYTES`] bytes; port 0 is the console, and may have none.
    pub ports: Vec<String>,
    /// Width of the console in characters; 0 = not known.
    pub columns: u16,
    /// Height of the console in characters; 0 = not known.
    pub rows: u16,
}

impl ConsoleConfig {
    /// Whether the driver is told of ports (VIRTIO_CONSOLE_F_MULTIPORT): not of a lone console without a name.
    pub fn is_multiport(&self) -> bool {
        self.ports.len() > 1 || self.ports.first().is_some_and(|name| !name.is_empty())
    }

    /// Its virtqueues: a pair for each port, and one for control where the driver is told of ports.
    pub fn queues(&self) -> u16 {
        if self.is_multiport() { 2 * self.ports.len() as u16 + 2 } else { 2 }
    }
}

/// A memory balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// How large it shall be at first, in pages of 4 KiB.
    pub pages: u32,
    /// The guest may take pages back when it has no other.
    pub deflate_on_oom: bool,
    /// The guest tells how it uses its memory.
    pub statistics: bool,
    /// The guest tells which pages it does not use.
    pub reporting: bool,
    /// Guest memory is made of 2-MiB pages, which only as a whole can be given back.
    pub huge_pages: bool,
}

impl BalloonConfig {
    /// Its virtqueues. With reporting all numbers that a driver may count to are there: Virtio 1.3 §5.5.2 numbers the
    /// reporting queue 4, Linux counts only the queues that exist.
    pub const fn queues(&self) -> u16 {
        match (self.reporting, self.statistics) {
            (true, _) => 5,
            (false, true) => 3,
            (false, false) => 2,
        }
    }
}

/// A socket device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's context id: 3 and up, but not 2^32 - 1.
    pub cid: u32,
}
