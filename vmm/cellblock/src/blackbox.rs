//! `cellblock blackbox`: how the workers of a device died.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use cellblock_supervisor::death::{Death, Exit};
use cellblock_supervisor::link::Status;

use crate::cli::BlackboxArgs;
use crate::front::control_socket::{Answer, What, ask};
use crate::ps;

/// Incarnations looked at, from the last one back: more than a VM keeps.
const LOOKS: u32 = 16;

/// Prints what `args` ask for, the last death first.
///
/// # Errors
/// The VM or the device does not exist, or the VM does not answer.
pub(crate) fn blackbox(args: &BlackboxArgs) -> anyhow::Result<()> {
    let (uid, id) = ps::one(&args.id)?;
    let asked = |what| match ask(uid, &id, what).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        answer => Ok(answer),
    };
    let Answer::Status(report) = asked(What::Status)? else { bail!("VM {id} answered something else") };
    let (device, generation) = place(&report.status, &args.device)
        .with_context(|| format!("VM {id} has no device {:?}", args.device))?;
    let mut deaths = Vec::new();
    for generation in (1..=generation).rev().take(LOOKS as usize) {
        match asked(What::Death { device, generation })? {
            Answer::Death(death) => deaths.extend(death),
            _ => bail!("VM {id} answered something else"),
        }
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&deaths)?)
    } else if deaths.is_empty() {
        say!("VM {id}: no worker of device {} has died", args.device)
    } else {
        deaths.iter().try_for_each(|death| say!("{}", told(&args.device, death).trim_end()))
    }
}

/// Where device `name` is in the status, and its worker's incarnation.
fn place(status: &Status, name: &str) -> anyhow::Result<(u32, u32)> {
    let names = status.device_names();
    let found = names.iter().position(|known| known == name);
    let found = found.and_then(|place| Some((u32::try_from(place).ok()?, status.devices.get(place)?)));
    let (place, device) = found.with_context(|| format!("it has {}", names.join(", ")))?;
    Ok((place, device.generation))
}

/// A death for people.
fn told(device: &str, death: &Death) -> String {
    let Death { generation, pid, at_ms, reason, cause, ended, served_ms, answered, last_words, exits, log } =
        death;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    line("reason", &format!("{}: {cause}", reason.name()));
    ended.iter().for_each(|ended| line("then", ended));
    last_words.iter().for_each(|fault| line("its own word", &fault.to_string()));
    line("when", &format!("{} (Unix time in ms)", at_ms));
    line("served", &served_ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms")));
    line("exits", &format!("{answered} answered by this device in all"));
    exits.iter().for_each(|exit| line("", &shown(exit)));
    log.iter().for_each(|logged| line("log", logged));
    format!("{device}, generation {generation}, pid {pid}\n{text}")
}

fn shown(exit: &Exit) -> String {
    let Exit { before_us, vcpu, write, size, region, offset, data, answered } = *exit;
    let what = match (write, answered) {
        (true, _) => format!("write {data:#x}"),
        (false, true) => format!("read  {data:#x}"),
        (false, false) => "read".to_owned(),
    };
    let unanswered = if answered { "" } else { ", not answered" };
    format!(
        "-{:.3} ms vCPU {vcpu} region {region} offset {offset:#x} {size} bytes: {what}{unanswered}",
        before_us as f64 / 1e3
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_supervisor::death::{Fault, Reason};

    #[test]
    fn a_death_is_told_with_all_that_is_known() {
        let exit = Exit {
            before_us: 1500,
            vcpu: 1,
            write: true,
            size: 4,
            region: 0,
            offset: 0x50,
            data: 7,
            answered: false,
        };
        let death = Death {
            generation: 2,
            pid: 77,
            at_ms: 1,
            reason: Reason::RefusedCall,
            cause: "its worker process was killed".into(),
            ended: None,
            served_ms: Some(12),
            answered: 34,
            last_words: Some(Fault {
                signal: 31,
                code: 1,
                call: Some(257),
                call_name: Some("openat".into()),
                address: 0,
                instruction: 0x1234,
            }),
            exits: vec![exit],
            log: vec!["a line".into()],
        };
        let text = told("block", &death);
        for part in [
            "block, generation 2, pid 77",
            "refused a system call: its worker process was killed",
            "openat (system call 257), by the instruction at 0x1234 of its binary",
            "served       12 ms",
            "-1.500 ms vCPU 1 region 0 offset 0x50 4 bytes: write 0x7, not answered",
            "log          a line",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
