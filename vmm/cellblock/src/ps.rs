//! `cellblock ps`: the running VMs, or one VM's processes and what each did.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cellblock_supervisor::death::Reasons;
use cellblock_supervisor::link::{DeviceState, DeviceStatus, Pause};
use cellblock_wire::control::Counters;
use serde::Serialize;

use crate::cli::PsArgs;
use crate::front::control_socket::{Answer, PREFIX, Report, What, ask};
use crate::process_facts::{Facts, children, name_if_alive};
use crate::security::{Finding, Who};

/// One line of the process tree.
#[derive(Debug, Serialize)]
struct Row {
    process: String,
    pid: i32,
    state: &'static str,
    #[serde(flatten)]
    did: Option<Did>,
    #[serde(flatten)]
    facts: Facts,
}

/// What a device's worker did since its start.
#[derive(Debug, Serialize)]
struct Did {
    /// How many workers the device had before this one.
    restarts: u32,
    /// How often another binary has taken over.
    upgrades: u16,
    /// Processes that wait to take its place.
    spares: u8,
    /// How the device was last without a worker.
    last_pause: Option<Pause>,
    /// Which incarnation this one is, from 1.
    generation: u32,
    /// Why the others are gone.
    reasons: Reasons,
    /// Exits of vCPUs that it answered.
    exits: u64,
    /// Requests in virtqueues that it did: of a disk or entropy device requests, of a network device packets, of a console
    /// and a socket device pieces of their streams.
    requests: u64,
    /// Interrupts that it raised.
    interrupts: u64,
    /// Bytes that the guest was given.
    bytes_to_guest: u64,
    /// Bytes that the guest gave, in virtqueues with the headers of its requests.
    bytes_from_guest: u64,
    /// Of these, bytes that the host's side did not take.
    dropped_bytes: u64,
    /// Requests that failed.
    failed_requests: u64,
    /// How often a limit made the guest wait.
    limited: u64,
}

impl Did {
    fn new(device: &DeviceStatus) -> Self {
        let Counters { requests, interrupts, host_in, host_out, dropped, failed, limited, .. } =
            device.counters;
        Did {
            restarts: device.restarts,
            upgrades: device.upgrades,
            spares: device.spares,
            last_pause: device.last_pause,
            generation: device.generation,
            reasons: device.reasons,
            exits: device.exits,
            requests,
            interrupts,
            bytes_to_guest: host_in,
            bytes_from_guest: host_out,
            dropped_bytes: dropped,
            failed_requests: failed,
            limited,
        }
    }
}

#[derive(Debug, Serialize)]
struct Vm {
    id: String,
    uid: u32,
    paused: bool,
    vcpu_exits: Vec<u64>,
    processes: Vec<Row>,
}

/// Prints what `args` ask for.
///
/// # Errors
/// The VM does not exist or does not answer.
pub(crate) fn ps(args: &PsArgs) -> anyhow::Result<()> {
    let wanted = running(args.id.as_deref())?;
    if args.security {
        return security(wanted, args.id.is_some(), args.json);
    }
    let vms: Vec<Vm> = wanted.into_iter().filter_map(|(owner, id)| vm(owner, &id)).collect();
    if args.json {
        say!("{}", serde_json::to_string_pretty(&vms)?)
    } else {
        say!("{}", table(&vms).trim_end())
    }
}

/// One process, as the kernel sees it.
#[derive(Debug, Serialize)]
struct Secured {
    process: String,
    pid: i32,
    #[serde(flatten)]
    finding: Finding,
}

/// The processes of one VM, as the kernel sees them.
#[derive(Debug, Serialize)]
struct SecuredVm {
    id: String,
    uid: u32,
    /// Why nothing, or not everything, was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_checked: Option<String>,
    processes: Vec<Secured>,
}

impl SecuredVm {
    fn differing(&self) -> usize {
        self.processes.iter().filter(|one| !one.finding.differences.is_empty()).count()
    }
}

