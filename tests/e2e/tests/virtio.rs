//! Virtio devices, as Debian's own drivers use them (in the emulated host), and what is refused before a guest runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cellblock_e2e::files::{content, sha256};
use cellblock_e2e::lab::Plan;
use cellblock_e2e::{Ended, Lab, places, skip};
use rustix::process::{Pid, Signal, kill_process};

const UP: &str = "CELLBLOCK-GUEST-UP";
const MIB: usize = 1 << 20;

/// Runs `plan` to its end; `again` prepares what a broken first run may have spoiled. The emulator now and then corrupts a
/// guest: such a run is repeated once, and says so.
fn run(plan: &Plan<'_>, again: impl FnOnce()) -> Ended {
    let first = plan.start().wait();
    match first {
        Ok(ended) if !(places::in_emulated_host() && ended.code() != 0 && !ended.output.contains(UP)) => {
            ended
        }
        broken => {
            eprintln!("RETRY: the first run broke: {broken:?}");
            again();
            plan.start().wait().unwrap()
        }
    }
}

fn disk(image: &Path, options: &str) -> [String; 2] {
    ["--disk".to_owned(), format!("path={}{options}", image.display())]
}

#[test]
fn linux_reads_and_writes_a_disk() {
    let Some(lab) = Lab::with_images("disk") else { return };
    let image = lab.image("disk.img", &content(16 * MIB));
    let before = sha256(&image);
    let plan = lab
        .linux("vmlinux", "load,disk,rng,interrupts,reboot")
        .with(disk(&image, ",id=first.disk"))
        .with(["--rng"]);
    let ended = run(&plan, || drop(lab.image("disk.img", &content(16 * MIB))));
    ended.assert(0, "guest rebooted");
    for line in ["DISK buffered", "DISK direct", "DISK same", "DISK discarded"] {
        assert!(ended.output.contains(&format!("CELLBLOCK-{line}")), "no {line}: {ended}");
    }
    assert_eq!(ended.told("before"), before, "{ended}");
    assert_eq!(ended.told("after"), sha256(&image), "{ended}");
    assert_ne!(ended.told("after"), before, "{ended}");
    assert_eq!(ended.told("size"), (16 * MIB / 512).to_string());
    assert_eq!((ended.told("id"), ended.told("ro"), ended.told("queues")), ("first.disk", "0", "1"));
    assert!(ended.output.contains("cache='write back'"), "{ended}");
    assert_eq!(ended.told("discard"), (1u64 << 30).to_string());
    assert!(ended.told("current").starts_with("virtio_rng"), "{ended}");
    assert_eq!(ended.told("bytes"), "1024", "{ended}");
    assert!(ended.told("distinct").parse::<u32>().unwrap() > 200, "{ended}");
    for device in ["virtio0", "virtio1"] {
        let line = ended.output.lines().find(|line| line.contains(device));
        let line = line.unwrap_or_else(|| panic!("no interrupts of {device}: {ended}"));
        assert!(line.contains("edge"), "{line}");
        assert_ne!(line.split_whitespace().nth(1), Some("0"), "{line}");
    }
}

#[test]
fn two_processors_write_through_two_queues() {
    let Some(lab) = Lab::with_images("queues") else { return };
    let image = lab.image("disk.img", &content(4 * MIB));
    let plan = lab
        .linux("vmlinux", "load,queues,reboot")
        .with(disk(&image, ",queues=2,cache=unsafe"))
        .with(["--cpus", "2"]);
    let ended = run(&plan, || ());
    ended.assert(0, "guest rebooted");
    assert_eq!(ended.told("queues"), "2");
    for cpu in ["cpu0", "cpu1"] {
        assert!(ended.output.contains(&format!("CELLBLOCK-DISK {cpu}")), "{ended}");
    }
    assert_eq!(ended.told("after"), sha256(&image), "{ended}");
}

