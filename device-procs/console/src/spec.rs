//! Numbers of the console device (Virtio 1.3 §5.3).

/// Feature bits (§5.3.3).
pub mod feature {
    /// The console's size is in `cols` and `rows`, and changes are told.
    pub const SIZE: u64 = 1 << 0;
    /// There are several ports, with names, and the control queues.
    pub const MULTIPORT: u64 = 1 << 1;
}

/// Queue numbers (§5.3.2); port 0 has the first two, the ports after it theirs after the control queues, in pairs.
pub mod queue {
    /// Port 0's bytes to the driver.
    pub const RECEIVE_0: usize = 0;
    /// Port 0's bytes from the driver.
    pub const TRANSMIT_0: usize = 1;
    /// Control messages to the driver.
    pub const CONTROL_RECEIVE: usize = 2;
    /// Control messages from the driver.
    pub const CONTROL_TRANSMIT: usize = 3;

    /// The queue of port `port`'s bytes to the driver; the one after it is for bytes from the driver.
    pub const fn receive(port: usize) -> usize {
        if port == 0 { RECEIVE_0 } else { 2 + 2 * port }
    }
}

/// Events of control messages (§5.3.6.2).
pub mod event {
    /// Driver: it is ready (1) or failed (0).
    pub const DEVICE_READY: u16 = 0;
    /// Device: there is such a port.
    pub const DEVICE_ADD: u16 = 1;
    /// Device: there is no such port any more. Ours stay.
    pub const DEVICE_REMOVE: u16 = 2;
    /// Driver: a port is ready (1) or failed (0).
    pub const PORT_READY: u16 = 3;
    /// Device: the port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// Device: a console's size; see [`RESIZE_BYTES`](super::RESIZE_BYTES).
    pub const RESIZE: u16 = 5;
    /// Either: its end of the port is open (1) or closed (0).
    pub const PORT_OPEN: u16 = 6;
    /// Device: the port's name follows, without a zero byte.
    pub const PORT_NAME: u16 = 7;
}

/// Bytes of a control message: port (32 bits), event (16), value (16).
pub const MESSAGE_BYTES: usize = 8;
/// What follows a [`event::RESIZE`]: columns (16 bits), rows (16). Linux took them for rows and columns until 6.15 and the stable
/// kernels of its time, such as Debian 12's; older drivers have a screen turned by 90 degrees.
pub const RESIZE_BYTES: usize = 4;

/// Bytes of the configuration space (§5.3.4): columns (16 bits), rows (16), `max_nr_ports` (32), `emerg_wr` (32).
pub const CONFIG_BYTES: usize = 12;
/// Descriptors in a queue.
pub const QUEUE_SIZE: u16 = 128;
