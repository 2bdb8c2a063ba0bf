//! The registers of an MC146818A, named as in Motorola's data sheet (ADI856R2, 1984), and the PC's use of its memory.

/// Ports, as offsets in the region at 0x70.
pub mod offset {
    /// Which byte the data port means; bit 7 is the PC's NMI mask and kept out.
    pub const INDEX: u64 = 0;
    /// The byte.
    pub const DATA: u64 = 1;
}

/// Bytes behind the data port: 14 registers, the rest plain memory.
pub const MEMORY_BYTES: usize = 128;

/// Addresses of registers ("Address map", figure 9).
pub mod register {
    /// 0 to 59.
    pub const SECONDS: u8 = 0x00;
    /// Alarm's seconds.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// 0 to 59.
    pub const MINUTES: u8 = 0x02;
    /// Alarm's minutes.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// 0 to 23, or 1 to 12 with bit 7 for PM.
    pub const HOURS: u8 = 0x04;
    /// Alarm's hours.
    pub const HOURS_ALARM: u8 = 0x05;
    /// 1 to 7, Sunday is 1.
    pub const DAY_OF_WEEK: u8 = 0x06;
    /// 1 to 31.
    pub const DAY_OF_MONTH: u8 = 0x07;
    /// 1 to 12.
    pub const MONTH: u8 = 0x08;
    /// 0 to 99.
    pub const YEAR: u8 = 0x09;
    /// Register A.
    pub const A: u8 = 0x0a;
    /// Register B.
    pub const B: u8 = 0x0b;
    /// Register C.
    pub const C: u8 = 0x0c;
    /// Register D.
    pub const D: u8 = 0x0d;
    /// The PC's century byte; the FADT's CENTURY field names it (ACPI 6.5 §5.2.9).
    pub const CENTURY: u8 = 0x32;
}

/// An alarm byte of 0xc0 and up matches every value ("Time, calendar, and alarm locations").
pub const ALARM_ANY: u8 = 0xc0;

/// Register A.
pub mod a {
    /// Update in progress, read only.
    pub const UIP: u8 = 1 << 7;
    /// Rate of the periodic interrupt.
    pub const RATE_MASK: u8 = 0x0f;
    /// After reset: 32.768 kHz base, 1024 Hz rate, as PC firmware leaves it.
    pub const DEFAULT: u8 = 0x26;
}

/// Register B.
pub mod b {
    /// Stops updates, so that the time can be set.
    pub const SET: u8 = 1 << 7;
    /// Periodic interrupt enable.
    pub const PIE: u8 = 1 << 6;
    /// Alarm interrupt enable.
    pub const AIE: u8 = 1 << 5;
    /// Update-ended interrupt enable.
    pub const UIE: u8 = 1 << 4;
    /// Binary, not BCD.
    pub const DM: u8 = 1 << 2;
    /// 24 hours, not 12.
    pub const HOURS_24: u8 = 1 << 1;
}

/// Register C: the flags, at the places of register B's enables.
pub mod c {
    /// Some enabled flag is set.
    pub const IRQF: u8 = 1 << 7;
    /// Periodic.
    pub const PF: u8 = 1 << 6;
    /// Alarm.
    pub const AF: u8 = 1 << 5;
    /// Update ended.
    pub const UF: u8 = 1 << 4;
    /// All three.
    pub const FLAGS: u8 = PF | AF | UF;
}

/// Register D.
pub mod d {
    /// The battery is good: time and memory are valid.
    pub const VRT: u8 = 1 << 7;
}

/// For this long before a second ends UIP is set, in ns (table 6: 244 µs).
pub const UIP_NS: u64 = 244_000;

/// The periodic interrupt's period for a rate selector, in ns; `None` = off (table 3, for the 32.768 kHz base).
pub const fn period(rate: u8) -> Option<u64> {
    let shift = match rate & a::RATE_MASK {
        0 => return None,
        1 => 7,
        2 => 8,
        rate => rate as u64 - 1,
    };
    Some((1_000_000_000 << shift) / 32_768)
}

/// The PC's memory: low 640 KiB of base memory, in KiB, at 0x15 and 0x16.
pub const BASE_MEMORY: [(usize, u8); 2] = [(0x15, 0x80), (0x16, 0x02)];