/// Killed while the guest reads and writes: requests in flight are finished by the successor, and the guest notices nothing.
#[test]
fn a_disk_whose_worker_is_killed_loses_nothing() {
    let Some(lab) = Lab::with_images("killed-disk") else { return };
    let image = lab.image("disk.img", &content(32 * MIB));
    let plan = lab.linux("vmlinux", "load,disk,disk,reboot").with(disk(&image, ",queues=2"));
    let mut vm = plan.start();
    vm.expect("CELLBLOCK-DISK size").unwrap();
    for generation in 2..5 {
        // Somewhere in the midst of it; where exactly decides nothing.
        std::thread::sleep(Duration::from_millis(150));
        let worker = vm.processes(plan.id()).unwrap().pid("block").unwrap();
        kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
        vm.expect_message(&format!("device block: its successor serves (generation {generation}")).unwrap();
    }
    let ended = vm.wait().unwrap();
    ended.assert(0, "guest rebooted");
    for line in ["DISK buffered", "DISK direct", "DISK same", "DISK discarded"] {
        assert_eq!(ended.output.matches(&format!("CELLBLOCK-{line}")).count(), 2, "{line}: {ended}");
    }
    let after = ended.output.lines().rev().find_map(|line| line.trim().strip_prefix("CELLBLOCK-DISK after="));
    assert_eq!(after, Some(&*sha256(&image)), "{ended}");
}

#[test]
fn linux_cannot_write_a_read_only_disk_and_finds_its_queues() {
    let Some(lab) = Lab::with_images("read-only") else { return };
    let image = lab.image("disk.img", &content(2 * MIB));
    let before = sha256(&image);
    let plan = lab
        .linux("vmlinux", "load,disk,reboot")
        .with(disk(&image, ",readonly,queues=2"))
        .with(["--cpus", "2"]);
    let ended = run(&plan, || ());
    ended.assert(0, "guest rebooted");
    assert_eq!((ended.told("ro"), ended.told("queues")), ("1", "2"), "{ended}");
    assert_eq!(ended.told("before"), before, "{ended}");
    assert_eq!(ended.told("after"), before, "{ended}");
    for line in ["DISK buffered", "DISK direct", "DISK discarded"] {
        assert!(!ended.output.contains(&format!("CELLBLOCK-{line}")), "{line}: {ended}");
    }
    assert_eq!(sha256(&image), before);
}

/// `qemu-img` with `arguments`, in the lab's folder: what it says. `None`, and a line, where it is missing.
fn qemu_img(lab: &Lab, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").args(arguments).current_dir(lab.folder()).output() else {
        skip("qemu-img is missing (package qemu-utils)");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {} {said}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A qcow2 image on a raw base; its options for `--disk`.
fn qcow2_on_a_base(lab: &Lab, bytes: usize) -> Option<(PathBuf, PathBuf, String)> {
    let base = lab.image("base.raw", &content(bytes));
    let image = lab.image("disk.qcow2", &[]);
    qemu_img(lab, &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "disk.qcow2"])?;
    let options = format!(",format=qcow2,backing={}", base.display());
    Some((image, base, options))
}

#[test]
fn linux_uses_a_qcow2_image_and_qemu_understands_it() {
    let Some(lab) = Lab::with_images("qcow2") else { return };
    let Some((image, base, options)) = qcow2_on_a_base(&lab, 16 * MIB) else { return };
    let before = sha256(&base);
    let plan = lab.linux("vmlinux", "load,disk,reboot").with(disk(&image, &options));
    let ended = run(&plan, || drop(qcow2_on_a_base(&lab, 16 * MIB)));
    ended.assert(0, "guest rebooted");
    for line in ["DISK buffered", "DISK direct", "DISK same", "DISK discarded"] {
        assert!(ended.output.contains(&format!("CELLBLOCK-{line}")), "no {line}: {ended}");
    }
    assert_eq!((ended.told("before"), ended.told("size")), (&*before, "32768"), "{ended}");
    assert_eq!(sha256(&base), before, "the base is never written");
    // Exits with an error if it finds one.
    qemu_img(&lab, &["check", "-q", "disk.qcow2"]);
    qemu_img(&lab, &["convert", "-O", "raw", "disk.qcow2", "whole.raw"]);
    let after = ended.told("after").to_owned();
    assert_eq!(sha256(&lab.folder().join("whole.raw")), after, "{ended}");
    assert_ne!(after, before);
    // Read only, and by a second VM.
    let again =
        lab.linux("vmlinux", "load,readdisk,reboot").with(disk(&image, &format!("{options},readonly")));
    let ended = run(&again, || ());
    assert_eq!((ended.told("before"), ended.told("ro")), (&*after, "1"), "{ended}");
}

