//! The devices of every VM: where the guest finds them, and what their workers get.

use std::os::fd::OwnedFd;
use std::time::Duration;

use cellblock_arch::layout;
use cellblock_bus::Range;
use cellblock_supervisor::DevicePlan;
use cellblock_wire::device::{DeviceConfig, Role};
use cellblock_wire::slot::Space;

/// Output kept for a sink that does not take it, in bytes.
const SERIAL_BUFFER: u32 = 64 << 10;
/// How long a vCPU waits for one answer: long enough for a worker that a busy host starves.
const DEADLINE: Duration = Duration::from_secs(5);

/// The devices. The serial port comes first: its worker is the one that a starting guest needs first.
pub fn devices(serial_pipes: Vec<(Role, OwnedFd)>) -> Vec<DevicePlan> {
    let serial = DeviceConfig::Serial { buffer: SERIAL_BUFFER };
    let i8042_ports = [(layout::I8042_DATA_PORT, 1), (layout::I8042_COMMAND_PORT, 1)];
    vec![
        DevicePlan { resources: serial_pipes, ..device(serial, &[(layout::SERIAL_PORT, 8)], layout::SERIAL_GSI) },
        device(DeviceConfig::Rtc, &[(layout::RTC_PORT, 2)], layout::RTC_GSI),
        device(DeviceConfig::I8042, &i8042_ports, layout::I8042_GSI),
        device(DeviceConfig::AcpiPower, &[(layout::POWER_PORT, 8)], layout::POWER_GSI),
    ]
}

fn device(config: DeviceConfig, ports: &[(u16, u64)], gsi: u32) -> DevicePlan {
    let regions = ports.iter().map(|(port, length)| Range { space: Space::Pio, base: (*port).into(), length: *length });
    DevicePlan { config, regions: regions.collect(), gsis: vec![gsi], resources: Vec::new(), deadline: DEADLINE }
}
