//! What the sandbox adds: to a worker's start, as its spawner tells it, and to the start of a VM with nine workers, by leaving
//! layers out.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cellblock_e2e::processes::Tree;
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};

use crate::sample::{Sample, verdict};

const WORKER_MS: f64 = 1.0;
const VM_MS: f64 = 5.0;
/// Those that a VM can be started without.
const LAYERS: [&str; 12] = [
    "user",
    "pid",
    "mount",
    "net",
    "ipc",
    "uts",
    "uid",
    "caps",
    "no-new-privs",
    "landlock",
    "seccomp",
    "rlimits",
];
/// VMs, and restarts of a worker in each, by which a worker's start is measured.
const VMS: usize = 16;
const RESTARTS: u32 = 3;

/// Measures, each way `runs` times in turn; whether both figures keep their limits.
pub(crate) fn run(runs: usize) -> Result<bool> {
    let lab = Lab::with_guests("bench-sandbox").context("no VM can run here")?;
    if !rustix::process::geteuid().is_root() {
        println!("sandbox      SKIP: only root can leave out every layer, to compare with");
        return Ok(true);
    }
    let worker = worker_start(&lab)?;
    println!("sandbox      a worker's way into its jail: {worker}");
    let kept = verdict("sandbox of one worker", ms(&worker), WORKER_MS, "ms");

    let mut ways: Vec<(String, Vec<&str>, Sample)> =
        vec![("every layer".to_owned(), vec![], Sample::default())];
    ways.push(("no layer".to_owned(), LAYERS.to_vec(), Sample::default()));
    ways.extend(LAYERS.map(|layer| (format!("without {layer}"), vec![layer], Sample::default())));
    for _ in 0..runs.max(20) {
        for (_, without, sample) in &mut ways {
            sample.add(first_byte(&lab, without)?);
        }
    }
    let medians: Vec<f64> = ways.iter().map(|(.., sample)| ms(sample)).collect();
    let (Some(all), Some(none)) = (medians.first(), medians.get(1)) else { return Ok(false) };
    for ((name, _, sample), median) in ways.iter().zip(&medians) {
        println!("sandbox      nine workers, {name:21} {sample}, {:+.2} ms", median - all);
    }
    Ok(verdict("sandbox of a VM with nine workers", all - none, VM_MS, "ms") && kept)
}

fn ms(sample: &Sample) -> f64 {
    sample.median().as_secs_f64() * 1e3
}

/// From its start to the guest's first byte, which comes once every virtio device is served.
fn first_byte(lab: &Lab, without: &[&str]) -> Result<Duration> {
    let without = without.iter().flat_map(|layer| ["--without-layer", layer]);
    let nine = ["--rng", "--balloon"];
    let image = lab.image("bench.img", &[0; 4096]);
    let log = lab.image("bench.log", &[]);
    let socket = lab.sockets("sockets").join("vsock");
    let options = [
        ("--disk", format!("path={}", image.display())),
        ("--console", format!("file={}", log.display())),
        ("--vsock", format!("cid=3,path={}", socket.display())),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    let vm = lab.guest("hello").with(nine).with(options).with(without).start();
    let first = vm.expect_any()?;
    ended(vm)?;
    Ok(first)
}

/// The image is free once it has ended.
fn ended(vm: Vm) -> Result<()> {
    vm.signal(Signal::INT)?;
    vm.signal(Signal::INT)?;
    vm.wait().map(drop)
}

/// What the spawner says of the ways into the jail of workers that are killed: of each VM a few, for a device whose workers make no
/// progress has failed soon.
fn worker_start(lab: &Lab) -> Result<Sample> {
    let mut sample = Sample::default();
    for _ in 0..VMS {
        let plan = lab.guest("hello");
        let vm = plan.start();
        vm.expect_any()?;
        for restarts in 1..=RESTARTS {
            let tree = vm.processes(plan.id())?;
            kill_process(Pid::from_raw(tree.pid("rtc")?).context("no rtc")?, Signal::KILL)?;
            let give_up = Instant::now() + Duration::from_secs(10);
            let pause = loop {
                ensure!(Instant::now() < give_up, "the worker is not replaced");
                let tree = Tree::of_vm(&lab.places().program(), plan.id())?;
                let row = tree.processes.iter().find(|row| row.process == "rtc").context("no rtc")?;
                match row.last_pause {
                    Some(pause) if row.restarts == Some(restarts) && row.state == "serving" => break pause,
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            sample.add(Duration::from_micros(pause.sandbox_us));
        }
    }
    Ok(sample)
}