#[test]
fn what_a_qcow2_image_is_based_on_must_be_said() {
    let Some(lab) = Lab::with_guests("backing") else { return };
    let Some((image, base, options)) = qcow2_on_a_base(&lab, MIB) else { return };
    let end = |image: &Path, options: &str| {
        lab.guest("poweroff").with(disk(image, options)).start().wait().unwrap()
    };
    // By the worker, which reads the image, while the guest waits.
    let refused = |image: &Path, options: &str, why: &str| {
        lab.guest("hello").with(disk(image, options)).start().wait().unwrap().assert(6, why);
    };
    end(&image, &options).assert(0, "guest powered off");
    refused(&image, ",format=qcow2", "names in images are never followed");
    end(&base, ",format=qcow2").assert(3, "is no qcow2 image");
    let more = format!("{options},backing={}", base.display());
    refused(&image, &more, "2 backing files are given, but layer 1");
    // Nobody may write what another is based on.
    let first = lab.guest("hello").with(disk(&image, &options));
    let vm = first.start();
    vm.expect_any().unwrap();
    end(&base, "").assert(3, "is in use");
    end(&base, ",readonly").assert(0, "guest powered off");
    drop(vm);
}

#[test]
fn two_vms_cannot_share_a_writable_image() {
    let Some(lab) = Lab::with_guests("sharing") else { return };
    let image = lab.image("disk.img", &[0; 4096]);
    let first = lab.guest("hello").with(disk(&image, ""));
    let vm = first.start();
    vm.expect_any().unwrap();
    for options in ["", ",readonly"] {
        let second = lab.guest("poweroff").with(disk(&image, options));
        second.start().wait().unwrap().assert(3, "is in use");
    }
    drop(vm);
    lab.guest("poweroff").with(disk(&image, "")).start().wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn two_vms_share_a_read_only_image() {
    let Some(lab) = Lab::with_guests("readers") else { return };
    let image = lab.image("disk.img", &[0; 4096]);
    let first = lab.guest("hello").with(disk(&image, ",readonly"));
    let vm = first.start();
    vm.expect_any().unwrap();
    let second = lab.guest("poweroff").with(disk(&image, ",readonly"));
    second.start().wait().unwrap().assert(0, "guest powered off");
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(lab) = Lab::with_guests("slots") else { return };
    let odd = lab.image("odd.img", &[0; 700]);
    lab.guest("poweroff").with(disk(&odd, "")).start().wait().unwrap().assert(3, "has 700 bytes");
    let gone = lab.folder().join("gone.img");
    lab.guest("poweroff").with(disk(&gone, "")).start().wait().unwrap().assert(3, "cannot be opened");
    let image = lab.image("disk.img", &[0; 4096]);
    let full: Vec<_> = (0..17).flat_map(|_| disk(&image, ",readonly")).collect();
    lab.guest("poweroff").with(full.clone()).start().wait().unwrap().assert(0, "guest powered off");
    let over = lab.guest("poweroff").with(full).with(["--rng"]);
    over.start().wait().unwrap().assert(3, "17 virtio slots");
}

/// A qcow2 image of version 2 that is its header and nothing else: no cluster is counted as anybody's, the header's neither.
fn headless() -> Vec<u8> {
    let words: [&[u8]; 8] = [
        b"QFI\xfb\0\0\0\x02",
        &[0; 12],
        &16u32.to_be_bytes(),
        &(1u64 << 20).to_be_bytes(),
        &[0; 4],
        &1u32.to_be_bytes(),
        // First and second table: L1, reference counts.
        &(3u64 << 16).to_be_bytes(),
        &(1u64 << 16).to_be_bytes(),
    ];
    let mut image = words.concat();
    image.extend(1u32.to_be_bytes());
    image.resize(128, 0);
    image
}

/// To write to such an image cost its workers their lives by SIGSEGV, one after the other.
#[test]
fn an_image_that_counts_nobody_is_read_and_not_written() {
    let Some(lab) = Lab::with_guests("headless") else { return };
    let image = lab.image("disk.qcow2", &headless());
    let guest = |options| lab.guest("poweroff").with(disk(&image, options)).start().wait().unwrap();
    guest(",format=qcow2").assert(6, "its header is nobody's");
    guest(",format=qcow2,readonly").assert(0, "guest powered off");
    assert_eq!(std::fs::read(&image).unwrap(), headless());
}
