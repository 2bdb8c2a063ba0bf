//! From a configuration to the processes of a running VM.
//!
//! The front opens everything that has a path, then forks, in the order of what takes longest: the spawner (namespaces),
//! the loader (reads the kernel), the supervisor (KVM). Each child keeps the descriptors that are listed for it, no others.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use cellblock_arch::AcpiConfig;
use cellblock_channel::socket::{self, Control};
use cellblock_config::{BootProtocol, ConsolePort, Disk, Serial, StreamSink, VmConfig, Vsock};
use cellblock_jail::cgroup::{CgroupError, GroupLimits, Hierarchy, IoLimit, VmGroup};
use cellblock_jail::cores::{self, CoreError};
use cellblock_jail::spawner::Ids;
use cellblock_jail::supervisor::Confinement;
use cellblock_jail::uids::UidRange;
use cellblock_jail::{Layer, LayerSet, Limits, Refusal, loader as jail_loader, process};
use cellblock_loader::{LoadRequest, Loaded, Protocol};
use cellblock_memory::GuestRam;
use cellblock_spawner::client::Authority;
use cellblock_spawner::{Entry, Manifest, Tombstone};
use cellblock_supervisor::link::{LoaderReport, cut, device_names};
use cellblock_supervisor::{DevicePlan, Plan};
use cellblock_wire::device::{
    BalloonConfig, ConsoleConfig, DeviceConfig, DeviceKind, EntropyConfig, Limits as Rates, Role, VsockConfig,
};
use rustix::fs::OFlags;

use crate::board::Granted;
use crate::front::paths;
use crate::front::relay::Process;
use crate::front::stream::{self, StreamPipes, WorkerEnds};
use crate::front::terminal::TerminalSize;
use crate::net::Passt;
use crate::security::{Declaration, DeclaredDisks};
use crate::{board, disk, net};

mod back_end;
mod scheduling;

pub(crate) use back_end::{BackEnd, back_end};

/// What answers for a device that has failed.
const TOMBSTONE: &str = "tombstone";

/// A VM's processes, seen from the front.
pub(crate) struct Launched {
    pub link: Control,
    pub supervisor: Process,
    pub spawner: Process,
    /// For binaries that the manifest does not name.
    pub authority: Authority,
    /// Ends by itself, once guest memory is written.
    pub loader: process::Child,
    /// In the order of the sinks.
    pub pipes: Vec<StreamPipes>,
    /// The front's end of the vsock worker's wishes.
    pub vsock: Option<Control>,
    /// End on drop.
    pub passts: Vec<Passt>,
    /// What the processes were started with.
    pub declared: Declaration,
    /// Holds the uid range until all processes are gone.
    pub uids: Option<UidRange>,
    /// Removed, with the workers' groups, on drop.
    pub cgroup: Option<VmGroup>,
}

/// Everything with a path, opened.
struct Opened {
    kvm: OwnedFd,
    kernel: File,
    initrd: Option<File>,
    null: File,
    workers: Vec<WorkerFiles>,
    tombstone: Program,
}

struct WorkerFiles {
    name: String,
    limits: Limits,
    group_limits: GroupLimits,
    /// Of the disks that its files are on.
    disks: Vec<IoLimit>,
    program: Program,
}

/// A worker's binary and its start program.
struct Program {
    binary: File,
    start_filter: Vec<u8>,
}

