//! Workers that do not answer: those that hang are replaced, those that the host keeps from running are not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::processes::Process;
use cellblock_e2e::{Lab, skip};
use rustix::process::{Pid, Signal, kill_process, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Stops a worker, whose threads may be on their way out of a read.
fn stop(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let runs = |thread: &i32| !Process(*thread).status("State").is_ok_and(|state| state.starts_with('T'));
    while Process(pid).threads().unwrap().iter().any(runs) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stopped_worker_that_a_vcpu_waits_for_is_replaced() {
    let Some(lab) = Lab::with_guests("stopped") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        for _ in 0..2 {
            stop(vm.processes(plan.id()).unwrap().pid("serial").unwrap());
            vm.type_in("back").unwrap();
            vm.expect_message("it is stopped; it is replaced").unwrap();
            vm.expect_message("device serial: its successor serves").unwrap();
        }
        vm.type_in("again").unwrap();
        vm.expect("again").unwrap();
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn a_stopped_worker_that_nobody_waits_for_is_replaced() {
    let Some(lab) = Lab::with_guests("silent") else { return };
    let plan = lab.guest("echo").with_every_device();
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let workers = lab.places().workers();
    workers.iter().for_each(|name| stop(tree.pid(name).unwrap()));
    for name in &workers {
        vm.expect_message(&format!("device {name}: its successor serves")).unwrap();
        assert!(vm.messages().contains(&format!("device {name}: no sign of life: it is stopped")), "{name}");
    }
    vm.type_in("still there").unwrap();
    vm.expect("still there").unwrap();
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// Keeps a CPU busy, with as much right to it as there is, while it lives.
struct Hog {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Hog {
    fn start(cpus: CpuSet) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let hog = |stop: Arc<AtomicBool>| {
            move || {
                sched_setaffinity(None, &cpus).unwrap();
                setpriority_process(None, -20).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..4).map(|_| thread::spawn(hog(Arc::clone(&stop)))).collect();
        Hog { stop, threads }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_worker_that_gets_no_cpu_is_waited_for() {
    let Some(lab) = Lab::with_guests("starved") else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("taking a CPU from a worker needs root");
    }
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let worker = Pid::from_raw(vm.processes(plan.id()).unwrap().pid("serial").unwrap());
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(worker, &cpus).unwrap();
    setpriority_process(worker, 19).unwrap();
    let hog = Hog::start(cpus);
    let began = Instant::now();
    // Each letter is some accesses; nobody says how long they take.
    for letter in ["a", "b", "c", "d"] {
        vm.type_in(letter).unwrap();
        thread::sleep(Duration::from_millis(1500));
    }
    drop(hog);
    vm.type_in("!").unwrap();
    vm.expect("!").unwrap();
    let told = vm.messages().matches("it waits for a CPU, and is waited for").count();
    println!("{} s of hunger, {told} accesses took more than a second", began.elapsed().as_secs());
    vm.type_in("\u{4}").unwrap();
    let ended = vm.wait().unwrap();
    ended.assert(0, "guest powered off");
    assert!(!ended.messages.contains("it is replaced"), "{ended}");
    assert!(ended.output.contains("abcd!"), "{ended}");
}
