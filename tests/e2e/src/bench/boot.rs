//! From the program's start to its end, when Debian's kernel boots to its initrd and reboots at once.

use anyhow::{Context, Result, ensure};
use cellblock_e2e::{Ended, Places};

use crate::Request;
use crate::exits;
use crate::rival::{Guest, Program};
use crate::sample::{Sample, verdict};

const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet cell.do=reboot";
/// The most that ours may take of the rival's time.
const RATIO: f64 = 1.15;

/// Measures; whether our median is within [`RATIO`] of the rival's, where there is one.
pub(crate) fn run(request: &Request) -> Result<bool> {
    let places = Places::find();
    let images =
        places.images.clone().context("no images here: run by `scripts/bench boot`, in the emulated host")?;
    let (kernel, initrd) = (images.join("vmlinux"), images.join("initrd.cpio"));
    let guest = Guest {
        kernel: &kernel,
        initrd: Some(&initrd),
        cmdline: CMDLINE,
        cpus: request.cpus,
        disk: None,
        tap: None,
        exit_stats: false,
    };
    let mut programs = Vec::new();
    if places.program().exists() {
        programs.push((Program::Cellblock(places), Sample::default()));
    }
    programs.extend(request.firecracker.clone().map(|path| (Program::Firecracker(path), Sample::default())));
    ensure!(!programs.is_empty(), "neither cellblock nor firecracker is here");

    for (program, _) in &programs {
        let guest = Guest { exit_stats: true, ..guest };
        let (count, ended) = exits::count(|| boot(program, &guest))?;
        println!("{:12} exits to userspace: {count}", program.name());
        ended
            .messages
            .lines()
            .skip_while(|line| !line.starts_with("cellblock: exits:"))
            .for_each(|line| println!("{line}"));
    }
    for run in 1..=request.runs.max(5) {
        for (program, sample) in &mut programs {
            let took = boot(program, &guest)?.took;
            println!("run {run} {:12} {:.2} s", program.name(), took.as_secs_f64());
            sample.add(took);
        }
    }
    for (program, sample) in &programs {
        println!("{:12} {sample}", program.name());
    }
    let [(_, ours), (_, theirs)] = &programs[..] else { return Ok(true) };
    let ratio = ours.median().as_secs_f64() / theirs.median().as_secs_f64();
    Ok(verdict("boot to reboot against firecracker", ratio, RATIO, "times"))
}

fn boot(program: &Program, guest: &Guest<'_>) -> Result<Ended> {
    let folder = tempfile::tempdir()?;
    let ended = program.start(guest, "bench-boot", folder.path())?.wait()?;
    ensure!(
        ended.code() == 0 && ended.output.contains("CELLBLOCK-GUEST-UP"),
        "{} did not boot: {ended}",
        program.name()
    );
    Ok(ended)
}