/// Starts the VM of `config`, whose console is on a terminal of the size `screen`.
///
/// # Errors
/// What was refused, in a sentence.
pub(crate) fn launch(config: &VmConfig, layers: LayerSet, screen: TerminalSize) -> Result<Launched, String> {
    layers.check(rustix::process::geteuid().is_root()).map_err(|error| error.to_string())?;
    let (serial, serial_pipes) = serial(&config.serial)?;
    let mut pipes = vec![serial_pipes];
    let mut passts = Vec::new();
    let mut virtio = virtio_devices(config, screen, &mut pipes, &mut passts)?;
    let vsock = config.vsock.as_ref().map(granted_vsock).transpose()?;
    let vsock = vsock.map(|(granted, own)| {
        virtio.push(granted);
        own
    });
    let devices = board::devices(serial, virtio)?;
    let opened = open(config, &devices)?;
    let ram = GuestRam::create(config.memory, config.hugepages).map_err(|error| error.to_string())?;
    let Ground { uids, ids, confinement, cgroup } = ground(config.id.as_str(), layers)?;
    let limits = opened.workers.iter().map(|files| &files.limits);
    let mut declared = Declaration::new(&confinement, ids, cgroup.as_ref(), &devices, limits)?;
    declared.core_sched = config.core_sched && cookie()?;
    let mut workers = opened.workers;
    declared.disks = limit_disks(cgroup.as_ref(), &devices, &mut workers);
    let manifest =
        manifest(workers, Some(opened.tombstone), &confinement, ids, uids.as_ref(), cgroup.as_ref())?;
    let spawner = cellblock_spawner::start(manifest).map_err(|error| error.to_string())?;
    let channel =
        |what: &str| socket::pair().map_err(|error| format!("a socket for {what} cannot be made: {error}"));
    let (loader_ear, loader_mouth) = channel("the loader")?;
    let (link, supervisor_link) = channel("the supervisor")?;

    let load = Load {
        kernel: opened.kernel,
        initrd: opened.initrd,
        cmdline: &cmdline(config),
        protocol: match config.boot_protocol {
            BootProtocol::Auto => Protocol::Auto,
            BootProtocol::Linux64 => Protocol::Linux64,
            BootProtocol::Pvh => Protocol::Pvh,
        },
        cpus: config.cpus,
        virtio_slots: board::virtio_slots(&devices),
        ram: &ram,
        mouth: loader_mouth,
    };
    let loader = fork_loader(load, opened.null.as_fd(), confinement)?;
    let plan = Plan {
        link: supervisor_link,
        spawner: spawner.socket,
        loader: loader_ear,
        kvm: opened.kvm,
        ram,
        cpus: config.cpus,
        spin: scheduling::longest_spin(config.poll_max_us),
        spares: config.spares,
        exit_stats: config.exit_stats.is_some(),
        devices,
        doubt_host: !config.force && !board::has_virtualization(),
        confinement,
    };
    let supervisor = fork_supervisor(plan, opened.null.as_fd(), uids.as_ref())?;
    if declared.core_sched {
        // What was forked keeps the one before.
        cookie()?;
    }
    let authority = Authority::new(spawner.authority);
    let spawner = Process { pidfd: spawner.pidfd, pid: spawner.pid };
    Ok(Launched {
        link,
        supervisor,
        spawner,
        authority,
        loader,
        pipes,
        vsock,
        passts,
        declared,
        uids,
        cgroup,
    })
}

/// Gives this process, and those that it forks from now on, a core-scheduling cookie that nobody has; false where a core runs one thread.
fn cookie() -> Result<bool, String> {
    match cores::take_cookie() {
        Ok(()) => Ok(true),
        Err(why @ CoreError::OneThread) => {
            note!("cellblock: note: --core-sched does nothing: {why}");
            Ok(false)
        }
        Err(why) => Err(format!("--core-sched: {why}")),
    }
}

/// Who the processes of one VM are, and what they are held by.
struct Ground {
    uids: Option<UidRange>,
    ids: Ids,
    confinement: Confinement,
    cgroup: Option<VmGroup>,
}

/// For the VM named `id`.
fn ground(id: &str, layers: LayerSet) -> Result<Ground, String> {
    let privileged = rustix::process::geteuid().is_root();
    // Without the layer uid, too: then the workers share one uid of the range, as none below the spawner can be root.
    let range = privileged.then(UidRange::take).transpose();
    let uids = range.map_err(|error| error.to_string())?;
    let ids = uids.as_ref().map_or(Ids::Own, |range| Ids::Root { base: range.base, count: range.count });
    let confinement = Confinement { layers, privileged, id: ids.supervisor(layers), refusal: Refusal::Kill };
    let cgroup = cgroup(id, layers, ids)?;
    Ok(Ground { uids, ids, confinement, cgroup })
}

/// The kernel command line: as told, or the default one with messages to where the user looks.
fn cmdline(config: &VmConfig) -> Cow<'_, str> {
    let on_stdio = config.consoles.first().is_some_and(|port| port.sink == StreamSink::Stdio);
    match &config.cmdline {
        Some(cmdline) => cmdline.into(),
        None if on_stdio => format!("{} console=hvc0", cellblock_arch::DEFAULT_CMDLINE).into(),
        None => cellblock_arch::DEFAULT_CMDLINE.into(),
    }
}