/// How often a VM is looked at if something differs: a process may have been starting, or ending.
const LOOKS: u32 = 8;
/// How long until the next look.
const PAUSE: Duration = Duration::from_millis(250);

/// Prints what the kernel says of each process of the VMs, and what differs from what they were started with. Of VMs that
/// were not `named` those that have just ended are left out.
///
/// # Errors
/// Something differs, or cannot be looked at.
fn security(vms: Vec<(u32, String)>, named: bool, json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for (uid, id) in vms {
        let mut vm = look_at(uid, &id);
        for _ in 1..LOOKS {
            // One that does not answer has been waited for.
            if vm.processes.is_empty() || (vm.not_checked.is_none() && vm.differing() == 0) {
                break;
            }
            std::thread::sleep(PAUSE);
            vm = look_at(uid, &id);
        }
        let ended = || !names().is_ok_and(|names| names.contains(&(uid, id)));
        if named || !vm.processes.is_empty() || !ended() {
            all.push(vm);
        }
    }
    if json {
        say!("{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        for vm in &all {
            say!("VM {} (uid {})", vm.id, vm.uid)?;
            for one in &vm.processes {
                say!("{}", one.finding.lines(&one.process, one.pid).trim_end())?;
            }
            if let Some(why) = &vm.not_checked {
                say!("  NOT CHECKED: {why}")?;
            }
        }
    }
    let unchecked = all.iter().filter(|vm| vm.not_checked.is_some()).count();
    let differing = all.iter().map(SecuredVm::differing).sum::<usize>();
    ensure!(
        unchecked == 0,
        "{unchecked} VMs could not be checked, and {differing} processes are not confined as declared"
    );
    ensure!(differing == 0, "{differing} processes are not confined as declared");
    Ok(())
}

fn look_at(uid: u32, id: &str) -> SecuredVm {
    let unchecked =
        |why: String| SecuredVm { id: id.to_owned(), uid, not_checked: Some(why), processes: Vec::new() };
    let report = match ask(uid, id, What::Status) {
        Ok(Answer::Status(report)) => report,
        Ok(Answer::Refused(why)) => return unchecked(why),
        Ok(_) => return unchecked("it answered something else".to_owned()),
        Err(error) => return unchecked(format!("it does not answer: {error}")),
    };
    let Some(declared) = &report.declared else {
        return unchecked("it does not say what it was started with yet".to_owned());
    };
    let found = processes(&report);
    let spares: usize = report.status.devices.iter().map(|device| usize::from(device.spares)).sum();
    let seen = found.iter().filter(|(_, who, _)| *who == Who::Spare).count();
    let findings = declared.check(&found);
    let secured = |((process, _, pid), finding)| Secured { process, pid, finding };
    SecuredVm {
        id: id.to_owned(),
        uid,
        not_checked: (seen < spares).then(|| format!("{} of {spares} spares are not found", spares - seen)),
        processes: found.into_iter().zip(findings).map(secured).collect(),
    }
}

/// The processes of a VM that live.
fn processes(report: &Report) -> Vec<(String, Who, i32)> {
    let status = &report.status;
    let front = i32::try_from(report.front).unwrap_or(0);
    let mut found = vec![
        ("front".to_owned(), Who::Front, front),
        ("supervisor".to_owned(), Who::Supervisor, report.supervisor),
    ];
    if report.init != status.spawner {
        found.push(("init".to_owned(), Who::Init, report.init));
    }
    if !status.spawner_lost {
        found.push(("spawner".to_owned(), Who::Spawner, status.spawner));
    }
    let workers = status.devices.iter().zip(status.device_names()).enumerate();
    let workers = workers.map(|(index, (device, name))| {
        let serves = device.state == DeviceState::Serving;
        (name, if serves { Who::Worker(index) } else { Who::Starting(index) }, device.pid)
    });
    found.extend(workers.filter(|(.., pid)| *pid != 0));
    let others = |of: i32, found: &[(String, Who, i32)]| -> Vec<i32> {
        let known = |pid: &i32| found.iter().any(|(.., known)| known == pid);
        children(of).into_iter().filter(|pid| !known(pid)).collect()
    };
    if !status.spawner_lost {
        // What has the spawner's name has not been executed yet.
        let own = name_if_alive(status.spawner);
        let spares = others(status.spawner, &found).into_iter();
        let spares = spares.filter(|pid| name_if_alive(*pid).is_some_and(|name| Some(name) != own));
        found.extend(spares.map(|pid| ("spare".to_owned(), Who::Spare, pid)));
    }
    let helpers = others(front, &found);
    found.extend(helpers.into_iter().filter_map(|pid| Some((name_if_alive(pid)?, Who::Helper, pid))));
    found
}

