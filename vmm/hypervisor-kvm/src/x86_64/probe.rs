//! What this host's KVM offers, and how fast it runs kernel code.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_hypervisor::x86_64::{BootState, Segment};
use cellblock_hypervisor::{Error, Regs, Result, UnboundVcpu as _, Vcpu as _, VmEntry, VmExit, X86Gpr};
use cellblock_memory::{GuestRam, UNIT};
use kvm_ioctls::Cap;
use vm_memory::{Bytes, GuestAddress};

use super::{BACKEND, Kvm};
use crate::interface::{Capability, Speed};

/// A probe that has not come to its end by then is cut off.
const DEADLINE: Duration = Duration::from_millis(200);
/// Two instructions each: the first takes 1 ms where kernel code is emulated, all together take microseconds elsewhere.
const ITERATIONS: [u64; 3] = [500, 5_000, 50_000];
/// Brings code and page tables into the host's caches and second-level tables.
const WARM_UP: u64 = 16;

const CODE: u64 = 0x1000;
const PAGE_TABLES: u64 = 0x2000;
/// `dec rcx; jnz -5; hlt`
const LOOP: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

/// What this program asks of KVM: what it needs first, then what makes it better.
const WANTED: [(Cap, &str, bool, &str); 19] = [
    (Cap::UserMemory, "USER_MEMORY", true, "guest memory"),
    (Cap::Irqchip, "IRQCHIP", true, "interrupt controllers in the kernel"),
    (Cap::ImmediateExit, "IMMEDIATE_EXIT", true, "stopping a vCPU without losing the request"),
    (Cap::Irqfd, "IRQFD", true, "interrupts raised by device processes"),
    (Cap::Ioeventfd, "IOEVENTFD", true, "queue notifications straight to device processes"),
    (Cap::SignalMsi, "SIGNAL_MSI", true, "injecting an interrupt vector"),
    (Cap::ExtCpuid, "EXT_CPUID", true, "choosing what the guest's CPUID tells"),
    (Cap::MpState, "MP_STATE", true, "starting further vCPUs"),
    (
        Cap::TscDeadlineTimer,
        "TSC_DEADLINE_TIMER",
        false,
        "without it the guest calibrates its APIC timer at boot",
    ),
    (Cap::AdjustClock, "ADJUST_CLOCK", false, "kvm-clock; without it the guest's clock drifts across pauses"),
    (
        Cap::ReadonlyMem,
        "READONLY_MEM",
        false,
        "without it each read of a virtio device's register is an exit",
    ),
    (Cap::CoalescedPio, "COALESCED_PIO", false, "without it each index written to the RTC is an exit"),
    (Cap::GetTscKhz, "GET_TSC_KHZ", false, "without it the guest measures its TSC at boot"),
    (Cap::SetTssAddr, "SET_TSS_ADDR", false, "real mode on old Intel processors"),
    (Cap::SetIdentityMapAddr, "SET_IDENTITY_MAP_ADDR", false, "unpaged mode on old Intel processors"),
    (Cap::IrqfdResample, "IRQFD_RESAMPLE", false, "level-triggered interrupts from device processes"),
    (Cap::SetGuestDebug, "SET_GUEST_DEBUG", false, "breakpoints and single steps"),
    (Cap::DirtyLogRing, "DIRTY_LOG_RING", false, "cheap tracking of written memory for snapshots"),
    (
        Cap::MemoryFaultInfo,
        "MEMORY_FAULT_INFO",
        false,
        "without it an error about host memory does not say where",
    ),
];

/// What the host has of all that this program can use.
pub fn capabilities(kvm: &Kvm) -> Vec<Capability> {
    WANTED
        .iter()
        .map(|&(cap, name, required, meaning)| Capability {
            name,
            present: kvm.inner.check_extension(cap),
            required,
            meaning,
        })
        .collect()
}

/// Refuses a host that lacks a required capability, by its name.
pub(super) fn require_all(kvm: &Kvm) -> Result<()> {
    let lacking = WANTED.iter().find(|(cap, _, required, _)| *required && !kvm.inner.check_extension(*cap));
    match lacking {
        None => Ok(()),
        Some((_, name, _, meaning)) => Err(Error::Unsupported {
            what: "a VM on this host",
            backend: BACKEND,
            why: format!("it lacks KVM_CAP_{name}: {meaning}"),
        }),
    }
}

