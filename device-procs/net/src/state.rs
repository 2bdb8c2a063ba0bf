//! What of the device survives its process: nothing of its own. The registers are the transport's (`sdk::virtio`); which queues
//! of a tap are in use, and what may come through it, the kernel keeps with the tap.