/// The virtio devices, in the order in which the guest finds them, with what the host gives them.
fn virtio_devices(
    config: &VmConfig,
    screen: TerminalSize,
    pipes: &mut Vec<StreamPipes>,
    passts: &mut Vec<Passt>,
) -> Result<Vec<Granted>, String> {
    let mut devices = Vec::new();
    for disk in &config.disks {
        devices.push(granted_disk(disk)?);
    }
    for (number, device) in config.nets.iter().enumerate() {
        let net::OpenNet { config, resources, passt } = net::open(device, config.id.as_str(), number)?;
        passts.extend(passt);
        devices.push(Granted { config: DeviceConfig::Net(config), resources });
    }
    if let Some(limits) = config.rng {
        devices.push(granted_rng(limits));
    }
    if !config.consoles.is_empty() {
        devices.push(console(&config.consoles, screen, pipes)?);
    }
    if let Some(balloon) = &config.balloon {
        let config = DeviceConfig::Balloon(BalloonConfig {
            pages: u32::try_from(balloon.size >> 12).unwrap_or(u32::MAX),
            deflate_on_oom: balloon.deflate_on_oom,
            statistics: balloon.statistics,
            reporting: balloon.reporting,
            huge_pages: config.hugepages,
        });
        devices.push(Granted { config, resources: Vec::new() });
    }
    Ok(devices)
}

fn granted_disk(disk: &Disk) -> Result<Granted, String> {
    let disk::OpenDisk { config, image, backing } = disk::open(disk)?;
    let mut resources = vec![(Role::Image, image)];
    resources.extend((0..).map(Role::Backing).zip(backing));
    Ok(Granted { config: DeviceConfig::Block(config), resources })
}

fn granted_rng(limits: Rates) -> Granted {
    Granted { config: DeviceConfig::Entropy(EntropyConfig { limits }), resources: Vec::new() }
}

/// The serial port, and the front's ends of its pipes.
fn serial(serial: &Serial) -> Result<(Granted, StreamPipes), String> {
    let failed = |error| format!("a pipe for the serial port cannot be made: {error}");
    let (WorkerEnds { input, output }, pipes) = stream::pipes(&serial.sink, true).map_err(failed)?;
    let input = input.map(|fd| (Role::HostInput, fd));
    let output = output.map(|fd| (Role::HostOutput, fd));
    Ok((board::serial(input.into_iter().chain(output).collect(), serial.limits), pipes))
}

/// The console with its ports; the front's ends of their pipes go to `pipes`.
fn console(
    ports: &[ConsolePort],
    screen: TerminalSize,
    pipes: &mut Vec<StreamPipes>,
) -> Result<Granted, String> {
    let mut resources = Vec::new();
    for (number, port) in (0..).zip(ports) {
        let failed = |error| format!("a pipe for console port {number} cannot be made: {error}");
        let (WorkerEnds { input, output }, own) = stream::pipes(&port.sink, false).map_err(failed)?;
        resources.extend(input.map(|fd| (Role::PortInput(number), fd)));
        resources.extend(output.map(|fd| (Role::PortOutput(number), fd)));
        pipes.push(own);
    }
    let TerminalSize { columns, rows } = screen;
    let ports = ports.iter().map(|port| port.name.clone().unwrap_or_default()).collect();
    Ok(Granted { config: DeviceConfig::Console(ConsoleConfig { ports, columns, rows }), resources })
}

/// The vsock device, and the front's end of its socket.
fn granted_vsock(vsock: &Vsock) -> Result<(Granted, Control), String> {
    let failed = |error| format!("a socket for the vsock worker cannot be made: {error}");
    let (own, worker) = socket::pair().map_err(failed)?;
    let config = DeviceConfig::Vsock(VsockConfig { cid: vsock.cid });
    Ok((Granted { config, resources: vec![(Role::Broker, worker.into())] }, own))
}

fn open(config: &VmConfig, devices: &[DevicePlan]) -> Result<Opened, String> {
    let named = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{what} {path} cannot be opened: {error}")
    };
    let image = |what, path: &Path| paths::open(path, OFlags::RDONLY).map_err(named(what, path));
    let kernel = image("kernel", &config.kernel)?;
    let initrd = config.initrd.as_deref().map(|path| image("initrd", path)).transpose()?;
    let dev_kvm = Path::new("/dev/kvm");
    let kvm = File::options().read(true).write(true).open(dev_kvm).map_err(|error| {
        format!("/dev/kvm cannot be opened: {error}; `cellblock doctor` says how to mend it")
    })?;
    let null = Path::new("/dev/null");
    let null = File::options().read(true).write(true).open(null).map_err(named("the null device", null))?;
    let directory = WorkerFolder::open(config.worker_dir.as_deref())?;
    let kinds: Vec<_> = devices.iter().map(|device| device.config.kind()).collect();
    let workers = devices
        .iter()
        .zip(device_names(&kinds))
        .map(|(device, name)| {
            let limits = (board::limits(device, config.memory), board::group_limits(device, config.memory));
            open_worker(&directory, device.config.kind(), name, limits)
        })
        .collect::<Result<_, _>>()?;
    let tombstone = open_program(&directory, TOMBSTONE)?;
    Ok(Opened { kvm: kvm.into(), kernel, initrd, null, workers, tombstone })
}

