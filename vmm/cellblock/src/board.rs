//! The devices of every VM: where the guest finds them, and what their workers get.

use std::os::fd::OwnedFd;
use std::time::Duration;

use cellblock_arch::layout;
use cellblock_bus::Range;
use cellblock_jail::Limits;
use cellblock_jail::cgroup::GroupLimits;
use cellblock_supervisor::DevicePlan;
use cellblock_wire::device::{DeviceConfig, DeviceKind, Role};
use cellblock_wire::slot::Space;

/// Output kept for a sink that does not take it, in bytes.
const SERIAL_BUFFER: u32 = 16 << 10;
/// How long a vCPU waits for one answer: long enough for a worker that a busy host starves.
const DEADLINE: Duration = Duration::from_secs(5);

/// The devices. The serial port comes first: its worker is the one that a starting guest needs first.
pub(crate) fn devices(serial_pipes: Vec<(Role, OwnedFd)>) -> Vec<DevicePlan> {
    let serial = DeviceConfig::Serial { buffer: SERIAL_BUFFER };
    let i8042_ports = [(layout::I8042_DATA_PORT, 1), (layout::I8042_COMMAND_PORT, 1)];
    vec![
        DevicePlan {
            resources: serial_pipes,
            ..device(serial, &[(layout::SERIAL_PORT, 8)], layout::SERIAL_GSI)
        },
        device(DeviceConfig::Rtc, &[(layout::RTC_PORT, 2)], layout::RTC_GSI),
        device(DeviceConfig::I8042, &i8042_ports, layout::I8042_GSI),
        device(DeviceConfig::AcpiPower, &[(layout::POWER_PORT, 8)], layout::POWER_GSI),
    ]
}

/// What the worker of `kind` may use. The serial port's has a thread for each direction beside the register thread.
pub(crate) fn limits(kind: DeviceKind) -> Limits {
    let threads = if kind == DeviceKind::Serial { 3 } else { 1 };
    Limits { threads, ..Limits::SMALL }
}

/// The same, for all that the worker's cgroup counts: threads, memory with page cache, CPU time.
pub(crate) fn group_limits(kind: DeviceKind) -> GroupLimits {
    GroupLimits { memory: 32 << 20, pids: limits(kind).threads.into(), cpu_us: 100_000 }
}

/// Whether the host's processor shows that it can run a guest's kernel code. If not it may still (this is what KVM is asked
/// then, by timing it): the flags are x86's, so on others there is no doubt.
pub(crate) fn has_virtualization() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(flags) = text.lines().find(|line| line.starts_with("flags")) else { return true };
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

fn device(config: DeviceConfig, ports: &[(u16, u64)], gsi: u32) -> DevicePlan {
    let regions =
        ports.iter().map(|(port, length)| Range { space: Space::Pio, base: (*port).into(), length: *length });
    DevicePlan {
        config,
        regions: regions.collect(),
        gsis: vec![gsi],
        resources: Vec::new(),
        deadline: DEADLINE,
    }
}
