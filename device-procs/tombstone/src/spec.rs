//! Numbers of the devices that may fail (Virtio 1.3 §5).

/// Descriptors in each queue where no driver has chosen: as the smallest device has them, so that they fit when it is revived.
pub const QUEUE_SIZE: u16 = 64;

/// Feature bits of the device's own (§2.2): 0 to 23, and 50 and up.
pub const DEVICE_FEATURES: u64 = 0x00ff_ffff;

/// What a request that failed has as its last byte: `VIRTIO_BLK_S_IOERR` (§5.2.6) and `VIRTIO_NET_ERR` (§5.1.6.5) are the same.
pub const FAILED: u8 = 1;

/// The configuration spaces, as far as drivers need them to go on: offsets in bytes.
pub mod config {
    /// Bytes of each.
    pub const BYTES: usize = 64;
    /// Block (§5.2.4): `capacity`, 64 bits.
    pub const BLOCK_CAPACITY: usize = 0;
    /// `seg_max`, 32 bits.
    pub const BLOCK_SEG_MAX: usize = 12;
    /// `blk_size`, 32 bits.
    pub const BLOCK_SIZE: usize = 20;
    /// `num_queues`, 16 bits.
    pub const BLOCK_QUEUES: usize = 34;
    /// Network (§5.1.4): `mac`, 6 bytes. `status` after it is zero: the link is down.
    pub const NET_MAC: usize = 0;
    /// `max_virtqueue_pairs`, 16 bits.
    pub const NET_PAIRS: usize = 8;
    /// `mtu`, 16 bits.
    pub const NET_MTU: usize = 10;
    /// Console (§5.3.4): `cols` and `rows`, 16 bits each.
    pub const CONSOLE_SIZE: usize = 0;
    /// `max_nr_ports`, 32 bits.
    pub const CONSOLE_PORTS: usize = 4;
    /// Socket (§5.10.4): `guest_cid`, 64 bits.
    pub const VSOCK_CID: usize = 0;
}

/// The socket device (§5.10).
pub mod vsock {
    /// Queue of packets to the guest.
    pub const RX: usize = 0;
    /// Queue of packets of the guest.
    pub const TX: usize = 1;
    /// Queue of events.
    pub const EVENT: usize = 2;
    /// Bytes of a packet's header (§5.10.6).
    pub const HEADER_BYTES: usize = 44;
    /// Offsets in it: source and destination of context id and port, which an answer swaps.
    pub const SOURCE_CID: usize = 0;
    /// As above.
    pub const DESTINATION_CID: usize = 8;
    /// As above.
    pub const SOURCE_PORT: usize = 16;
    /// As above.
    pub const DESTINATION_PORT: usize = 20;
    /// `type`, 16 bits, the same in an answer.
    pub const TYPE: usize = 28;
    /// `op`, 16 bits.
    pub const OP: usize = 30;
    /// VIRTIO_VSOCK_OP_RST.
    pub const RST: u16 = 3;
    /// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7): all streams are gone.
    pub const TRANSPORT_RESET: [u8; 4] = [0; 4];
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::{virtio_blk, virtio_net};

    #[test]
    fn the_numbers_are_linuxs() {
        assert_eq!(u32::from(FAILED), virtio_blk::VIRTIO_BLK_S_IOERR);
        assert_eq!(u32::from(FAILED), virtio_net::VIRTIO_NET_ERR);
        for (ours, linux) in [
            (config::BLOCK_CAPACITY, std::mem::offset_of!(virtio_blk::virtio_blk_config, capacity)),
            (config::BLOCK_SEG_MAX, std::mem::offset_of!(virtio_blk::virtio_blk_config, seg_max)),
            (config::BLOCK_SIZE, std::mem::offset_of!(virtio_blk::virtio_blk_config, blk_size)),
            (config::BLOCK_QUEUES, std::mem::offset_of!(virtio_blk::virtio_blk_config, num_queues)),
            (config::NET_MAC, std::mem::offset_of!(virtio_net::virtio_net_config, mac)),
            (config::NET_PAIRS, std::mem::offset_of!(virtio_net::virtio_net_config, max_virtqueue_pairs)),
            (config::NET_MTU, std::mem::offset_of!(virtio_net::virtio_net_config, mtu)),
        ] {
            assert_eq!(ours, linux);
        }
    }
}
