//! The devices of every VM: where the guest finds them, and what their workers get.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cellblock_arch::layout;
use cellblock_bus::Range;
use cellblock_config::MAX_SPARES;
use cellblock_jail::Limits;
use cellblock_jail::cgroup::{self, GroupLimits, IoLimit};
use cellblock_supervisor::{CauseRegisters, DevicePlan, Kick};
use cellblock_wire::device::{
    BlockConfig, Bucket, DeviceConfig, DeviceKind, Format, Limits as Rates, Role, SECTOR,
};
use cellblock_wire::slot::Space;
use cellblock_wire::vsock::{MAX_STREAMS, STREAM_BYTES};

/// Output kept for a sink that does not take it, in bytes.
const SERIAL_BUFFER: u32 = 16 << 10;
/// How long a worker may take for one answer before it is looked at. The same for every class of device: none does host I/O on
/// its exit path, and one that a busy host starves is told from one that hangs.
const DEADLINE: Duration = Duration::from_secs(1);

/// Offset of virtio-mmio's `QueueNotify` (Virtio 1.3 §4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;
/// virtio-mmio's `InterruptStatus` and `InterruptACK`, and its used-buffer notification.
const CAUSES: CauseRegisters = CauseRegisters { status: 0x60, acknowledge: 0x64, lasting: 1 };
/// Memory that a worker may take beside guest memory, in bytes.
const WORKER_MEMORY: u64 = 32 << 20;
/// Page cache that a disk's worker may fill on top, in bytes.
const DISK_CACHE: u64 = 224 << 20;

/// The most memory that a front end can lend, in bytes of address space.
const FRONT_END_MEMORY: u64 = 1 << 40;
/// Descriptors that a front end gives its worker at most: three for each queue, one for each piece of memory, twice those while
/// they change.
const FRONT_END_FILES: u32 = 128;

/// A device and what its worker gets from the host.
pub(crate) struct Granted {
    pub config: DeviceConfig,
    pub resources: Vec<(Role, OwnedFd)>,
}

/// The serial port, of whose output `limits` may pass.
pub(crate) fn serial(pipes: Vec<(Role, OwnedFd)>, limits: Rates) -> Granted {
    Granted { config: DeviceConfig::Serial { buffer: SERIAL_BUFFER, limits }, resources: pipes }
}

/// The devices. The serial port comes first: its worker is the one that a starting guest needs first.
///
/// # Errors
/// More virtio devices than the board has slots.
pub(crate) fn devices(serial: Granted, virtio_devices: Vec<Granted>) -> Result<Vec<DevicePlan>, String> {
    let i8042_ports = [(layout::I8042_DATA_PORT, 1), (layout::I8042_COMMAND_PORT, 1)];
    let mut devices = vec![
        DevicePlan {
            resources: serial.resources,
            ..device(serial.config, &[(layout::SERIAL_PORT, 8)], Some(layout::SERIAL_GSI))
        },
        device(DeviceConfig::Rtc, &[(layout::RTC_PORT, 2)], Some(layout::RTC_GSI)),
        device(DeviceConfig::I8042, &i8042_ports, Some(layout::I8042_GSI)),
        device(DeviceConfig::AcpiPower, &[(layout::POWER_PORT, 8)], Some(layout::POWER_GSI)),
    ];
    for (slot, granted) in (0..).zip(virtio_devices) {
        devices.push(virtio(slot, granted)?);
    }
    Ok(devices)
}

/// Threads beside the register thread: one for each direction of the serial port, for each of a disk's queues, for each of a
/// network device's pairs; all of another device's queues share one.
fn more_threads(config: &DeviceConfig) -> u32 {
    match config {
        DeviceConfig::Serial { .. } => 2,
        DeviceConfig::Block(disk) => disk.queues.into(),
        DeviceConfig::Net(net) => net.pairs.into(),
        config => u32::from(config.queues() > 0),
    }
}

/// The virtio slots that `devices` take, for the tables that describe them.
pub(crate) fn virtio_slots(devices: &[DevicePlan]) -> Vec<u32> {
    (0..devices.iter().filter(|device| device.memory).count() as u32).collect()
}

fn virtio(slot: u32, Granted { config, resources }: Granted) -> Result<DevicePlan, String> {
    let slot = layout::virtio_slot(slot).ok_or_else(|| {
        format!(
            "the board has {} virtio slots, for the interrupts that the I/O APIC has left: one for each --disk and --net, \
             for --rng, --balloon, --vsock, and all --console together; take some away",
            layout::VIRTIO_SLOTS
        )
    })?;
    let kick = |value| Kick { address: slot.address + QUEUE_NOTIFY, value };
    Ok(DevicePlan {
        kicks: (0..config.queues().into()).map(kick).collect(),
        config,
        regions: vec![Range { space: Space::Mmio, base: slot.address, length: layout::VIRTIO_SLOT_BYTES }],
        gsis: vec![slot.gsi],
        resources,
        causes: Some(CAUSES),
        memory: true,
        deadline: DEADLINE,
    })
}

/// A device whose registers, memory, kicks and interrupts are another VMM's.
pub(crate) fn back_end(Granted { config, resources }: Granted) -> DevicePlan {
    DevicePlan { resources, memory: true, ..device(config, &[], None) }
}

/// As [`limits`], where the memory of the guest, unknown yet, is another VMM's.
pub(crate) fn back_end_limits(device: &DevicePlan) -> Limits {
    let own = limits(device, FRONT_END_MEMORY);
    Limits { files: own.files + FRONT_END_FILES, ..own }
}

/// As [`group_limits`]. Memory of the front end that nobody had touched before counts as the worker's.
pub(crate) fn back_end_group_limits(device: &DevicePlan) -> GroupLimits {
    group_limits(device, FRONT_END_MEMORY)
}

