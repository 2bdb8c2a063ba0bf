//! Numbers of the entropy device (Virtio 1.3 §5.4).

/// Descriptors in its queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes that one request gets at most.
pub const MAX_BYTES: u64 = 64 << 10;
