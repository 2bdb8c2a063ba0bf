//! From a plan to a running machine.
//!
//! The order is that of the wait: the spawner is asked for the workers first, KVM is set up while they start, and the
//! vCPUs run as soon as the loader is done; each then waits only for the worker that it needs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use cellblock_arch::{boot_state, cpuid, layout, msrs};
use cellblock_bus::{Bus, Target};
use cellblock_channel::doorbell;
use cellblock_channel::socket::Control;
use cellblock_hypervisor::UnboundVcpu as _;
use cellblock_hypervisor::x86_64::CpuidLeaf;
use cellblock_hypervisor_kvm::{DataMatch, IoAddress, Kvm, KvmVm, UnboundKvmVcpu, probe};
use cellblock_jail::supervisor::{self as jail, Confinement};
use cellblock_loader::Loaded;
use cellblock_memory::GuestRam;
use cellblock_spawner::client::Client;
use cellblock_wire::slot::Space;
use crossbeam_channel::bounded;
use rustix::event::{EventfdFlags, eventfd};

use crate::error::BuildError;
use crate::exit_stats::ExitStats;
use crate::link::LoaderReport;
use crate::machine::{Machine, Pause, VcpuHandle};
use crate::pace::Means;
use crate::plan::{DevicePlan, Plan};
use crate::poller::{Poller, Token};
use crate::proxy::Proxy;
use crate::vcpu::{Ended, Mouth, VcpuActor};
use crate::worker::{Wires, Worker};

/// Stack of a vCPU's thread, in bytes: its loop needs a few kB, error texts a little more.
const VCPU_STACK: usize = 128 << 10;

/// Commands on their way to a vCPU; more wait in its handle.
const COMMANDS: usize = 8;
/// What one vCPU may say before it is answered: its trouble with a worker, requests that were poison, a pause, its end; and some
/// reminders.
const REPORTS: usize = 8;

/// Builds the machine and starts its vCPUs; on return the calling thread is the jailed loop thread.
pub(crate) fn build(plan: Plan) -> Result<Machine, BuildError> {
    let means = Means::of_this_process(plan.spin);
    let spawner = Client::new(plan.spawner);
    let Board { bus, workers, wires } = start_devices(plan.devices, plan.cpus, &plan.ram, &spawner, means)?;

    let kvm = Kvm::open(plan.kvm)?;
    let (vm, supported) = thread::scope(|scope| {
        // Half a millisecond each, and independent of each other.
        let cpuid = scope.spawn(|| kvm.supported_cpuid());
        let vm = kvm.create_vm_with(&plan.ram, &wires.pages);
        (vm, cpuid.join())
    });
    let vm = vm?;
    let supported = supported.map_err(|_| BuildError::Thread { what: "KVM_GET_SUPPORTED_CPUID" })??;
    connect(&vm, &wires)?;
    forget_writes(&vm, &bus, &wires)?;
    if plan.cpus == 1 {
        vm.hold_writes(layout::HELD_PORT)?;
    }
    let mut notes = vm.notes();
    let vcpus = create_vcpus(&vm, &supported, plan.cpus, &mut notes)?;
    let loaded = await_loader(&plan.loader, plan.ram.bytes())?;
    if plan.doubt_host {
        refuse_emulated_linux(&kvm, &loaded)?;
    }
    let boot = boot_state(&loaded.entry).map_err(|error| BuildError::Loader(error.to_string()))?;
    if let Some(first) = vcpus.first() {
        first.setup().set_boot_state(&boot)?;
    }
    jail::confine(&plan.confinement).map_err(|error| BuildError::Jail(error.to_string()))?;

    let poller = Poller::new().map_err(system("an epoll instance cannot be made"))?;
    let (ringer, bell) = doorbell::pair().map_err(system("a wake-up pipe cannot be made"))?;
    poller.watch(&plan.link, Token::Link).map_err(system("the front's socket cannot be watched"))?;
    poller.watch(&spawner, Token::Spawner).map_err(system("the spawner's socket cannot be watched"))?;
    poller.watch(&bell, Token::Mailbox).map_err(system("the vCPUs' reports cannot be watched"))?;
    for (index, worker) in workers.iter().enumerate() {
        poller
            .watch(worker.control(), Token::Control(index))
            .map_err(system("a worker's socket cannot be watched"))?;
    }

    let (reporter, reports) = bounded(plan.cpus as usize * REPORTS);
    let ringer = Arc::new(ringer);
    let bus = Arc::new(bus);
    let mut handles = Vec::with_capacity(vcpus.len());
    let stats = || plan.exit_stats.then(Arc::<ExitStats>::default);
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let id = id as u32;
        let proxies = workers.iter().map(|worker| worker.proxy(id)).collect::<Result<Vec<_>, _>>()?;
        let mouth = Mouth { id, reporter: reporter.clone(), ringer: Arc::clone(&ringer) };
        handles.push(start_vcpu(vcpu, Arc::clone(&bus), proxies, mouth, plan.confinement, stats())?);
    }
    jail::confine_loop(&plan.confinement).map_err(|error| BuildError::Jail(error.to_string()))?;
    Ok(Machine {
        link: plan.link,
        bus,
        spawner,
        workers,
        vcpus: handles,
        reports,
        bell,
        poller,
        held: RefCell::default(),
        held_until: None,
        notes,
        spares: plan.spares,
        status_by: None,
        pause: Pause::default(),
        spawner_pid: 0,
        spawner_lost: false,
        beat_at: None,
    })
}

/// The devices, wired; their workers are on their way.
struct Board {
    bus: Bus,
    workers: Vec<Worker>,
    /// What is to be connected to KVM.
    wires: Wires,
}

