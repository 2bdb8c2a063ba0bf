//! What Linux's 8250 driver does to a port, as sequences of accesses that run on any [`Host`].

use cellblock_sdk::testing::Host;

const RX_TX: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

/// `autoconfig()` and `autoconfig_16550a()` of drivers/tty/serial/8250/8250_port.c (6.1): each step with the answer that leads
/// to "16550A".
pub fn linux_autoconfig(port: &mut impl Host) {
    let saved = port.inb(IER);
    port.outb(IER, 0);
    assert_eq!(port.inb(IER) & 0x0f, 0, "IER clears");
    port.outb(IER, 0x0f);
    assert_eq!(port.inb(IER) & 0x0f, 0x0f, "IER holds");
    port.outb(IER, saved);

    let (mcr, lcr) = (port.inb(MCR), port.inb(LCR));
    port.outb(MCR, 0x1a);
    assert_eq!(port.inb(MSR) & 0xf0, 0x90, "loopback shows RTS and OUT2 as CTS and DCD");
    port.outb(MCR, mcr);

    port.outb(LCR, 0xbf);
    port.outb(IIR_FCR, 0);
    port.outb(LCR, 0);
    port.outb(IIR_FCR, 1);
    assert_eq!(port.inb(IIR_FCR) >> 6, 3, "working FIFOs");
    no_extended_features(port);
    assert_eq!(size_fifo(port), 16);

    port.outb(LCR, lcr);
    port.outb(MCR, mcr);
    port.outb(IIR_FCR, 1);
    port.outb(IIR_FCR, 7);
    port.outb(IIR_FCR, 0);
    port.inb(RX_TX);
    port.outb(IER, 0);
    startup(port);
}

fn no_extended_features(port: &mut impl Host) {
    port.outb(LCR, 0x80);
    assert_ne!(port.inb(IIR_FCR), 0, "no EFR under DLAB");
    port.outb(LCR, 0xbf);
    assert_ne!(port.inb(IIR_FCR), 0, "no EFR under 0xbf");
    port.outb(LCR, 0);
    for latch in [0, 0x80] {
        port.outb(IIR_FCR, 1);
        port.outb(LCR, latch);
        port.outb(IIR_FCR, 0x21);
        assert_eq!(port.inb(IIR_FCR) >> 5, 6, "no 64-byte FIFO");
        port.outb(IIR_FCR, 1);
        port.outb(LCR, 0);
    }
    let ier = port.inb(IER);
    port.outb(IER, ier | 0x40);
    assert_eq!(port.inb(IER) & 0x40, 0, "no UUE: not an XScale");
    port.outb(IER, ier);
}

/// `size_fifo()`: how many of 256 bytes come back in loopback.
fn size_fifo(port: &mut impl Host) -> usize {
    let (fcr, mcr, lcr) = (1, port.inb(MCR), port.inb(LCR));
    port.outb(IIR_FCR, 7);
    port.outb(MCR, 0x10);
    port.outb(LCR, 0x80);
    let divisor = (port.inb(RX_TX), port.inb(IER));
    port.outb(RX_TX, 1);
    port.outb(IER, 0);
    port.outb(LCR, 3);
    for byte in 0..=255 {
        port.outb(RX_TX, byte);
    }
    let mut count = 0;
    while port.inb(LSR) & 1 != 0 && count < 256 {
        assert_eq!(port.inb(RX_TX), count as u8, "the FIFO keeps the oldest");
        count += 1;
    }
    port.outb(IIR_FCR, fcr);
    port.outb(MCR, mcr);
    port.outb(LCR, 0x80);
    port.outb(RX_TX, divisor.0);
    port.outb(IER, divisor.1);
    port.outb(LCR, lcr);
    count
}

/// `serial8250_do_startup()`: clears, and tests for two well-known bugs of the transmitter's interrupt.
fn startup(port: &mut impl Host) {
    port.outb(IIR_FCR, 1);
    port.outb(IIR_FCR, 7);
    port.outb(IIR_FCR, 0);
    for register in [LSR, RX_TX, IIR_FCR, MSR] {
        port.inb(register);
    }
    assert_ne!(port.inb(LSR), 0xff, "a port is there");
    port.outb(LCR, 3);

    let mut causes = [0; 2];
    for cause in &mut causes {
        port.outb(IER, 2);
        *cause = port.inb(IIR_FCR);
        port.outb(IER, 0);
    }
    assert_eq!(causes.map(|iir| iir & 0x0f), [2, 2], "no UART_BUG_THRE");

    port.outb(MCR, 0x08);
    port.outb(IER, 2);
    assert_eq!(port.inb(LSR) & 0x60, 0x60);
    assert_eq!(port.inb(IIR_FCR) & 1, 0, "no UART_BUG_TXEN");
    port.outb(IER, 0);
}
