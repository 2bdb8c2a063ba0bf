//! What of the device survives its process: `actual`, with the registers (`sdk::virtio`). The size that the balloon shall have
//! is in the successor's grant; what was given back is back.
