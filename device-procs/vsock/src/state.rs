//! What of the device survives its process: nothing of its own. The registers are the transport's (`sdk::virtio`); streams end
//! with the process that had them, and the guest is told.
