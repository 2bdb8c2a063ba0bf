//! Bare-metal guests (tests/guests): each kind of end, the console, interrupts, the power button.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::processes::Tree;
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Ended, Lab};
use rustix::process::{Pid, Signal, kill_process};

/// Runs a guest that powers off by itself.
fn run_to_power_off(lab: &Lab, guest: &str, arguments: &[&str]) -> Ended {
    let ended = lab.guest(guest).with(arguments.iter().copied()).start().wait().unwrap();
    ended.assert(0, "guest powered off");
    ended
}

#[test]
fn a_guest_says_hello_as_each_user_by_each_boot_protocol() {
    let Some(lab) = Lab::with_guests("hello") else { return };
    for user in lab.users() {
        for guest in ["hello", "hello-pvh"] {
            lab.guest(guest).as_user(&user).start().expect("hello\n").unwrap();
        }
    }
}

#[test]
fn acpi_s5_is_a_power_off_as_each_user() {
    let Some(lab) = Lab::with_guests("poweroff") else { return };
    for user in lab.users() {
        lab.guest("poweroff").as_user(&user).start().wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn each_way_to_reset_is_a_reboot() {
    let Some(lab) = Lab::with_guests("reset") else { return };
    for guest in ["reset-acpi", "reset-i8042"] {
        lab.guest(guest).start().wait().unwrap().assert(0, "guest rebooted");
    }
}

#[test]
fn a_triple_fault_has_its_status() {
    let Some(lab) = Lab::with_guests("triple") else { return };
    lab.guest("triple-fault").start().wait().unwrap().assert(4, "triple-faulted");
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_shown_with_rip_and_bytes() {
    let Some(lab) = Lab::with_guests("bad-insn") else { return };
    let ended = lab.guest("bad-insn").start().wait().unwrap();
    ended.assert(5, "vCPU 0");
    let messages = ended.messages.to_lowercase();
    // popcnt (%rax|%rcx|...), %reg: F3 48 0F B8 /r.
    assert!(messages.contains("rip") && messages.contains("f3 48 0f b8"), "{ended}");
}

#[test]
fn what_is_typed_comes_back() {
    let Some(lab) = Lab::with_guests("echo") else { return };
    let mut vm = lab.guest("echo").start();
    vm.expect("ready").unwrap();
    for word in ["first", "second"] {
        vm.type_in(word).unwrap();
        vm.expect(word).unwrap();
    }
    vm.type_in("\u{4}").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn a_flood_of_output_arrives_whole() {
    let Some(lab) = Lab::with_guests("flood") else { return };
    for way in ["lines=200", "lines=200 string=1"] {
        let ended = run_to_power_off(&lab, "flood", &["--cmdline", way]);
        let numbers: Vec<usize> =
            ended.output.lines().filter_map(|line| line.get(..7)?.parse().ok()).collect();
        assert_eq!(numbers, (1..=200).collect::<Vec<_>>(), "{way}");
    }
}

#[test]
fn every_vcpu_starts() {
    let Some(lab) = Lab::with_guests("smp") else { return };
    for cpus in ["1", "2", "8"] {
        let ended = run_to_power_off(&lab, "smp", &["--cpus", cpus]);
        for cpu in 0..cpus.parse().unwrap() {
            assert!(ended.output.contains(&format!("cpu {cpu:02}\n")), "{ended}");
        }
    }
}

#[test]
fn the_clock_and_the_local_timer_interrupt() {
    let Some(lab) = Lab::with_guests("timers") else { return };
    run_to_power_off(&lab, "rtc", &[]);
    run_to_power_off(&lab, "irq", &["--cmdline", "count=5"]);
}

#[test]
fn the_command_line_reaches_the_guest() {
    let Some(lab) = Lab::with_guests("cmdline") else { return };
    for guest in ["cmdline", "cmdline-pvh"] {
        let ended = run_to_power_off(&lab, guest, &["--cmdline", "the=word another"]);
        assert!(ended.output.contains("the=word another"), "{guest}: {ended}");
    }
}

#[test]
fn sigterm_presses_the_power_button() {
    let Some(lab) = Lab::with_guests("button") else { return };
    for user in lab.users() {
        let mut vm = lab.guest("powerbutton").as_user(&user).start();
        vm.expect("ready").unwrap();
        vm.signal(Signal::TERM).unwrap();
        let ended = vm.wait().unwrap();
        ended.assert(0, "guest powered off");
        assert!(ended.output.contains("button\n"), "{ended}");
    }
}

/// Its worker is dead, and no other has taken its place: the spawner stands still, so that this stays so for a while.
#[test]
fn a_press_while_nobody_can_hear_it_is_not_lost() {
    let Some(lab) = Lab::with_guests("unheard") else { return };
    let plan = lab.guest("powerbutton").with(["--stop-timeout", "60", "-v"]);
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let signal = |name, signal| {
        kill_process(Pid::from_raw(tree.pid(name).unwrap()).unwrap(), signal).unwrap();
    };
    let state = || {
        let tree = Tree::of_vm(&lab.places().program(), plan.id()).unwrap();
        tree.processes.into_iter().find(|row| row.process == "acpi-power").unwrap().state
    };
    signal("spawner", Signal::STOP);
    signal("acpi-power", Signal::KILL);
    let end = Instant::now() + patience();
    while state() != "dying" {
        assert!(Instant::now() < end, "{}", vm.messages());
    }
    vm.signal(Signal::TERM).unwrap();
    vm.expect_message("power button").unwrap();
    assert_eq!(state(), "dying");
    signal("spawner", Signal::CONT);
    let ended = vm.wait().unwrap();
    ended.assert(0, "guest powered off");
    assert!(ended.output.contains("button\n"), "{ended}");
}

#[test]
fn a_guest_that_ignores_the_button_is_ended_after_the_stop_timeout() {
    let Some(lab) = Lab::with_guests("deaf") else { return };
    let vm = lab.guest("hello").with(["--stop-timeout", "1"]).start();
    vm.expect_any().unwrap();
    vm.signal(Signal::TERM).unwrap();
    let ended = vm.wait().unwrap();
    ended.assert(7, "stopped");
    assert!(ended.took >= Duration::from_secs(1), "{ended}");
}

#[test]
fn reboot_can_restart_the_guest_with_new_processes() {
    let Some(lab) = Lab::with_guests("restart") else { return };
    let mut vm = lab.guest("reset-acpi").with(["--on-reboot", "restart"]).start();
    for _ in 0..3 {
        vm.expect("\n").unwrap();
    }
    vm.signal(Signal::INT).unwrap();
    assert_eq!(vm.wait().unwrap().code(), 7);
}

#[test]
fn serial_output_goes_to_a_file_and_stops_at_its_limit() {
    let Some(lab) = Lab::with_guests("file") else { return };
    let path = lab.folder().join("guest.log");
    let sink = format!("file={}", path.display());
    run_to_power_off(&lab, "flood", &["--cmdline", "lines=3", "--serial", &sink]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("0000003 the quick brown fox"), "{text}");

    std::fs::remove_file(&path).unwrap();
    let sink = format!("{sink},limit=4K");
    run_to_power_off(&lab, "flood", &["--cmdline", "lines=100", "--serial", &sink]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn a_null_console_is_silent() {
    let Some(lab) = Lab::with_guests("null") else { return };
    assert_eq!(run_to_power_off(&lab, "flood", &["--cmdline", "lines=3", "--serial", "null"]).output, "");
}

#[test]
fn a_console_socket_carries_both_directions() {
    use std::io::{Read, Write};
    let Some(lab) = Lab::with_guests("socket") else { return };
    let path = lab.folder().join("console");
    let _vm = lab.guest("echo").with(["--serial", &format!("socket={}", path.display())]).start();
    let connect = |_| {
        thread::sleep(Duration::from_millis(10));
        std::os::unix::net::UnixStream::connect(&path).ok()
    };
    let mut stream = (0..500).find_map(connect).expect("the console's socket");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The guest listens once it has set up its interrupt; its `ready` may have been before the connection.
    thread::sleep(Duration::from_millis(200));
    stream.write_all(b"over the socket").unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("over the socket") {
        let mut chunk = [0; 256];
        let count = stream.read(&mut chunk).expect("the guest's echo");
        assert_ne!(count, 0, "the console closed after {heard:?}");
        heard.extend_from_slice(&chunk[..count]);
    }
}

#[test]
fn a_blocked_console_does_not_stall_the_guest() {
    let Some(lab) = Lab::with_guests("blocked") else { return };
    let path = lab.folder().join("console");
    // Nobody ever connects: the guest must get to its end all the same, with more than pipes and buffers hold.
    let sink = format!("socket={}", path.display());
    let plan = lab.guest("flood").with(["--cmdline", "lines=1300 string=1", "--serial", &sink]);
    plan.start().wait_for(Duration::from_secs(60)).unwrap().assert(0, "guest powered off");
}

/// Reads and writes of a device's register that left the guest, as `--exit-stats=json` tells.
fn accesses(ended: &Ended, device: &str, offset: u64) -> Option<(u64, u64)> {
    let line = ended.messages.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{ended}"));
    let told: serde_json::Value = serde_json::from_str(line).unwrap();
    let registers = told["registers"].as_array().unwrap();
    let found = registers.iter().find(|one| one["device"] == device && one["offset"] == offset);
    found.map(|one| (one["reads"].as_u64().unwrap(), one["writes"].as_u64().unwrap()))
}

#[test]
fn what_left_the_guest_is_told_register_by_register() {
    let Some(lab) = Lab::with_guests("exit-stats") else { return };
    let options = ["--serial", "null", "--rng", "--cmdline", "count=50 warm=0"];
    let run = |form| lab.guest("exits").with(options).with([form]).start().wait().unwrap();
    let ended = run("--exit-stats=json");
    ended.assert(0, "guest powered off");
    let of = |device, offset| accesses(&ended, device, offset);
    // Line status, scratch, `QueueSel`, and what powers off.
    assert_eq!([of("serial", 5), of("serial", 7)], [Some((50, 0)), Some((0, 50))], "{ended}");
    assert_eq!([of("entropy", 0x30), of("acpi-power", 0)], [Some((0, 50)), Some((0, 1))], "{ended}");
    let ended = run("--exit-stats");
    ended.assert(0, "0x3fd    0x5       50        0");
}

#[test]
fn a_request_to_a_virtio_device_is_no_exit() {
    let Some(lab) = Lab::with_guests("requests") else { return };
    // The guest acknowledges used buffers alone, as its interrupt says; or also with a change of configuration.
    for causes in [0, 1] {
        let cmdline = format!("rounds=100 causes={causes}");
        let options = ["--rng", "--exit-stats=json", "--cmdline", &cmdline];
        let ended = lab.guest("entropy").with(options).start().wait().unwrap();
        ended.assert(0, "guest powered off");
        assert!(ended.output.contains("rounds=100") && ended.output.contains("wrong=0"), "{ended}");
        // `QueueNotify`, `InterruptStatus`, `InterruptACK`; and the queue's address, once for each beginning.
        let of = |offset| accesses(&ended, "entropy", offset);
        assert_eq!([of(0x50), of(0x60), of(0x80)], [None, None, Some((0, 7))], "{ended}");
        let acknowledged = of(0x64).map_or(0, |(_, writes)| writes);
        // An interrupt that comes after its cause was acknowledged has none to acknowledge.
        let expected = if causes == 0 { 0..=0 } else { 100..=200 };
        assert!(expected.contains(&acknowledged), "{ended}");
    }
}

#[test]
fn a_write_to_nobody_that_every_pc_guest_does_is_no_exit() {
    let Some(lab) = Lab::with_guests("deaf-ports") else { return };
    // The delay port, PCI's address register; and a port of which nobody knows.
    for (port, written) in
        [("0x80", ""), ("0xcf8", ""), ("0x90", "nobody         port         0x90    0x0        0       50")]
    {
        let cmdline = format!("count=50 warm=0 kinds=2 scratch={port}");
        let options = ["--serial", "null", "--exit-stats", "--cmdline", &cmdline];
        let ended = lab.guest("exits").with(options).start().wait().unwrap();
        ended.assert(0, "guest powered off");
        let found = ended.messages.lines().find(|line| line.starts_with("nobody")).unwrap_or_default();
        assert_eq!(
            found.split_whitespace().collect::<Vec<_>>(),
            written.split_whitespace().collect::<Vec<_>>(),
            "{ended}"
        );
    }
}
