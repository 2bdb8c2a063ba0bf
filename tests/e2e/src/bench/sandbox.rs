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
const LAYERS: [&str; 13] = [
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
    "speculation",
];
/// Starts with every layer and with none, in turn: the machine varies by more than what is looked for.
const PAIRS: usize = 100;
/// After a VM's end, in which the kernel takes down its namespaces: otherwise that is measured, too.
const PAUSE: Duration = Duration::from_millis(60);
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

    let mut ends = [("every layer", [].as_slice()), ("no layer", &LAYERS)].map(Way::new);
    in_turn(&lab, &mut ends, runs.max(PAIRS))?;
    let [every, none] = ends.each_ref().map(|way| ms(&way.sample));
    for way in &ends {
        println!("sandbox      nine workers, {:21} {}", way.name, way.sample);
    }
    let kept = verdict("sandbox of a VM with nine workers", every - none, VM_MS, "ms") && kept;
    let mut ways = vec![Way::new(("every layer", &[]))];
    ways.extend(LAYERS.iter().map(|layer| Way::new((layer, std::slice::from_ref(layer)))));
    in_turn(&lab, &mut ways, runs.max(20))?;
    let every = ways.first().map_or(0.0, |way| ms(&way.sample));
    for way in ways.iter().skip(1) {
        let saved = every - ms(&way.sample);
        println!("sandbox      of which, by leaving it out: {:13} {saved:+.2} ms (rough)", way.name);
    }
    Ok(kept)
}

/// A VM without some layers.
struct Way<'a> {
    name: &'a str,
    without: &'a [&'a str],
    sample: Sample,
}

impl<'a> Way<'a> {
    fn new((name, without): (&'a str, &'a [&'a str])) -> Self {
        Way { name, without, sample: Sample::default() }
    }
}

/// Starts each of `ways` `runs` times, every other time in the other order: what comes later is warmer.
fn in_turn(lab: &Lab, ways: &mut [Way<'_>], runs: usize) -> Result<()> {
    // An even number of turns leaves them in their order.
    for _ in 0..runs.next_multiple_of(2) {
        for way in &mut *ways {
            way.sample.add(first_byte(lab, way.without)?);
        }
        ways.reverse();
    }
    Ok(())
}

fn ms(sample: &Sample) -> f64 {
    sample.median().as_secs_f64() * 1e3
}

/// From its start to the guest's first byte, which comes once every virtio device is served.
fn first_byte(lab: &Lab, without: &[&str]) -> Result<Duration> {
    let without = without.iter().flat_map(|layer| ["--without-layer", layer]);
    // With the four that every VM has. It does not wait for the guest at its end.
    let nine = ["--rng", "--balloon", "--stop-timeout", "0"];
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
    vm.wait()?;
    std::thread::sleep(PAUSE);
    Ok(())
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
