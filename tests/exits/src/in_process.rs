//! A VMM of one process, for comparison: vCPU threads over the same back end, loader, bus and device models as the program that ships.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use anyhow::{Context, Error, Result, bail};
use cellblock_arch::{AcpiConfig, boot_state, cpuid, layout, msrs};
use cellblock_hypervisor::{ExitData, UnboundVcpu as _, Vcpu as _, VmEntry, VmExit};
use cellblock_hypervisor_kvm::{Kvm, KvmVcpu, UnboundKvmVcpu};
use cellblock_jail::LayerSet;
use cellblock_jail::supervisor::{Confinement, confine_vcpu};
use cellblock_loader::{LoadRequest, Protocol};
use cellblock_memory::GuestRam;
use cellblock_policy::Refusal;
use cellblock_sdk::device::Action;
use cellblock_wire::slot::Space;

use crate::board::{Board, Devices};
use crate::json::Proxy;

const RAM_BYTES: u64 = 64 << 20;

/// Who answers the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Nothing,
    Local,
    Json,
}

impl FromStr for Who {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "nothing" => Who::Nothing,
            "local" => Who::Local,
            "json" => Who::Json,
            _ => bail!("{name} is not nothing, local or json"),
        })
    }
}

/// Runs `kernel` until it powers off, and shows what it wrote.
///
/// # Errors
/// The VM cannot be made, or ends otherwise.
pub(crate) fn run(who: Who, cpus: u32, kernel: &Path, cmdline: &str) -> Result<()> {
    let board = Arc::new(match who {
        Who::Nothing => Board::Nothing,
        Who::Local => Board::Local(Devices::new()?),
        Who::Json => Board::Json(Mutex::new(Proxy::start()?)),
    });
    let vcpus = build(cpus, kernel, cmdline)?;
    rustix::thread::set_no_new_privs(true)?;
    let (end, ended) = mpsc::sync_channel(cpus as usize);
    for vcpu in vcpus {
        let (board, end) = (Arc::clone(&board), end.clone());
        thread::spawn(move || {
            let _ = end.send(serve(vcpu, who, &board));
        });
    }
    let written = ended.recv()??;
    std::io::stdout().write_all(&written)?;
    // The other vCPUs are in the guest for good.
    std::process::exit(0)
}

fn serve(vcpu: UnboundKvmVcpu, who: Who, board: &Board) -> Result<Vec<u8>> {
    let mut vcpu = vcpu.bind()?;
    // Like the shipped vCPU threads; what speaks to sockets needs more.
    if who != Who::Json {
        jail()?;
    }
    drive(&mut vcpu, board)
}

fn jail() -> Result<()> {
    let privileged = rustix::process::geteuid().is_root();
    let how = Confinement { layers: LayerSet::all(), privileged, id: None, refusal: Refusal::Kill };
    confine_vcpu(&how).map_err(|error| Error::msg(error.to_string()))
}

fn build(cpus: u32, kernel: &Path, cmdline: &str) -> Result<Vec<UnboundKvmVcpu>> {
    let kvm = Kvm::open(OpenOptions::new().read(true).write(true).open("/dev/kvm")?.into())?;
    let ram = GuestRam::create(RAM_BYTES, false)?;
    let vm = kvm.create_vm(&ram)?;
    let request = LoadRequest {
        kernel: &mut File::open(kernel).with_context(|| kernel.display().to_string())?,
        initrd: None,
        cmdline,
        protocol: Protocol::Auto,
        rng_seed: [0; 32],
        acpi: AcpiConfig { cpus, virtio_slots: vec![0] },
    };
    let loaded = cellblock_loader::load(&ram.map()?, request)?;
    let supported = kvm.supported_cpuid()?;
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let vcpu = vm.create_vcpu(id)?;
        let setup = vcpu.setup();
        setup.set_cpuid(&cpuid::for_vcpu(&supported, id, cpus))?;
        setup.set_msrs(&msrs::at_reset())?;
        setup.set_lapic_pins()?;
        if id == 0 {
            setup.set_boot_state(&boot_state(&loaded.entry)?)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Runs a vCPU until the guest powers off; what it sent to the serial port, which nobody times.
fn drive(vcpu: &mut KvmVcpu, board: &Board) -> Result<Vec<u8>> {
    let mut written = Vec::new();
    let mut entry = VmEntry::Resume;
    loop {
        let (space, addr, write, mut data) = match vcpu.run(entry)? {
            VmExit::Mmio { addr, write, data } => (Space::Mmio, addr, write, data),
            VmExit::Pio { port, write: true, data } if port == layout::SERIAL_PORT => {
                written.extend_from_slice(&data);
                entry = VmEntry::Done;
                continue;
            }
            VmExit::Pio { port, write: true, .. } if port == layout::POWER_PORT => {
                return Ok(written);
            }
            VmExit::Pio { port, write, data } => (Space::Pio, port.into(), write, data),
            VmExit::Kicked => {
                entry = VmEntry::Resume;
                continue;
            }
            other => bail!("the guest ended with {other:?}"),
        };
        let size = data.len();
        let (answer, action) = board.access(space, addr, size as u8, write.then(|| number(&data)))?;
        if action != Action::None {
            return Ok(written);
        }
        entry = if write {
            VmEntry::Done
        } else {
            data.copy_from_slice(&answer.to_le_bytes()[..size]);
            VmEntry::Reply(data)
        };
    }
}

fn number(data: &ExitData) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}