/// Times a short loop of 64-bit kernel-mode code in a VM made for it. Starts one thread, which has ended on return.
///
/// # Errors
/// The set-up's errors; [`Error::Unsupported`] if the guest ended in another way than by its HLT.
pub fn kernel_code_speed(kvm: &Kvm) -> Result<Speed> {
    let ram = GuestRam::create(UNIT, false).map_err(not_set_up)?;
    let vm = kvm.create_bare_vm(&ram)?;
    write_guest(vm.memory()).map_err(not_set_up)?;
    let vcpu = vm.create_vcpu(0)?;
    let kick = vcpu.kick_handle();
    let (ended, watched) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if watched.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
                kick.kick();
            }
        });
        let mut vcpu = vcpu.bind()?;
        let speed = settled_speed(&mut vcpu);
        drop(ended);
        speed
    })
}

/// A warm-up, then ever longer runs until the cost of entry and exit (300 µs in a software-emulated host) no longer hides the speed, or
/// the first is already slow beyond doubt.
fn settled_speed(vcpu: &mut super::KvmVcpu) -> Result<Speed> {
    const DOUBTFUL_FROM: u64 = Speed::EMULATED_BELOW / 4;
    let mut speed = time_loop(vcpu, WARM_UP)?;
    for iterations in ITERATIONS {
        if speed.cut_off {
            break;
        }
        speed = best_of(vcpu, iterations, DOUBTFUL_FROM)?;
        if speed.per_second() < DOUBTFUL_FROM {
            break;
        }
    }
    Ok(speed)
}

/// The fastest of a few runs, or the first that is fast enough: a busy host interrupts some.
fn best_of(vcpu: &mut super::KvmVcpu, iterations: u64, enough: u64) -> Result<Speed> {
    const TRIES: u32 = 5;
    let mut best = time_loop(vcpu, iterations)?;
    for _ in 1..TRIES {
        if best.cut_off || best.per_second() >= enough {
            break;
        }
        let next = time_loop(vcpu, iterations)?;
        if next.cut_off || next.elapsed < best.elapsed {
            best = next;
        }
    }
    Ok(best)
}

/// Runs the loop once, from the start.
fn time_loop(vcpu: &mut super::KvmVcpu, iterations: u64) -> Result<Speed> {
    vcpu.setup().set_boot_state(&boot_state())?;
    let mut gprs = [0; 16];
    gprs[X86Gpr::Rcx as usize] = iterations;
    gprs[X86Gpr::Flags as usize] = 2;
    vcpu.set_regs(&Regs::X86_64 { rip: CODE, rsp: 0, gprs })?;
    let start = Instant::now();
    let exit = vcpu.run(VmEntry::Resume)?;
    let elapsed = start.elapsed();
    match exit {
        VmExit::Hlt => Ok(Speed { instructions: 2 * iterations + 1, elapsed, cut_off: false }),
        VmExit::Kicked => {
            let left = match vcpu.get_regs()? {
                Regs::X86_64 { gprs, .. } => gprs[X86Gpr::Rcx as usize],
                _ => iterations,
            };
            Ok(Speed { instructions: 2 * iterations.saturating_sub(left), elapsed, cut_off: true })
        }
        other => Err(Error::Unsupported {
            what: "running 64-bit kernel-mode code on this host",
            backend: BACKEND,
            why: format!("a loop of two instructions ended with {other:x?}"),
        }),
    }
}

/// Code, and page tables that map the first 2 MiB to themselves.
fn write_guest(memory: &vm_memory::GuestMemoryMmap) -> std::result::Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    memory.write_slice(&LOOP, GuestAddress(CODE))?;
    memory.write_obj((PAGE_TABLES + 0x1000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    memory.write_obj((PAGE_TABLES + 0x2000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES + 0x1000))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(PAGE_TABLES + 0x2000))
}

/// 64-bit mode, ring 0, interrupts off.
fn boot_state() -> BootState {
    let data = Segment::data(0x18);
    BootState {
        rip: CODE,
        cr0: 0x8000_0011, // PG, ET, PE
        cr3: PAGE_TABLES,
        cr4: 0x20,   // PAE
        efer: 0x500, // LMA, LME
        cs: Segment::code64(0x10),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::tss(0x20, 0, 0x67),
        ..BootState::default()
    }
}

fn not_set_up(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Call {
        call: "preparing guest memory",
        on: "the probe's VM".into(),
        source: std::io::Error::other(error),
    }
}
