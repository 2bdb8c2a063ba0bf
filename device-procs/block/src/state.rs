//! What of a disk survives its process: nothing of its own.
//!
//! The registers are the transport's (`sdk::virtio`), how far a queue got is in guest memory, and the rest is the image and
//! the grant, which a successor is given too.
