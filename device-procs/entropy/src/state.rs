//! What of the device survives its process: nothing of its own. The registers are the transport's (`sdk::virtio`).
