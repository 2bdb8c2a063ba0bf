//! Workers that the host keeps from answering are not to blame: they are waited for, and not replaced before they can be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::cage::Cage;
use cellblock_e2e::processes::Tree;
use cellblock_e2e::{Lab, Vm, skip};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Longer than a worker may take that nothing keeps from answering.
const WHILE: Duration = Duration::from_secs(3);

/// Keep a CPU busy, with all the priority that there is, while it lives.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(cage: &Cage, cpu: &CpuSet) -> Hogs {
        let hog = |_| {
            let hog = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
            let pid = Pid::from_child(&hog);
            sched_setaffinity(Some(pid), cpu).unwrap();
            setpriority_process(Some(pid), -20).unwrap();
            cage.take(pid.as_raw_pid()).unwrap();
            hog
        };
        Hogs((0..2).map(hog).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

/// A worker that others leave no CPU to, on a machine that is full, or in a group that may use little of it.
#[test]
fn a_worker_that_gets_no_cpu_is_waited_for() {
    let Some(lab) = Lab::with_guests("starved") else { return };
    let mut cpu = CpuSet::new();
    let ours = sched_getaffinity(None).unwrap();
    cpu.set((0..CpuSet::MAX_CPU).find(|cpu| ours.is_set(*cpu)).unwrap());
    for (name, quota) in [("full", None), ("throttled", Some(Duration::from_millis(1)))] {
        let cage = match Cage::of_cpu(name, quota) {
            Ok(cage) => cage,
            Err(why) => return skip(&format!("no cgroup to starve a worker in: {why:#}")),
        };
        // With that, nobody but this test binds it.
        let plan = lab.guest("echo").with(["--poll-max-us", "0"]);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        let worker = vm.processes(plan.id()).unwrap().pid("serial").unwrap();
        let pid = Pid::from_raw(worker);
        sched_setaffinity(pid, &cpu).unwrap();
        setpriority_process(pid, 19).unwrap();
        let hogs = Hogs::start(&cage, &cpu);
        cage.take(worker).unwrap();
        vm.type_in("abc").unwrap();
        let told = vm.expect_message("it waits for a CPU, and is waited for");
        thread::sleep(WHILE);
        cage.open().unwrap();
        drop(hogs);
        if let Err(error) = told {
            // Then this host let it run, and nothing was tested: that is to be known.
            panic!("{name}: the worker was not starved: {error:#}");
        }
        vm.expect("abc").unwrap();
        vm.type_in("\u{4}").unwrap();
        let ended = vm.wait().unwrap();
        ended.assert(0, "guest powered off");
        assert!(!ended.messages.contains("it is replaced"), "{name}: {ended}");
    }
}

/// The state of the worker of `device`, as `ps` has it at once.
fn state(lab: &Lab, id: &str, device: &str) -> String {
    let tree = Tree::of_vm(&lab.places().program(), id).unwrap();
    tree.processes.into_iter().find(|row| row.process == device).unwrap().state
}

/// Waits until the worker of `device` is used no more, and not gone.
fn wait_until_dying(lab: &Lab, vm: &Vm, id: &str, device: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while state(lab, id, device) != "dying" {
        assert!(Instant::now() < end, "the worker of {device} is still used: {}", vm.messages());
        thread::sleep(Duration::from_millis(50));
    }
}

/// One that the kernel holds has ten seconds. Then it is killed, and its successor starts when it is gone, not before.
#[test]
fn a_worker_that_the_kernel_holds_is_replaced_when_it_can_be() {
    let Some(lab) = Lab::with_guests("frozen") else { return };
    let cage = match Cage::of_ice("frozen") {
        Ok(cage) => cage,
        Err(why) => return skip(&format!("no cgroup to freeze a worker in: {why:#}")),
    };
    let plan = lab.guest("echo").with(["--rng"]);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let worker = vm.processes(plan.id()).unwrap().pid("serial").unwrap();
    cage.take(worker).unwrap();
    cage.freeze(true).unwrap();
    vm.type_in("short").unwrap();
    vm.expect_message("it waits for the kernel, and is waited for").unwrap();
    cage.freeze(false).unwrap();
    vm.expect("short").unwrap();
    assert!(!vm.messages().contains("it is replaced"), "{}", vm.messages());

    cage.freeze(true).unwrap();
    vm.type_in("long").unwrap();
    wait_until_dying(&lab, &vm, plan.id(), "serial");
    // Another device's worker is replaced meanwhile.
    let other = Tree::of_vm(&lab.places().program(), plan.id()).unwrap().pid("entropy").unwrap();
    kill_process(Pid::from_raw(other).unwrap(), Signal::KILL).unwrap();
    vm.expect_message("device entropy: its successor serves").unwrap();
    assert_eq!(state(&lab, plan.id(), "serial"), "dying");
    cage.freeze(false).unwrap();
    vm.expect_message("it waits for the kernel, and nothing can wake it; it is replaced").unwrap();
    vm.expect("long").unwrap();
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// A file system of the test's own, on a file of this folder.
struct Mount(PathBuf);

impl Mount {
    fn make(folder: &Path) -> Result<Mount, String> {
        let (image, place) = (folder.join("fs.img"), folder.join("mount"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            let output = Command::new(program).args(arguments).output();
            match output {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
                Err(error) => Err(format!("{program}: {error}")),
            }
        };
        run("mkfs.ext4", &[Path::new("-q"), &image])?;
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &place])?;
        Ok(Mount(place))
    }

    fn freeze(&self, freeze: bool) -> bool {
        let option = if freeze { "--freeze" } else { "--unfreeze" };
        Command::new("fsfreeze").arg(option).arg(&self.0).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.0)
            .stderr(std::process::Stdio::null())
            .status();
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A disk whose host's file system stands still: the worker's thread for its queue cannot be woken, nor killed.
#[test]
fn a_disk_that_stands_still_goes_on_later() {
    let Some(lab) = Lab::with_guests("still") else { return };
    let mount = match Mount::make(lab.folder()) {
        Ok(mount) => mount,
        Err(why) => return skip(&format!("no file system to freeze: {why}")),
    };
    let image = mount.0.join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("path={},queues=2", image.display());
    let plan = lab.guest("disk").with(["--cmdline", "rounds=300", "--disk", &disk]);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let worker = vm.processes(plan.id()).unwrap().pid("block").unwrap();
    if !mount.freeze(true) {
        return skip("no fsfreeze");
    }
    thread::sleep(WHILE);
    // Its register thread answers: there is nothing wrong with it.
    assert_eq!(state(&lab, plan.id(), "block"), "serving");
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    wait_until_dying(&lab, &vm, plan.id(), "block");
    thread::sleep(WHILE / 3);
    assert_eq!(state(&lab, plan.id(), "block"), "dying");
    assert!(mount.freeze(false));
    vm.expect_message("device block: its successor serves").unwrap();
    let ended = vm.wait_for(Duration::from_secs(60)).unwrap();
    ended.assert(0, "guest powered off");
    assert!(ended.output.contains("rounds=300") && ended.output.contains("wrong=0"), "{ended}");
    assert_eq!(ended.messages.matches("it is replaced").count(), 1, "{ended}");
}

/// A host that has no process to spare now may have one later.
#[test]
fn a_successor_that_cannot_be_started_now_is_started_later() {
    let Some(lab) = Lab::with_guests("later") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        let tree = vm.processes(plan.id()).unwrap();
        let spawner = Pid::from_raw(tree.pid("spawner").unwrap());
        // The limit that can be lowered and raised again is the soft one alone.
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", tree.pid("spawner").unwrap())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max processes")).unwrap();
        let maximum = line.split_whitespace().nth(1).and_then(|hard| hard.parse().ok());
        let before = match prlimit(spawner, Resource::Nproc, Rlimit { current: Some(0), maximum }) {
            Ok(before) => before,
            Err(why) => return skip(&format!("{user:?}: the spawner's limits cannot be changed: {why}")),
        };
        kill_process(Pid::from_raw(tree.pid("serial").unwrap()).unwrap(), Signal::KILL).unwrap();
        vm.expect_message("that is tried again").unwrap();
        vm.type_in("waits").unwrap();
        thread::sleep(Duration::from_millis(500));
        prlimit(spawner, Resource::Nproc, before).unwrap();
        vm.expect_message("device serial: its successor serves").unwrap();
        vm.expect("waits").unwrap();
        vm.type_in("\u{4}").unwrap();
        let ended = vm.wait().unwrap();
        ended.assert(0, "guest powered off");
        assert!(!ended.messages.contains("has failed"), "{ended}");
        assert_eq!(ended.messages.matches("that is tried again").count(), 1, "{ended}");
    }
}
