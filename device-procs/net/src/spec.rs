//! Numbers of the network device (Virtio 1.3 §5.1), and of the frames that it moves.

/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of configuration space (§5.1.4): up to and with `mtu`.
pub const CONFIG_BYTES: usize = 12;
/// Where `status` lies in it.
pub const CONFIG_STATUS: usize = 6;
/// VIRTIO_NET_S_LINK_UP, in `status`.
pub const LINK_UP: u16 = 1;

/// Feature bits (§5.1.3).
pub mod feature {
    /// VIRTIO_NET_F_CSUM: the driver may leave checksums to the device.
    pub const CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM: the driver takes frames whose checksum is not made yet.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_MTU: `mtu` is there.
    pub const MTU: u64 = 1 << 3;
    /// VIRTIO_NET_F_MAC: `mac` is there.
    pub const MAC: u64 = 1 << 5;
    /// VIRTIO_NET_F_GUEST_TSO4: the driver takes TCP over IPv4 in large pieces.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6: the same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_HOST_TSO4: the device takes TCP over IPv4 in large pieces.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// VIRTIO_NET_F_HOST_TSO6: the same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// VIRTIO_NET_F_MRG_RXBUF: a frame may lie in several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// VIRTIO_NET_F_STATUS: `status` is there.
    pub const STATUS: u64 = 1 << 16;
    /// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// VIRTIO_NET_F_MQ: `max_virtqueue_pairs` is there, and VIRTIO_NET_CTRL_MQ.
    pub const MQ: u64 = 1 << 22;
}

/// `struct virtio_net_hdr`, before each frame (§5.1.6).
pub mod header {
    /// Its bytes.
    pub const BYTES: u64 = 12;
    /// Where `num_buffers` lies, the last field: in how many buffers the frame is.
    pub const NUM_BUFFERS: u64 = 10;
}

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: u64 = 14;
/// Bytes of a VLAN tag, which comes on top of the MTU.
pub const VLAN_BYTES: u64 = 4;
/// The largest packet without its Ethernet header where nothing else is said.
pub const USUAL_MTU: u64 = 1500;
/// The largest frame that segmentation is left for (§5.1.6.3.1 has 65562 bytes for it with its header).
pub const LARGEST_FRAME: u64 = 65550;

/// The control queue (§5.1.6.5).
pub mod control {
    /// VIRTIO_NET_CTRL_MQ.
    pub const CLASS_MQ: u8 = 4;
    /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET; a `u16` follows.
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
    /// VIRTIO_NET_OK.
    pub const OK: u8 = 0;
    /// VIRTIO_NET_ERR.
    pub const ERR: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::virtio_net;

    #[test]
    fn the_numbers_are_linuxs() {
        for (ours, linux) in [
            (feature::CSUM, virtio_net::VIRTIO_NET_F_CSUM),
            (feature::GUEST_CSUM, virtio_net::VIRTIO_NET_F_GUEST_CSUM),
            (feature::MTU, virtio_net::VIRTIO_NET_F_MTU),
            (feature::MAC, virtio_net::VIRTIO_NET_F_MAC),
            (feature::GUEST_TSO4, virtio_net::VIRTIO_NET_F_GUEST_TSO4),
            (feature::GUEST_TSO6, virtio_net::VIRTIO_NET_F_GUEST_TSO6),
            (feature::HOST_TSO4, virtio_net::VIRTIO_NET_F_HOST_TSO4),
            (feature::HOST_TSO6, virtio_net::VIRTIO_NET_F_HOST_TSO6),
            (feature::MRG_RXBUF, virtio_net::VIRTIO_NET_F_MRG_RXBUF),
            (feature::STATUS, virtio_net::VIRTIO_NET_F_STATUS),
            (feature::CTRL_VQ, virtio_net::VIRTIO_NET_F_CTRL_VQ),
            (feature::MQ, virtio_net::VIRTIO_NET_F_MQ),
        ] {
            assert_eq!(ours, 1 << linux);
        }
        assert_eq!(u32::from(control::CLASS_MQ), virtio_net::VIRTIO_NET_CTRL_MQ);
        assert_eq!(u32::from(control::MQ_VQ_PAIRS_SET), virtio_net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        assert_eq!(u32::from(control::ERR), virtio_net::VIRTIO_NET_ERR);
        assert_eq!(u32::from(LINK_UP), virtio_net::VIRTIO_NET_S_LINK_UP);
        assert_eq!(size_of::<virtio_net::virtio_net_hdr_mrg_rxbuf>() as u64, header::BYTES);
        let offset = std::mem::offset_of!(virtio_net::virtio_net_config, status);
        assert_eq!(offset, CONFIG_STATUS);
        assert_eq!(std::mem::offset_of!(virtio_net::virtio_net_config, mtu) + 2, CONFIG_BYTES);
    }
}
