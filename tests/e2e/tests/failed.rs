//! A device whose workers die too often fails alone, and comes back; what a worker leaves behind is a stranger's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::{Process, descendants};
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm, skip};
use rustix::process::{Pid, Signal, kill_process};

const SECTORS: u64 = 64;

fn kill(pid: i32) {
    // Another may have been quicker.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// A disk's image in QEMU's format, as QEMU makes it: without that no worker can start on it.
struct Qcow2(PathBuf);

impl Qcow2 {
    /// `None`, and a line that says why, where it cannot be made.
    fn create(lab: &Lab, bytes: u64) -> Option<Self> {
        let path = lab.image("second.qcow2", &[]);
        let size = bytes.to_string();
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(size).status();
        match made {
            Ok(status) if status.success() => Some(Qcow2(path)),
            other => {
                skip(&format!("qemu-img (package qemu-utils) makes no image: {other:?}"));
                None
            }
        }
    }

    /// From now on no worker starts on it, or does again.
    fn spoil(&self, spoilt: bool) {
        let magic: &[u8; 4] = if spoilt { b"none" } else { b"QFI\xfb" };
        File::options().write(true).open(&self.0).unwrap().write_all_at(magic, 0).unwrap();
    }
}

/// `cellblock COMMAND ID DEVICE`.
fn cellblock(lab: &Lab, command: &str, plan: &Plan<'_>, device: &str) -> Output {
    Command::new(lab.places().program()).args([command, plan.id(), device]).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{output:?}");
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn state(vm: &Vm, plan: &Plan<'_>, device: &str) -> String {
    let tree = vm.processes(plan.id()).unwrap();
    tree.processes.iter().find(|row| row.process == device).unwrap().state.clone()
}

/// What the guest says to a command.
fn answer(vm: &mut Vm, command: &str) -> String {
    vm.type_in(command).unwrap();
    vm.expect_line(if command == "c" { "clock " } else { "disk " }).unwrap()
}

/// The guest that drives two disks, with the first one in `first`.
fn two_disks<'a>(lab: &'a Lab, second: &str) -> Plan<'a> {
    let first = lab.image("first.img", &[7; SECTORS as usize * 512]);
    lab.guest("disks").with([format!("--disk=path={}", first.display()), format!("--disk={second}")])
}

#[test]
fn a_disk_that_has_failed_says_so_at_once_and_comes_back() {
    let Some(lab) = Lab::with_guests("failed-disk") else { return };
    let Some(image) = Qcow2::create(&lab, SECTORS * 512) else { return };
    for spares in ["0", "1"] {
        let second = format!("path={},format=qcow2", image.0.display());
        let plan = two_disks(&lab, &second).with(["--spares", spares]);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        assert_eq!(answer(&mut vm, "0r"), "number=0 device=15 status=0 first=7");
        let before = answer(&mut vm, "1r");
        assert!(before.contains("device=15 status=0"), "{before}");
        refused(&cellblock(&lab, "revive", &plan, "block-2"), "has not failed, it is serving");

        image.spoil(true);
        kill(vm.processes(plan.id()).unwrap().pid("block-2").unwrap());
        vm.expect_message("Not a qcow2 file; 5 of its workers ended").unwrap();
        for command in ["1r", "1w", "1r"] {
            let said = answer(&mut vm, command);
            assert!(said.contains("device=15 status=1"), "VIRTIO_BLK_S_IOERR: {said}");
        }
        // Everything else is as it was.
        assert_eq!(answer(&mut vm, "0r"), "number=0 device=15 status=0 first=7");
        assert_eq!(answer(&mut vm, "c"), "century=32");
        assert_eq!(state(&vm, &plan, "block-2"), "failed");
        // A driver that begins anew finds a disk that fails.
        assert!(answer(&mut vm, "1b").contains("device=15"));
        assert!(answer(&mut vm, "1r").contains("device=15 status=1"));

        refused(&cellblock(&lab, "restart", &plan, "block-2"), "cellblock revive");
        refused(&cellblock(&lab, "revive", &plan, "block-2"), "has failed (again)");
        assert!(answer(&mut vm, "1r").contains("device=15 status=1"));

        image.spoil(false);
        done(&cellblock(&lab, "revive", &plan, "block-2"));
        assert_eq!(state(&vm, &plan, "block-2"), "serving");
        let written = answer(&mut vm, "1w");
        assert!(written.contains("device=15 status=0"), "{written}");
        assert_eq!(answer(&mut vm, "1r"), written, "what was written is read");
        vm.type_in("q").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

/// The processes of the VM whose name is `name`: the worker, or what stands in its place. Quick, where the kernel lists children.
fn named(spawner: i32, name: &str) -> Vec<i32> {
    let is = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).next() == Some(name.as_bytes())
    };
    let children = match fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")) {
        Ok(list) => list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => descendants(spawner).unwrap_or_default(),
    };
    children.into_iter().filter(is).collect()
}

