//! The registers of a 16550A, named as in National Semiconductor's PC16550D data sheet (TL/C/8652, June 1995), whose
//! sections are given.

/// Bytes in each FIFO (§8.0, "FIFO mode").
pub const FIFO_BYTES: usize = 16;
/// Ticks of the baud generator's clock per second: 1.8432 MHz / 16 (§8.3, table III).
pub const CLOCK_PER_SECOND: u64 = 115_200;

/// Register addresses (§8.0, table I). Offsets 0 and 1 are the divisor latch while [`lcr::DLAB`] is set.
pub mod offset {
    /// Receiver Buffer (read), Transmitter Holding (write), Divisor Latch LS.
    pub const RBR_THR_DLL: u64 = 0;
    /// Interrupt Enable, Divisor Latch MS.
    pub const IER_DLM: u64 = 1;
    /// Interrupt Ident. (read), FIFO Control (write).
    pub const IIR_FCR: u64 = 2;
    /// Line Control.
    pub const LCR: u64 = 3;
    /// MODEM Control.
    pub const MCR: u64 = 4;
    /// Line Status; writes are for factory tests and do nothing.
    pub const LSR: u64 = 5;
    /// MODEM Status.
    pub const MSR: u64 = 6;
    /// Scratch.
    pub const SCR: u64 = 7;
}

/// Interrupt Enable Register (§8.7).
pub mod ier {
    /// Received data available, and timeouts.
    pub const ERBFI: u8 = 1 << 0;
    /// Transmitter holding register empty.
    pub const ETBEI: u8 = 1 << 1;
    /// Receiver line status.
    pub const ELSI: u8 = 1 << 2;
    /// MODEM status.
    pub const EDSSI: u8 = 1 << 3;
    /// Bits that exist; the rest read as zero.
    pub const MASK: u8 = 0x0f;
}

/// Interrupt Identification Register (§8.6, table IV).
pub mod iir {
    /// MODEM status, the lowest priority.
    pub const MODEM_STATUS: u8 = 0b0000;
    /// No interrupt is pending.
    pub const NONE: u8 = 0b0001;
    /// Transmitter holding register empty.
    pub const THR_EMPTY: u8 = 0b0010;
    /// Received data available, or the FIFO's trigger level reached.
    pub const DATA_AVAILABLE: u8 = 0b0100;
    /// Receiver line status, the highest priority.
    pub const LINE_STATUS: u8 = 0b0110;
    /// Characters wait in the FIFO below the trigger level.
    pub const TIMEOUT: u8 = 0b1100;
    /// Both set while the FIFOs are on.
    pub const FIFOS_ON: u8 = 0b1100_0000;
}

/// FIFO Control Register (§8.5).
pub mod fcr {
    /// Switches both FIFOs on; the other bits count only with it.
    pub const ENABLE: u8 = 1 << 0;
    /// Clears the receiver FIFO; clears itself.
    pub const RESET_RX: u8 = 1 << 1;
    /// Clears the transmitter FIFO; clears itself.
    pub const RESET_TX: u8 = 1 << 2;
    /// Shift of the two bits of the receiver's trigger level.
    pub const TRIGGER_SHIFT: u8 = 6;
    /// Trigger levels in bytes, by those bits.
    pub const TRIGGER_LEVELS: [u8; 4] = [1, 4, 8, 14];
}

/// Line Control Register (§8.1).
pub mod lcr {
    /// Divisor latch access.
    pub const DLAB: u8 = 1 << 7;
    /// Eight bits, no parity, one stop bit.
    pub const EIGHT_N_ONE: u8 = 0b11;
}

/// MODEM Control Register (§8.8).
pub mod mcr {
    /// Data terminal ready.
    pub const DTR: u8 = 1 << 0;
    /// Request to send.
    pub const RTS: u8 = 1 << 1;
    /// Auxiliary output 1.
    pub const OUT1: u8 = 1 << 2;
    /// Auxiliary output 2: on a PC, the gate between INTR and the interrupt line.
    pub const OUT2: u8 = 1 << 3;
    /// Local loopback.
    pub const LOOP: u8 = 1 << 4;
    /// Bits that exist; the rest read as zero.
    pub const MASK: u8 = 0x1f;
}

/// Line Status Register (§8.4).
pub mod lsr {
    /// Data ready.
    pub const DR: u8 = 1 << 0;
    /// Overrun error; cleared by reading the register.
    pub const OE: u8 = 1 << 1;
    /// Transmitter holding register empty.
    pub const THRE: u8 = 1 << 5;
    /// Transmitter empty.
    pub const TEMT: u8 = 1 << 6;
}

/// MODEM Status Register (§8.9).
pub mod msr {
    /// Bits that tell of a change of the inputs; cleared by reading the register.
    pub const DELTA_MASK: u8 = 0x0f;
    /// Trailing edge of ring: the one delta that only a fall sets.
    pub const TERI: u8 = 1 << 2;
    /// Clear to send.
    pub const CTS: u8 = 1 << 4;
    /// Data set ready.
    pub const DSR: u8 = 1 << 5;
    /// Ring.
    pub const RI: u8 = 1 << 6;
    /// Carrier.
    pub const DCD: u8 = 1 << 7;
    /// What a cable to a host that is always there gives.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}
