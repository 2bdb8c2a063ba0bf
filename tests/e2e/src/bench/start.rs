//! What a VM costs on this machine: time to the first byte, memory, CPU while idle.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cellblock_e2e::processes::{Process, descendants};
use cellblock_e2e::{Places, Vm};

use crate::Request;
use crate::rival::{Guest, MEMORY_MIB, Program};
use crate::sample::{Sample, verdict};
use crate::sandbox;

const FIRST_BYTE_MS: f64 = 10.0;
const IDLE_PERCENT: f64 = 0.5;
const ONE_VM_MIB: f64 = 8.0;
const MANY_VMS_MIB: f64 = 4.0;
const MANY: usize = 20;
const IDLE: Duration = Duration::from_secs(10);

/// Measures; whether every figure keeps its limit.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let places = Places::find();
    if let Some(why) = places.why_no_guests() {
        anyhow::bail!("{why}");
    }
    if request.only.as_deref() == Some("sandbox") {
        return sandbox::run(request.runs);
    }
    // Its first instructions write a byte; then it halts.
    let guest = places.guest("hello");
    let mut programs = vec![(Program::Cellblock(places), Sample::default())];
    programs.extend(request.firecracker.clone().map(|path| (Program::Firecracker(path), Sample::default())));

    for _ in 0..request.runs.max(50) {
        for (program, sample) in &mut programs {
            sample.add(first_byte(program, &guest, request.cpus)?);
        }
    }
    let mut kept = true;
    for (program, sample) in &programs {
        println!("{:12} start to first serial byte: {sample}", program.name());
    }
    kept &= verdict("first byte", programs[0].1.median().as_secs_f64() * 1e3, FIRST_BYTE_MS, "ms");
    for (program, _) in &programs {
        kept &= idle_cost(program, &guest, request.cpus)?;
    }
    kept &= sandbox::run(request.runs)?;
    Ok(kept)
}

fn start(program: &Program, kernel: &Path, cpus: u32, id: &str, folder: &Path) -> Result<Vm> {
    program.start(
        &Guest {
            kernel,
            initrd: None,
            cmdline: "console=ttyS0",
            cpus,
            disk: None,
            tap: None,
            exit_stats: false,
        },
        id,
        folder,
    )
}

fn first_byte(program: &Program, kernel: &Path, cpus: u32) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let vm = start(program, kernel, cpus, "bench-start", folder.path())?;
    vm.expect_any()
}

/// Memory of one VM and of [`MANY`] at once, and CPU use of one.
fn idle_cost(program: &Program, kernel: &Path, cpus: u32) -> Result<bool> {
    let ours = matches!(program, Program::Cellblock(_));
    let folder = tempfile::tempdir()?;
    let launch = |index: usize| -> Result<Vm> {
        let vm = start(program, kernel, cpus, &format!("bench-idle-{index}"), folder.path())?;
        vm.expect_any()?;
        Ok(vm)
    };
    let mut vms = vec![launch(0)?];
    thread::sleep(Duration::from_millis(500));
    let before = cpu_time(&vms[0])?;
    thread::sleep(IDLE);
    let used = (cpu_time(&vms[0])? - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let one = memory_mib(&vms[0])?;
    println!("{:12} memory by process: {}", program.name(), memory_table(&vms[0])?);
    for index in 1..MANY {
        vms.push(launch(index)?);
    }
    thread::sleep(Duration::from_millis(500));
    let mut total = 0.0;
    for vm in &vms {
        total += memory_mib(vm)?;
    }
    let each = total / MANY as f64;
    println!(
        "{:12} idle {used:.3} % of a CPU, one VM {one:.2} MiB, {MANY} VMs {each:.2} MiB each",
        program.name()
    );
    if !ours {
        return Ok(true);
    }
    let cpu = verdict("idle VM", used, IDLE_PERCENT, "% of a CPU");
    let memory = verdict("PSS of one VM without guest RAM", one, ONE_VM_MIB, "MiB");
    Ok(verdict("PSS of each of 20 VMs", each, MANY_VMS_MIB, "MiB") && cpu && memory)
}

fn processes(vm: &Vm) -> Result<Vec<Process>> {
    let front = vm.pid().as_raw_nonzero().get();
    let mut pids = descendants(front).context("/proc")?;
    pids.push(front);
    ensure!(pids.iter().all(|pid| Process(*pid).alive()), "a process of the VM has ended");
    Ok(pids.into_iter().map(Process).collect())
}

fn cpu_time(vm: &Vm) -> Result<Duration> {
    processes(vm)?.into_iter().map(Process::cpu_time).sum()
}

fn memory_mib(vm: &Vm) -> Result<f64> {
    let mut kib = 0;
    for process in processes(vm)? {
        kib += process.overhead_kib(MEMORY_MIB << 20)?;
    }
    Ok(kib as f64 / 1024.0)
}

fn memory_table(vm: &Vm) -> Result<String> {
    let row = |process: Process| {
        Ok(format!("{} {} KiB", process.status("Name")?, process.overhead_kib(MEMORY_MIB << 20)?))
    };
    Ok(processes(vm)?.into_iter().map(row).collect::<Result<Vec<_>>>()?.join(", "))
}