/// The `(uid, id)` of this user's running VMs, of all users' for root; with `id`, of those of this name.
///
/// # Errors
/// There is none of this name, or the kernel's list cannot be read.
pub(crate) fn running(id: Option<&str>) -> anyhow::Result<Vec<(u32, String)>> {
    let uid = rustix::process::geteuid().as_raw();
    let all = names().context("/proc/net/unix cannot be read")?;
    let mine = all.into_iter().filter(|(owner, _)| uid == 0 || *owner == uid);
    let wanted: Vec<_> = mine.filter(|(_, name)| id.is_none_or(|id| id == name)).collect();
    if let (Some(id), true) = (id, wanted.is_empty()) {
        bail!("no VM named {id:?} runs here for this user; `cellblock ps` lists those that do");
    }
    Ok(wanted)
}

/// The `(uid, id)` of the one VM named `id`.
///
/// # Errors
/// There is none, or there are several, of several users.
pub(crate) fn one(id: &str) -> anyhow::Result<(u32, String)> {
    let mut vms = running(Some(id))?;
    match (vms.pop(), vms.is_empty()) {
        (Some(vm), true) => Ok(vm),
        (last, _) => {
            let uids: Vec<_> = vms.iter().chain(&last).map(|(uid, _)| uid.to_string()).collect();
            bail!("several users (uids {}) have a VM named {id:?}; ask as the one meant", uids.join(", "))
        }
    }
}

/// The `(uid, id)` of every running VM, from the names of the control sockets.
fn names() -> io::Result<Vec<(u32, String)>> {
    let text = std::fs::read_to_string("/proc/net/unix")?;
    let mut names: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(PREFIX))
        .filter_map(|name| name.split_once('/'))
        .filter_map(|(uid, id)| Some((uid.parse().ok()?, id.to_owned())))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Asks one VM; one that has just ended is no error.
fn vm(uid: u32, id: &str) -> Option<Vm> {
    let Ok(Answer::Status(report)) = ask(uid, id, What::Status) else { return None };
    Some(Vm {
        id: report.id.clone(),
        uid,
        paused: report.status.paused,
        vcpu_exits: report.status.vcpu_exits.clone(),
        processes: rows(&report),
    })
}

fn rows(report: &Report) -> Vec<Row> {
    let own = |process: &str, pid: i32| Row {
        process: process.into(),
        pid,
        state: "running",
        did: None,
        facts: Facts::of(pid),
    };
    let mut rows =
        vec![own("front", i32::try_from(report.front).unwrap_or(0)), own("supervisor", report.supervisor)];
    let spawner = report.status.spawner;
    if report.init != spawner {
        rows.push(own("init", report.init));
    }
    let state = if report.status.spawner_lost { "gone" } else { "running" };
    rows.push(Row { state, ..own("spawner", spawner) });
    let names = report.status.device_names();
    rows.extend(report.status.devices.iter().zip(names).map(|(device, process)| Row {
        process,
        pid: device.pid,
        state: device.state.name(),
        did: Some(Did::new(device)),
        facts: Facts::of(device.pid),
    }));
    rows
}

