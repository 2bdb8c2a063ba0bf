//! Bytes between the host and a guest, while the worker between them dies: each arrives at least once, and in order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::time::{Duration, Instant};

use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};

/// Kills the serial port's worker.
fn kill_serial(vm: &Vm, id: &str) {
    let pid = vm.processes(id).unwrap().pid("serial").unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// How many of `sent` came in their order, between others that came twice.
fn arrived(sent: &[u8], got: &[u8]) -> usize {
    got.iter().fold(0, |next, byte| if sent.get(next) == Some(byte) { next + 1 } else { next })
}

#[test]
fn output_of_killed_workers_arrives_whole() {
    let Some(lab) = Lab::with_guests("output") else { return };
    let line =
        |number| format!("{number:07} the quick brown fox jumps over the lazy dog, and again it jumps\n");
    let whole: String = (1..=400).map(line).collect();
    let plan = lab.guest("flood").with(["--cmdline", "lines=400"]);
    let vm = plan.start();
    vm.expect_any().unwrap();
    let mut kills = 0;
    while kills < 10 {
        let before = vm.output().len();
        let end = Instant::now() + patience();
        // It has got further: then its death is no crash loop.
        while vm.output().len() == before {
            assert!(Instant::now() < end, "{kills} kills: {}", vm.messages());
            std::thread::sleep(Duration::from_millis(1));
        }
        if vm.output().len() + 4096 > whole.len() {
            break;
        }
        kill_serial(&vm, plan.id());
        kills += 1;
    }
    let ended = vm.wait_for(6 * patience()).unwrap();
    ended.assert(0, "guest powered off");
    let (sent, got) = (whole.as_bytes(), ended.output.as_bytes());
    eprintln!("{kills} kills: {} bytes, {} of them twice", sent.len(), got.len() - sent.len());
    assert!(kills > 3, "the guest was done after {kills} kills");
    assert_eq!(arrived(sent, got), sent.len(), "{kills} kills");
}

#[test]
fn input_to_killed_workers_arrives_whole() {
    let Some(lab) = Lab::with_guests("input") else { return };
    let plan = lab.guest("echo");
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let mut typed = Vec::new();
    for kill in 0..12u8 {
        let word: Vec<u8> = (0..40).map(|at| b'a' + (kill * 7 + at) % 26).collect();
        vm.type_in(std::str::from_utf8(&word).unwrap()).unwrap();
        typed.extend(word);
        kill_serial(&vm, plan.id());
        // All that was typed comes back, whoever was there to take it. Only then the next one dies: of two that die on the
        // same access the guest is told.
        let end = Instant::now() + patience();
        loop {
            let output = vm.output();
            let (_, echoed) = output.split_once("ready").unwrap();
            let came = arrived(&typed, echoed.as_bytes());
            if came == typed.len() {
                break;
            }
            assert!(Instant::now() < end, "{came} of {}: {output}", typed.len());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}
