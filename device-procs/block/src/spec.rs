//! Numbers of the block device (Virtio 1.3 §5.2).

/// Feature bits (§5.2.3).
pub mod feature {
    /// The most segments in a request is in `seg_max`.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is in `blk_size`.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush; without it each write is one.
    pub const FLUSH: u64 = 1 << 9;
    /// Alignment and preferred I/O size are in `topology`.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver chooses in `writeback` whether a completed write may wait for a flush.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// The number of queues is in `num_queues`.
    pub const MQ: u64 = 1 << 12;
    /// There is a discard.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a write-zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (§5.2.6).
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Read the disk's name.
    pub const GET_ID: u32 = 8;
    /// Discard ranges.
    pub const DISCARD: u32 = 11;
    /// Zero ranges.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request statuses (§5.2.6).
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IOERR: u8 = 1;
    /// Not a request of this device.
    pub const UNSUPP: u8 = 2;
}

/// Bytes of a request's header: type (32 bits), reserved (32), sector (64).
pub const HEADER_BYTES: usize = 16;
/// Bytes of a discard or write-zeroes segment: sector (64 bits), sectors (32), flags (32).
pub const SEGMENT_BYTES: usize = 16;
/// Segment flag: the range may be deallocated.
pub const SEGMENT_UNMAP: u32 = 1;
/// The bytes of a disk's name (§5.2.6).
pub const ID_BYTES: usize = 20;
/// Bytes of the configuration space up to `max_secure_erase_sectors`, which is not offered.
pub const CONFIG_BYTES: usize = 60;

/// Offset of `writeback` in the configuration space: a byte, 1 = a completed write may wait for a flush.
pub const WRITEBACK: usize = 32;

/// Descriptors in a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Segments of a read or write at most: header and status take a descriptor each.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors of one discard or write-zeroes segment at most: 1 GiB, so that one request cannot hold a queue for long.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Segments of one discard or write-zeroes request at most.
pub const MAX_RANGES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::virtio_blk as linux;

    #[test]
    fn the_numbers_are_linuxs() {
        for (ours, linux) in [
            (feature::SEG_MAX, 1 << linux::VIRTIO_BLK_F_SEG_MAX),
            (feature::RO, 1 << linux::VIRTIO_BLK_F_RO),
            (feature::BLK_SIZE, 1 << linux::VIRTIO_BLK_F_BLK_SIZE),
            (feature::FLUSH, 1 << linux::VIRTIO_BLK_F_FLUSH),
            (feature::TOPOLOGY, 1 << linux::VIRTIO_BLK_F_TOPOLOGY),
            (feature::CONFIG_WCE, 1 << linux::VIRTIO_BLK_F_CONFIG_WCE),
            (feature::MQ, 1 << linux::VIRTIO_BLK_F_MQ),
            (feature::DISCARD, 1 << linux::VIRTIO_BLK_F_DISCARD),
            (feature::WRITE_ZEROES, 1 << linux::VIRTIO_BLK_F_WRITE_ZEROES),
            (request::IN.into(), linux::VIRTIO_BLK_T_IN.into()),
            (request::OUT.into(), linux::VIRTIO_BLK_T_OUT.into()),
            (request::FLUSH.into(), linux::VIRTIO_BLK_T_FLUSH.into()),
            (request::GET_ID.into(), linux::VIRTIO_BLK_T_GET_ID.into()),
            (request::DISCARD.into(), linux::VIRTIO_BLK_T_DISCARD.into()),
            (request::WRITE_ZEROES.into(), linux::VIRTIO_BLK_T_WRITE_ZEROES.into()),
            (status::IOERR.into(), linux::VIRTIO_BLK_S_IOERR.into()),
            (status::UNSUPP.into(), linux::VIRTIO_BLK_S_UNSUPP.into()),
            (ID_BYTES as u64, linux::VIRTIO_BLK_ID_BYTES.into()),
        ] {
            assert_eq!(ours, linux);
        }
    }
}
