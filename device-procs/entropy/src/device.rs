//! The device as its driver finds it.

use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Space};

use crate::spec::QUEUE_SIZE;

/// One queue, no features, no configuration (§5.4.2 to §5.4.4).
pub fn identity() -> Identity {
    Identity {
        id: device_id::ENTROPY,
        features: 0,
        queues: 1,
        queue_size: QUEUE_SIZE,
        config: Space::fixed(Vec::new()),
    }
}
