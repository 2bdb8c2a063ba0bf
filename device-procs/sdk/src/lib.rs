//! What a device worker is made of: main loop, device trait, handshake.