/// For each device: its place on the bus, a worker with all that it is granted, and a request to start that. One after the
/// other, so that the first worker is on its way while the others' shared memory is made.
fn start_devices(
    devices: Vec<DevicePlan>,
    lanes: u32,
    ram: &GuestRam,
    spawner: &Client,
    means: Means,
) -> Result<Board, BuildError> {
    let mut board =
        Board { bus: Bus::default(), workers: Vec::with_capacity(devices.len()), wires: Wires::default() };
    for (device, plan) in devices.into_iter().enumerate() {
        for (region, range) in plan.regions.iter().enumerate() {
            board.bus.insert(*range, Target { device, region: region as u32 })?;
        }
        let (worker, wires, theirs) = Worker::new(plan, lanes, Some(ram), means)?;
        board.wires.append(wires);
        worker.start(device, theirs, spawner)?;
        board.workers.push(worker);
    }
    Ok(board)
}

/// Interrupts from the workers, kicks to them.
fn connect(vm: &KvmVm, wires: &Wires) -> Result<(), BuildError> {
    for (event, gsi) in &wires.interrupts {
        vm.irqfd(event.as_fd(), *gsi)?;
    }
    for (event, kick) in &wires.kicks {
        vm.ioeventfd(IoAddress::Mmio(kick.address), DataMatch::U32(kick.value), event.as_fd())?;
    }
    Ok(())
}

/// Has KVM take the writes that nobody needs to know of, so that they are no exits: into an event that nobody looks at.
fn forget_writes(vm: &KvmVm, bus: &Bus, wires: &Wires) -> Result<(), BuildError> {
    let nowhere = eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|errno| system("an eventfd cannot be made")(errno.into()))?;
    for port in
        layout::DEAF_PORTS.into_iter().filter(|port| bus.find(Space::Pio, (*port).into(), 1).is_none())
    {
        vm.ioeventfd(IoAddress::Pio(port), DataMatch::Any, nowhere.as_fd())?;
    }
    for write in &wires.forgotten {
        vm.ioeventfd(IoAddress::Mmio(write.address), DataMatch::U32(write.value), nowhere.as_fd())?;
    }
    Ok(())
}

fn create_vcpus(
    vm: &KvmVm,
    supported: &[CpuidLeaf],
    cpus: u32,
    notes: &mut Vec<String>,
) -> Result<Vec<UnboundKvmVcpu>, BuildError> {
    (0..cpus)
        .map(|id| {
            let vcpu = vm.create_vcpu(id)?;
            let setup = vcpu.setup();
            setup.set_cpuid(&cpuid::for_vcpu(supported, id, cpus))?;
            let refused = setup.set_msrs(&msrs::at_reset())?;
            if id == 0 && !refused.is_empty() {
                notes.push(format!(
                    "this host's KVM refuses to set the MSRs {refused:#x?}; the guest runs without"
                ));
            }
            setup.set_lapic_pins()?;
            Ok(vcpu)
        })
        .collect()
}

/// The loader's one message: what it put into guest memory, or why it could not.
fn await_loader(loader: &Control, ram_bytes: u64) -> Result<Loaded, BuildError> {
    let (report, _) = loader
        .recv_message::<LoaderReport>(0)
        .map_err(|error| BuildError::Loader(format!("the loader process ended without a word: {error}")))?;
    match report {
        LoaderReport::Failed(reason) => Err(BuildError::Loader(reason)),
        LoaderReport::Loaded(loaded) => {
            loaded.check(ram_bytes).map_err(|error| BuildError::Loader(error.to_string()))?;
            Ok(loaded)
        }
    }
}

/// A Linux kernel on a host that emulates kernel code would seem to hang: say so instead.
fn refuse_emulated_linux(kvm: &Kvm, loaded: &Loaded) -> Result<(), BuildError> {
    if loaded.linux && probe::kernel_code_speed(kvm)?.emulated() {
        return Err(BuildError::EmulatedHost);
    }
    Ok(())
}

fn start_vcpu(
    vcpu: UnboundKvmVcpu,
    bus: Arc<Bus>,
    proxies: Vec<Proxy>,
    mouth: Mouth,
    confinement: Confinement,
    stats: Option<Arc<ExitStats>>,
) -> Result<VcpuHandle, BuildError> {
    let (commands, mailbox) = bounded(COMMANDS);
    let (wait_kick, kicks) = cellblock_channel::kick();
    let exits = Arc::default();
    let handle = VcpuHandle {
        commands,
        undelivered: VecDeque::new(),
        entry_kick: vcpu.kick_handle(),
        wait_kick,
        exits: Arc::clone(&exits),
        stats: stats.clone(),
    };
    let name = format!("vcpu{}", mouth.id);
    let run = move || match vcpu.bind() {
        Err(error) => mouth.ended(Ended::Internal(error.to_string())),
        Ok(vcpu) => match jail::confine_vcpu(&confinement) {
            Err(error) => mouth.ended(Ended::Internal(format!("its sandbox cannot be closed: {error}"))),
            Ok(()) => {
                let ears = mouth.clone();
                let actor = VcpuActor {
                    vcpu,
                    bus,
                    proxies,
                    kicks,
                    commands: mailbox,
                    mouth,
                    exits,
                    stats,
                    pause: None,
                };
                ears.ended(actor.run());
            }
        },
    };
    thread::Builder::new()
        .name(name)
        .stack_size(VCPU_STACK)
        .spawn(run)
        .map_err(system("a vCPU's thread cannot be started"))?;
    Ok(handle)
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> BuildError {
    move |source| BuildError::System { what, source }
}