/// What a worker for a device of this kind is started with.
fn open_worker(
    directory: &WorkerFolder,
    kind: DeviceKind,
    name: String,
    (limits, group_limits): (Limits, GroupLimits),
) -> Result<WorkerFiles, String> {
    Ok(WorkerFiles {
        name,
        limits,
        group_limits,
        disks: Vec::new(),
        program: open_program(directory, kind.name())?,
    })
}

/// The program `name` of those in `directory`.
fn open_program(directory: &WorkerFolder, name: &str) -> Result<Program, String> {
    let open = |file: &str| paths::open_program(directory.folder.as_fd(), Path::new(file));
    let failed = |file: &str, error: std::io::Error| {
        format!(
            "the worker of device {name}, {}, cannot be read: {error}; build it with scripts/build, or say where it is \
             with --worker-dir",
            directory.path.join(file).display()
        )
    };
    let binary = open(name).map_err(|error| failed(name, error))?;
    let filter = format!("{name}.bpf");
    let mut start_filter = Vec::new();
    let read = open(&filter).and_then(|mut file| file.read_to_end(&mut start_filter));
    read.map_err(|error| failed(&filter, error))?;
    Ok(Program { binary, start_filter })
}

/// Where the workers' programs are.
struct WorkerFolder {
    path: PathBuf,
    folder: File,
}

impl WorkerFolder {
    /// As [`worker_directory`], opened.
    fn open(told: Option<&Path>) -> Result<Self, String> {
        let path = worker_directory(told)?;
        let folder = paths::open(&path, paths::FOLDER).map_err(|error| {
            format!(
                "the folder of the workers, {}, cannot be opened: {error}; build them with scripts/build, or say where they are \
                 with --worker-dir",
                path.display()
            )
        })?;
        Ok(WorkerFolder { path, folder })
    }
}

/// `--worker-dir`, or `../libexec/cellblock` beside this program.
pub(crate) fn worker_directory(told: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(directory) = told {
        return Ok(directory.to_owned());
    }
    let program =
        std::env::current_exe().map_err(|error| format!("this program's own path is unknown: {error}"))?;
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    Ok(prefix.join("libexec/cellblock"))
}

/// The VM's cgroup, where the host delegates one; it is removed on drop.
fn cgroup(id: &str, layers: LayerSet, ids: Ids) -> Result<Option<VmGroup>, String> {
    if !layers.has(Layer::Cgroup) {
        return Ok(None);
    }
    match Hierarchy::find() {
        Ok(hierarchy) => {
            let group = hierarchy.vm(id, ids.spawner(layers));
            group.map(Some).map_err(|error| format!("layer cgroup: {error}"))
        }
        Err(CgroupError::Absent(_)) => Ok(None),
        Err(error) => Err(format!("layer cgroup: {error}")),
    }
}

/// Gives `workers` of `devices` what `cgroup` is to let them ask of their disks; says what it cannot hold them to.
fn limit_disks(
    cgroup: Option<&VmGroup>,
    devices: &[DevicePlan],
    workers: &mut [WorkerFiles],
) -> Vec<DeclaredDisks> {
    let Some(cgroup) = cgroup else { return Vec::new() };
    let mut declared = Vec::new();
    for (index, (device, worker)) in devices.iter().zip(workers).enumerate() {
        let (limits, mut why) = board::io_limits(device);
        if cgroup.limits_disks() {
            worker.disks = limits;
        } else if !limits.is_empty() {
            why = Some("no controller io is delegated".to_owned());
        }
        if let Some(why) = why {
            note!(
                "cellblock: note: {}: its worker keeps the rate and ops, no cgroup holds it to them: {why}",
                worker.name
            );
        }
        if !worker.disks.is_empty() {
            let lines = worker.disks.iter().map(IoLimit::to_string).collect();
            declared.push(DeclaredDisks { index, file: cgroup.io_max(&worker.name), lines });
        }
    }
    declared
}