fn table(vms: &[Vm]) -> String {
    let mut text = String::new();
    if vms.is_empty() {
        text.push_str("no VM runs here for this user\n");
    }
    for vm in vms {
        let exits: u64 = vm.vcpu_exits.iter().sum();
        let paused = if vm.paused { ", paused" } else { "" };
        let cpus = vm.vcpu_exits.len();
        let _ = writeln!(text, "VM {} (uid {}): {cpus} vCPU, {exits} exits{paused}", vm.id, vm.uid);
        let _ = writeln!(
            text,
            "  {:<12} {:>8} {:>10} {:<9} {:>8} {:>9} {:>8} {:>7} {:>7} {:>9} {:>9}  LAYERS",
            "PROCESS", "PID", "UID", "STATE", "EXITS", "REQUESTS", "IRQS", "IN", "OUT", "CPU", "MEMORY"
        );
        for row in &vm.processes {
            let did = |of: fn(&Did) -> String| row.did.as_ref().map_or(String::from("-"), of);
            let uid = row.facts.uid.map_or(String::from("-"), |uid| uid.to_string());
            let memory = row.facts.memory_kib.map_or(String::from("-"), |kib| format!("{kib} KiB"));
            let cpu = row.facts.cpu_ms.map_or(String::from("-"), |ms| format!("{ms} ms"));
            let _ = writeln!(
                text,
                "  {:<12} {:>8} {uid:>10} {:<9} {:>8} {:>9} {:>8} {:>7} {:>7} {cpu:>9} {memory:>9}  {}",
                row.process,
                row.pid,
                row.state,
                did(|did| did.exits.to_string()),
                did(|did| did.requests.to_string()),
                did(|did| did.interrupts.to_string()),
                did(|did| size(did.bytes_to_guest)),
                did(|did| size(did.bytes_from_guest)),
                row.facts.layers.join(" ")
            );
        }
        vm.processes.iter().filter_map(remark).for_each(|remark| {
            let _ = writeln!(text, "  {remark}");
        });
    }
    text
}

/// What else is to be said of a row.
fn remark(row: &Row) -> Option<String> {
    let did = row.did.as_ref()?;
    let dropped =
        (did.dropped_bytes > 0).then(|| format!("{} of it did not reach the host", size(did.dropped_bytes)));
    let replaced = (did.restarts > 0).then(|| {
        let why: Vec<_> =
            did.reasons.iter().map(|(reason, count)| format!("{count} × {}", reason.name())).collect();
        let pause = did.last_pause.map_or(0.0, |pause| pause.length().as_secs_f64() * 1e3);
        format!("replaced {} times ({}), last pause {pause:.1} ms, counts anew", did.restarts, why.join(", "))
    });
    let failed = (did.failed_requests > 0).then(|| format!("{} requests failed", did.failed_requests));
    let limited = (did.limited > 0).then(|| format!("its limits made the guest wait {} times", did.limited));
    let remarks: Vec<_> = [dropped, failed, limited, replaced].into_iter().flatten().collect();
    (!remarks.is_empty()).then(|| format!("{}: {}", row.process, remarks.join("; ")))
}

/// Bytes in at most four digits, rounded down: `999`, `1.0K`, `12.3M`, `999G`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    let mut shown = bytes.to_string();
    let mut tenths = bytes.saturating_mul(10);
    for unit in UNITS {
        if tenths < 10_000 {
            break;
        }
        tenths /= 1024;
        shown = if tenths < 1000 {
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        } else {
            format!("{}{unit}", tenths / 10)
        };
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, shown) in [
            (0, "0"),
            (999, "999"),
            (1000, "0.9K"),
            (1024, "1.0K"),
            (102_400, "100K"),
            (1 << 20, "1.0M"),
            (99 << 20 | 1 << 19, "99.5M"),
            (3 << 40, "3.0T"),
        ] {
            assert_eq!(size(bytes), shown, "{bytes}");
        }
        assert!(size(u64::MAX).len() <= 6);
    }
}