/// What the worker of a device may use: exact threads, of files no more than the disk, and descriptors for a socket device's
/// streams.
pub(crate) fn limits(device: &DevicePlan, ram_bytes: u64) -> Limits {
    let guest = if device.memory { ram_bytes } else { 0 };
    let address_space = Limits::SMALL.address_space + guest + image_tables(device);
    let streams = if device.config.kind() == DeviceKind::Vsock { MAX_STREAMS as u32 } else { 0 };
    Limits {
        threads: 1 + more_threads(&device.config),
        address_space,
        files: Limits::SMALL.files + streams,
        file_size: file_size(device),
    }
}

/// The most bytes that the worker's file may grow to.
fn file_size(device: &DevicePlan) -> u64 {
    let DeviceConfig::Block(disk) = &device.config else { return 0 };
    let bytes = disk.sectors.saturating_mul(SECTOR);
    match disk.format {
        _ if disk.read_only => 0,
        Format::Raw => bytes,
        // What is there already (of snapshots, say), the disk once more, and its tables: with the smallest clusters
        // (512 bytes) and the widest reference counts (64 bits) 16 bytes for each, and a table of those tables.
        Format::Qcow2 => {
            let image = device.resources.iter().find(|(role, _)| *role == Role::Image);
            let now = image
                .and_then(|(_, image)| rustix::fs::fstat(image).ok())
                .map_or(0, |stat| stat.st_size as u64);
            now.saturating_add(bytes).saturating_add(bytes / 16).saturating_add(64 << 20)
        }
    }
}

/// Memory for the tables of the images that a worker keeps open, in bytes.
///
/// Of each image `imago` keeps 160 tables of a cluster each at most, and no more than there are: of a disk of B bytes with
/// clusters of C bytes about 16 B / C bytes of tables. So whatever C is, it is no more than 160 √(B / 10). Beside that come
/// the table of these tables, 32 MiB at most, and what is needed to load it.
fn image_tables(device: &DevicePlan) -> u64 {
    match &device.config {
        DeviceConfig::Block(disk) if disk.format == Format::Qcow2 => {
            let cached = 160 * (disk.sectors.saturating_mul(SECTOR) / 10).isqrt();
            (1 + u64::from(disk.backing)) * (cached + (96 << 20))
        }
        _ => 0,
    }
}

/// The same, for all that the worker's cgroup counts: threads, memory with page cache, CPU time. Guest memory is charged to
/// whoever touches it first, which may be a device that does DMA.
pub(crate) fn group_limits(device: &DevicePlan, ram_bytes: u64) -> GroupLimits {
    let limits = limits(device, ram_bytes);
    let guest = if device.memory { ram_bytes } else { 0 };
    let kept = match device.config.kind() {
        DeviceKind::Block => DISK_CACHE,
        DeviceKind::Vsock => MAX_STREAMS as u64 * u64::from(STREAM_BYTES),
        _ => 0,
    };
    let cpus = u64::from(limits.threads.min(4));
    GroupLimits {
        memory: WORKER_MEMORY + guest + kept + 2 * image_tables(device),
        // The worker's, and those of one that takes its place while it works, and of spares.
        pids: u64::from(limits.threads) * 2 + u64::from(MAX_SPARES),
        cpu_us: if device.memory { cpus * 100_000 } else { 100_000 },
    }
}

/// What the worker's cgroup lets it ask of the disks that hold its files, for a device with limits; and why not, where it cannot.
///
/// At least twice what the guest may, as the worker reads and writes an image's tables, too, and the host splits large requests: an
/// honest worker is not to notice.
pub(crate) fn io_limits(device: &DevicePlan) -> (Vec<IoLimit>, Option<String>) {
    let DeviceConfig::Block(BlockConfig { limits: Rates { bytes, operations }, .. }) = &device.config else {
        return (Vec::new(), None);
    };
    // A full bucket may go in one second.
    let most = |bucket: &Bucket| bucket.per_second.saturating_add(bucket.burst.max(bucket.per_second));
    let (bytes, operations) = (bytes.as_ref().map(most), operations.as_ref().map(most));
    if bytes.or(operations).is_none() {
        return (Vec::new(), None);
    }
    let (mut limits, mut why) = (Vec::<IoLimit>::new(), None);
    for (_, file) in &device.resources {
        match cgroup::disk_of(file.as_fd()) {
            Ok(Some(disk)) if limits.iter().any(|limit| limit.device == disk) => {}
            Ok(Some(disk)) => limits.push(IoLimit { device: disk, bytes, operations }),
            Ok(None) => {
                why = Some("its file system has no block device (tmpfs, overlay, btrfs, network)".to_owned());
            }
            Err(error) => why = Some(format!("its block device cannot be found: {error}")),
        }
    }
    (limits, why)
}

/// Whether the host's processor shows that it can run a guest's kernel code. If not it may still (this is what KVM is asked
/// then, by timing it): the flags are x86's, so on others there is no doubt.
pub(crate) fn has_virtualization() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(flags) = text.lines().find(|line| line.starts_with("flags")) else { return true };
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

fn device(config: DeviceConfig, ports: &[(u16, u64)], gsi: Option<u32>) -> DevicePlan {
    let regions =
        ports.iter().map(|(port, length)| Range { space: Space::Pio, base: (*port).into(), length: *length });
    DevicePlan {
        config,
        regions: regions.collect(),
        gsis: gsi.into_iter().collect(),
        resources: Vec::new(),
        kicks: Vec::new(),
        causes: None,
        memory: false,
        deadline: DEADLINE,
    }
}