/// Kills whoever answers for `name` as soon as it is there, until the program says `message`. Whoever has served for a while has
/// made progress, so how many die depends on the machine, and nothing else does.
fn hunt(vm: &Vm, spawner: i32, name: &str, message: &str) {
    let end = Instant::now() + 6 * patience();
    while !vm.messages().contains(message) {
        assert!(Instant::now() < end, "{}", vm.messages());
        named(spawner, name).into_iter().for_each(kill);
        thread::sleep(Duration::from_micros(500));
    }
}

#[test]
fn a_port_whose_device_has_failed_floats_high() {
    let Some(lab) = Lab::with_guests("failed-clock") else { return };
    for user in lab.users() {
        let second = lab.image("second.img", &[0; SECTORS as usize * 512]);
        let plan = two_disks(&lab, &format!("path={}", second.display())).as_user(&user);
        let mut vm = plan.start();
        vm.expect("ready").unwrap();
        assert_eq!(answer(&mut vm, "c"), "century=32");
        let spawner = vm.processes(plan.id()).unwrap().pid("spawner").unwrap();
        hunt(&vm, spawner, "rtc", "device rtc: its worker process was killed by signal 9; 5 of its workers");
        assert_eq!(answer(&mut vm, "c"), "century=255");
        assert_eq!(state(&vm, &plan, "rtc"), "failed");
        let tombstone = Process(vm.processes(plan.id()).unwrap().pid("rtc").unwrap());
        assert_eq!(
            (tombstone.status("Seccomp").unwrap(), tombstone.status("NoNewPrivs").unwrap()),
            ("2".into(), "1".into())
        );
        // And if not even a tombstone lives.
        hunt(&vm, spawner, "rtc", "nobody answers in its place");
        for _ in 0..3 {
            assert_eq!(answer(&mut vm, "c"), "century=255");
        }
        assert_eq!(
            (state(&vm, &plan, "rtc"), answer(&mut vm, "0r")),
            ("failed".into(), "number=0 device=15 status=0 first=7".into())
        );
        done(&Command::new(lab.places().program()).args(["pause", plan.id()]).output().unwrap());
        done(&Command::new(lab.places().program()).args(["resume", plan.id()]).output().unwrap());
        done(&user.command(&lab.places().program()).args(["revive", plan.id(), "rtc"]).output().unwrap());
        assert_eq!(answer(&mut vm, "c"), "century=32");
        assert_eq!(state(&vm, &plan, "rtc"), "serving");
        vm.type_in("q").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

/// The state pages of the workers that are called `name`, by the order in which the supervisor made them.
fn state_pages(supervisor: i32, name: &str) -> Vec<File> {
    let folder = format!("/proc/{supervisor}/fd");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        if !link.starts_with(Path::new("/")) || !link.to_string_lossy().contains(&format!("memfd:{name} ")) {
            continue;
        }
        let Ok(file) = File::options().read(true).write(true).open(entry.path()) else { continue };
        let mut magic = [0; 8];
        if file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"CellSta1" {
            let number: u32 = entry.file_name().to_string_lossy().parse().unwrap();
            found.push((number, file));
        }
    }
    found.sort_unstable_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, file)| file).collect()
}

/// Fills `page` with bytes that look like chance, from `at` on.
fn poison(page: &File, at: u64, seed: &mut u64) -> io::Result<()> {
    let length = page.metadata()?.len() - at;
    let mut next = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed >> 24) as u8
    };
    page.write_all_at(&(0..length).map(|_| next()).collect::<Vec<_>>(), at)
}

#[test]
fn a_poisoned_state_page_costs_a_disk_nothing_and_a_clock_its_registers() {
    let Some(lab) = Lab::with_guests("poison") else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("only root gets at a supervisor's descriptors");
    }
    let second = lab.image("second.img", &[9; SECTORS as usize * 512]);
    let plan = two_disks(&lab, &format!("path={}", second.display()));
    let mut vm = plan.start();
    vm.expect("ready").unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let supervisor = tree.pid("supervisor").unwrap();
    let (disks, clock) = (state_pages(supervisor, "block"), state_pages(supervisor, "rtc"));
    assert_eq!((disks.len(), clock.len()), (2, 1));
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for round in 1..=5 {
        // All of it; from behind the header on.
        for at in [0, 64] {
            poison(&disks[1], at, &mut seed).unwrap();
            poison(&clock[0], at, &mut seed).unwrap();
            let tree = vm.processes(plan.id()).unwrap();
            for name in ["block-2", "rtc"] {
                kill(tree.pid(name).unwrap());
            }
            assert_eq!(answer(&mut vm, "1r"), "number=1 device=15 status=0 first=9", "round {round}");
            assert_eq!(answer(&mut vm, "0r"), "number=0 device=15 status=0 first=7");
            assert_eq!(answer(&mut vm, "c"), "century=32");
            vm.processes(plan.id()).unwrap();
        }
    }
    let messages = vm.messages();
    for (device, goes_on) in [("block-2", "the guest has written them"), ("rtc", "as after power-on")] {
        let told = messages.lines().filter(|line| line.contains(device) && line.contains(goes_on)).count();
        assert!(told >= 5, "{device}: {told}: {messages}");
    }
    assert!(!messages.contains("has failed"), "{messages}");
    vm.type_in("q").unwrap();
    vm.wait().unwrap().assert(0, "guest powered off");
}

