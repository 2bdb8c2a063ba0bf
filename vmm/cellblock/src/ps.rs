//! `cellblock ps`: the running VMs, or one VM's processes and what each did.

use std::fmt::Write as _;
use std::io;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::cli::PsArgs;
use crate::front::control_socket::{Answer, PREFIX, Report, What, ask};
use crate::process_facts::Facts;

/// One line of the process tree.
#[derive(Debug, Serialize)]
struct Row {
    process: String,
    pid: i32,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exits: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped_bytes: Option<u64>,
    #[serde(flatten)]
    facts: Facts,
}

#[derive(Debug, Serialize)]
struct Vm {
    id: String,
    uid: u32,
    vcpu_exits: Vec<u64>,
    processes: Vec<Row>,
}

/// Prints what `args` ask for.
///
/// # Errors
/// The VM does not exist or does not answer.
pub(crate) fn ps(args: &PsArgs) -> anyhow::Result<()> {
    let wanted = running(args.id.as_deref())?;
    let vms: Vec<Vm> = wanted.into_iter().filter_map(|(owner, id)| vm(owner, &id)).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&vms)?);
    } else {
        print!("{}", table(&vms));
    }
    Ok(())
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
        vcpu_exits: report.status.vcpu_exits.clone(),
        processes: rows(&report),
    })
}

fn rows(report: &Report) -> Vec<Row> {
    let own = |process: &str, pid: i32| Row {
        process: process.into(),
        pid,
        state: "running",
        exits: None,
        dropped_bytes: None,
        facts: Facts::of(pid),
    };
    let mut rows = vec![
        own("front", i32::try_from(report.front).unwrap_or(0)),
        own("supervisor", report.supervisor),
        own("spawner", report.spawner),
    ];
    rows.extend(report.status.devices.iter().map(|device| Row {
        process: device.device.to_string(),
        pid: device.pid,
        state: device.state.name(),
        exits: Some(device.exits),
        dropped_bytes: Some(device.counters.dropped),
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
        let _ = writeln!(text, "VM {} (uid {}): {} vCPU, {exits} exits", vm.id, vm.uid, vm.vcpu_exits.len());
        let _ = writeln!(
            text,
            "  {:<12} {:>8} {:>6} {:<9} {:>8} {:>9}  LAYERS",
            "PROCESS", "PID", "UID", "STATE", "EXITS", "MEMORY"
        );
        for row in &vm.processes {
            let exits = row.exits.map_or(String::from("-"), |exits| exits.to_string());
            let uid = row.facts.uid.map_or(String::from("-"), |uid| uid.to_string());
            let memory = row.facts.memory_kib.map_or(String::from("-"), |kib| format!("{kib} KiB"));
            let layers = row.facts.layers.join(" ");
            let _ = writeln!(
                text,
                "  {:<12} {:>8} {uid:>6} {:<9} {exits:>8} {memory:>9}  {layers}",
                row.process, row.pid, row.state
            );
        }
    }
    text
}