fn manifest(
    workers: Vec<WorkerFiles>,
    tombstone: Option<Program>,
    how: &Confinement,
    ids: Ids,
    uids: Option<&UidRange>,
    cgroup: Option<&VmGroup>,
) -> Result<Manifest, String> {
    let entry = |files: WorkerFiles| -> Result<Entry, String> {
        let cgroup = cgroup.map(|vm| vm.worker(&files.name, &files.group_limits, &files.disks)).transpose();
        Ok(Entry {
            name: files.name,
            binary: files.program.binary.into(),
            start_filter: files.program.start_filter,
            limits: files.limits,
            cgroup: cgroup.map_err(|error| format!("layer cgroup: {error}"))?,
        })
    };
    let lock = uids.map(|range| range.lock.try_clone()).transpose();
    let lock = lock.map_err(|error| format!("the uid range's lock cannot be shared: {error}"))?;
    let own_group = cgroup.map(VmGroup::spawner).transpose();
    Ok(Manifest {
        cgroup: own_group.map_err(|error| format!("layer cgroup: {error}"))?,
        workers: workers.into_iter().map(entry).collect::<Result<_, _>>()?,
        tombstone: tombstone
            .map(|Program { binary, start_filter }| Tombstone { binary: binary.into(), start_filter }),
        layers: how.layers,
        ids,
        lock: lock.map(OwnedFd::from),
        // A worker notes the call that it is refused, and dies of it.
        refusal: Refusal::Trap,
    })
}

/// What the loader is to load.
struct Load<'a> {
    kernel: File,
    initrd: Option<File>,
    cmdline: &'a str,
    protocol: Protocol,
    cpus: u32,
    virtio_slots: Vec<u32>,
    ram: &'a GuestRam,
    mouth: Control,
}

fn fork_loader(load: Load<'_>, null: BorrowedFd<'_>, how: Confinement) -> Result<process::Child, String> {
    let mut kept = vec![load.kernel.as_raw_fd(), load.ram.fd().as_raw_fd(), load.mouth.as_fd().as_raw_fd()];
    kept.extend(load.initrd.as_ref().map(AsRawFd::as_raw_fd));
    let body = move || {
        let mut load = load;
        let report = match load_in_jail(&mut load, &how) {
            Ok(loaded) => LoaderReport::Loaded(loaded),
            Err(reason) => LoaderReport::Failed(cut(reason)),
        };
        i32::from(load.mouth.send_message(&report, &[]).is_err())
    };
    process::fork(null, &kept, body).map_err(|error| format!("the loader cannot be started: {error}"))
}

fn load_in_jail(load: &mut Load<'_>, how: &Confinement) -> Result<Loaded, String> {
    let memory = load.ram.map().map_err(|error| error.to_string())?;
    let mut rng_seed = [0; 32];
    rustix::rand::getrandom(&mut rng_seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("no random seed for the guest: {error}"))?;
    let mut kept = vec![load.kernel.as_fd(), load.ram.fd(), load.mouth.as_fd()];
    kept.extend(load.initrd.as_ref().map(AsFd::as_fd));
    jail_loader::confine(how, &kept)
        .map_err(|error| format!("the loader's sandbox cannot be closed: {error}"))?;
    let request = LoadRequest {
        kernel: &mut load.kernel,
        initrd: load.initrd.as_mut(),
        cmdline: load.cmdline,
        protocol: load.protocol,
        rng_seed,
        acpi: AcpiConfig { cpus: load.cpus, virtio_slots: load.virtio_slots.clone() },
    };
    cellblock_loader::load(&memory, request).map_err(|error| error.to_string())
}

fn fork_supervisor(plan: Plan, null: BorrowedFd<'_>, uids: Option<&UidRange>) -> Result<Process, String> {
    let fixed =
        [plan.link.as_fd(), plan.spawner.as_fd(), plan.loader.as_fd(), plan.kvm.as_fd(), plan.ram.fd()];
    let kept = kept(&fixed, &plan.devices, uids);
    process::fork(null, &kept, move || cellblock_supervisor::run(plan))
        .map(|child| Process { pidfd: child.pidfd, pid: child.pid })
        .map_err(|error| format!("the supervisor cannot be started: {error}"))
}

/// What a supervisor keeps open: `fixed`, what its devices are given, and the lock file, so that the range stays taken while any
/// process of it lives.
fn kept(fixed: &[BorrowedFd<'_>], devices: &[DevicePlan], uids: Option<&UidRange>) -> Vec<RawFd> {
    let resources = devices.iter().flat_map(|device| device.resources.iter().map(|(_, fd)| fd.as_fd()));
    let lock = uids.map(|range| range.lock.as_fd());
    fixed.iter().copied().chain(resources).chain(lock).map(|fd| fd.as_raw_fd()).collect()
}
