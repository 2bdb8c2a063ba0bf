//! A 16550A serial port.
