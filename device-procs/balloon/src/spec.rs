//! Numbers of the balloon device (Virtio 1.3 §5.5).

/// Feature bits (§5.5.3). Not offered: VIRTIO_BALLOON_F_MUST_TELL_HOST (a page is there again when it is touched, so nobody need
/// be told before), VIRTIO_BALLOON_F_FREE_PAGE_HINT (for migration), VIRTIO_BALLOON_F_PAGE_POISON.
pub mod feature {
    /// VIRTIO_BALLOON_F_STATS_VQ.
    pub const STATS_VQ: u64 = 1 << 1;
    /// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// VIRTIO_BALLOON_F_PAGE_REPORTING.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Queues (§5.5.2) that always have the same number.
pub mod queue {
    /// Pages that the driver puts into the balloon.
    pub const INFLATE: usize = 0;
    /// Pages that it takes out.
    pub const DEFLATE: usize = 1;
    /// Statistics, if they are negotiated.
    pub const STATISTICS: usize = 2;
}

/// The configuration space (§5.5.4), offsets in bytes; both fields have four.
pub mod config {
    /// `num_pages`: the size that the balloon shall have.
    pub const NUM_PAGES: usize = 0;
    /// `actual`: the size that it has. The driver writes it.
    pub const ACTUAL: usize = 4;
    /// All of it; what follows belongs to features that are not offered.
    pub const BYTES: usize = 8;
}

/// Bytes of a page, whatever the guest's or the host's are (§5.5.6).
pub const PAGE: u64 = 4096;
/// Bytes of a statistic: a tag of two and a value of eight (§5.5.6.3).
pub const STATISTIC_BYTES: usize = 10;
/// Descriptors in each queue. Linux reports free pages 32 at a time, and not to a queue that is smaller.
pub const QUEUE_SIZE: u16 = 128;
