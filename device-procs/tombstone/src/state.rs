//! What of a tombstone survives its process: nothing of its own.
//!
//! The registers are the transport's (`sdk::virtio`), as the supervisor has seen them written.