/// Has the guest run `command`, and returns what it tells behind `name=`.
fn told(vm: &mut Vm, command: &str, name: &str) -> String {
    vm.type_in(&format!("{command}\n")).unwrap();
    vm.expect_line(&format!("CELLBLOCK-{name}=")).unwrap()
}

#[test]
fn linux_runs_on_when_its_second_disk_a_qcow2_image_has_failed() {
    let Some(lab) = Lab::with_images("failed-linux") else { return };
    let Some(image) = Qcow2::create(&lab, 4 << 20) else { return };
    let tap = |arguments: &[&str]| {
        Command::new(lab.places().program()).arg("tap").args(arguments).output().unwrap()
    };
    done(&tap(&["create", "e2e7", "--user", "nobody", "--address", "192.168.77.1/24"]));
    let first = lab.image("first.img", &[7; 1 << 20]);
    let disks = [
        format!("--disk=path={}", first.display()),
        format!("--disk=path={},format=qcow2", image.0.display()),
    ];
    let plan = lab.linux("vmlinux", "load,commands,reboot").with(disks).with(["--net", "tap=e2e7"]);
    let mut vm = plan.start();
    vm.expect("CELLBLOCK-WAITS").unwrap();
    let up = "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up; \
              ip addr add 192.168.77.2/24 dev eth0; tell UP=1";
    assert_eq!(told(&mut vm, up, "UP"), "1");
    let write = "dd if=/dev/urandom of=/tmp/f bs=64k count=4 2>/dev/null; \
                 dd if=/tmp/f of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null; tell WRITTEN=$?";
    let read = "dd if=/dev/vdb bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/f; tell SAME=$?";
    let ping =
        "ping -c 3 -q 192.168.77.1 >/tmp/ping; tell \"LOST=$(grep -o '[0-9]*% packet loss' /tmp/ping)\"";
    let other = "dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | tr -d '\\007' | wc -c >/tmp/n; tell OTHER=$(cat /tmp/n)";
    assert_eq!((told(&mut vm, write, "WRITTEN"), told(&mut vm, read, "SAME")), ("0".into(), "0".into()));
    // Until the disk says that it cannot: whatever is in flight then ends.
    vm.type_in("{ while dd if=/dev/vdb of=/dev/null bs=64k count=8 iflag=direct 2>/dev/null; do :; done; tell BROKE=1; } &\n").unwrap();

    image.spoil(true);
    kill(vm.processes(plan.id()).unwrap().pid("block-2").unwrap());
    vm.expect_message("Not a qcow2 file; 5 of its workers ended").unwrap();
    assert_eq!(vm.expect_line("CELLBLOCK-BROKE=").unwrap(), "1");
    let fails = "dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; tell ERROR=$?";
    assert_eq!(told(&mut vm, fails, "ERROR"), "1");
    assert_eq!(told(&mut vm, ping, "LOST"), "0% packet loss");
    assert_eq!(told(&mut vm, other, "OTHER"), "0", "the first disk");
    assert_eq!(state(&vm, &plan, "block-2"), "failed");

    image.spoil(false);
    done(&cellblock(&lab, "revive", &plan, "block-2"));
    assert_eq!(told(&mut vm, read, "SAME"), "0", "what was there before");
    assert_eq!((told(&mut vm, write, "WRITTEN"), told(&mut vm, read, "SAME")), ("0".into(), "0".into()));
    assert_eq!(told(&mut vm, ping, "LOST"), "0% packet loss");

    // The network's link goes and comes with its device, and the driver is told of both.
    let spawner = vm.processes(plan.id()).unwrap().pid("spawner").unwrap();
    hunt(&vm, spawner, "net", "until `cellblock revive` brings net back");
    let carrier = |is: u8| {
        format!("until [ $(cat /sys/class/net/eth0/carrier) = {is} ]; do sleep 0.1; done; tell LINK={is}")
    };
    assert_eq!(told(&mut vm, &carrier(0), "LINK"), "0");
    done(&cellblock(&lab, "revive", &plan, "net"));
    assert_eq!(told(&mut vm, &carrier(1), "LINK"), "1");
    assert_eq!(told(&mut vm, ping, "LOST"), "0% packet loss");
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
    done(&tap(&["delete", "e2e7"]));
}
