//! The devices there are, and what each is told at its start.

use serde::{Deserialize, Serialize};

/// Which device model a worker runs. The name is also its binary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceKind {
    /// 16550A serial port.
    Serial,
    /// CMOS real-time clock.
    Rtc,
    /// i8042 keyboard controller: the reset line.
    I8042,
    /// ACPI sleep, reset and power-button registers.
    AcpiPower,
}

impl DeviceKind {
    /// Every kind, in the order in which they are numbered.
    pub const ALL: [DeviceKind; 4] =
        [DeviceKind::Serial, DeviceKind::Rtc, DeviceKind::I8042, DeviceKind::AcpiPower];

    /// The name in messages, policies and `libexec/cellblock/`.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Serial => "serial",
            DeviceKind::Rtc => "rtc",
            DeviceKind::I8042 => "i8042",
            DeviceKind::AcpiPower => "acpi-power",
        }
    }

    /// Room for the device's own state in its state page, in bytes: the `device_bytes` of the page's shape, on both sides.
    pub const fn state_bytes(self) -> usize {
        512
    }
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a descriptor granted to a worker is for. A role is granted at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Read end of a pipe: bytes from the host to the guest (serial input).
    HostInput,
    /// Write end of a pipe: bytes from the guest to the host (serial output).
    HostOutput,
    /// An irqfd's eventfd: write 1 to raise interrupt line number N of the device (0-based), edge-triggered.
    Interrupt(u8),
}

/// A device's static configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// 16550A; output that a full sink cannot take is kept up to this many bytes, then dropped and counted.
    Serial {
        /// Bytes buffered between guest and sink, 1 to 1 MiB.
        buffer: u32,
    },
    /// CMOS RTC; time is UTC, and `CLOCK_REALTIME` its source.
    Rtc,
    /// i8042.
    I8042,
    /// ACPI power registers.
    AcpiPower,
}

impl DeviceConfig {
    /// The kind that this configures.
    pub const fn kind(&self) -> DeviceKind {
        match self {
            DeviceConfig::Serial { .. } => DeviceKind::Serial,
            DeviceConfig::Rtc => DeviceKind::Rtc,
            DeviceConfig::I8042 => DeviceKind::I8042,
            DeviceConfig::AcpiPower => DeviceKind::AcpiPower,
        }
    }
}
