//! Devices that serve other VMMs: QEMU's guest, emulated, uses our disk, entropy, network and socket devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_e2e::processes::{Process, Tree};
use cellblock_e2e::qemu::{PATIENCE, Qemu};
use cellblock_e2e::{Ended, Lab, User, Vm};
use rustix::process::{Pid, Signal, kill_process};

const MIB: usize = 1 << 20;

/// A back end that listens: `options` say its device.
fn back_end(lab: &Lab, socket: &Path, options: &[&str]) -> (Vm, String) {
    back_end_of(lab, &User::Own, socket, options)
}

fn back_end_of(lab: &Lab, user: &User, socket: &Path, options: &[&str]) -> (Vm, String) {
    let plan = lab.back_end(socket).with(options.iter().copied()).as_user(user);
    let vm = plan.start().patient(PATIENCE);
    vm.expect_message("front ends connect to").unwrap();
    (vm, plan.id().to_owned())
}

/// Its orderly end: no worker was sent away, and nothing is left.
fn ends_well(back_end: Vm, socket: &Path) {
    let ended = back_end.wait().unwrap();
    ended.assert(0, "no longer served");
    assert!(!ended.messages.contains("sent away"), "{ended}");
    assert!(!socket.exists(), "the socket is left");
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// The value of `name=…` in the guest's lines.
fn told<'a>(ended: &'a Ended, name: &str) -> &'a str {
    let words = ended.output.split_whitespace();
    words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next().unwrap_or("nothing")
}

/// Bytes that are nowhere the same.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect()
}

#[test]
fn qemus_guest_uses_our_disk_and_our_entropy() {
    let Some(lab) = Lab::with_program("qemu-disk") else { return };
    let Some(qemu) = Qemu::find(&lab, 1, "disk,rng,reboot") else { return };
    let image = lab.image("disk.img", &content(16 * MIB));
    let before = sha256(&image);
    let (disk, rng) = (lab.folder().join("disk.sock"), lab.folder().join("rng.sock"));
    let path = format!("path={},id=first.disk", image.display());
    let (disk_end, _) = back_end(&lab, &disk, &["--disk", &path, "--once"]);
    let (rng_end, _) = back_end(&lab, &rng, &["--rng", "--once"]);
    let qemu = qemu.with("vhost-user-blk-pci,num-queues=1", &disk).with("vhost-user-rng-pci", &rng);
    let ended = qemu.start().unwrap().wait().unwrap();
    ended.assert(0, "");
    for line in ["DISK buffered", "DISK direct", "DISK same", "DISK discarded"] {
        assert!(ended.output.contains(&format!("CELLBLOCK-{line}")), "no {line}: {ended}");
    }
    assert_eq!(told(&ended, "before"), before, "{ended}");
    assert_eq!(told(&ended, "after"), sha256(&image), "{ended}");
    assert_ne!(told(&ended, "after"), before, "{ended}");
    assert_eq!((told(&ended, "id"), told(&ended, "ro")), ("first.disk", "0"));
    assert!(told(&ended, "current").starts_with("virtio_rng"), "{ended}");
    assert_eq!(told(&ended, "bytes"), "1024", "{ended}");
    assert!(told(&ended, "distinct").parse::<u32>().unwrap() > 200, "{ended}");
    ends_well(disk_end, &disk);
    ends_well(rng_end, &rng);
}

#[test]
fn two_processors_write_through_two_queues_and_front_ends_follow_each_other() {
    let Some(lab) = Lab::with_program("qemu-queues") else { return };
    let Some(first) = Qemu::find(&lab, 2, "queues,reboot") else { return };
    let Some(second) = Qemu::find(&lab, 1, "readdisk,reboot") else { return };
    let image = lab.image("disk.img", &content(4 * MIB));
    let socket = lab.folder().join("disk.sock");
    let path = format!("path={},queues=2,cache=unsafe", image.display());
    let (end, _) = back_end(&lab, &socket, &["--disk", &path]);
    let ended = first.with("vhost-user-blk-pci,num-queues=2", &socket).start().unwrap().wait().unwrap();
    ended.assert(0, "");
    for cpu in ["cpu0", "cpu1"] {
        assert!(ended.output.contains(&format!("CELLBLOCK-DISK {cpu}")), "{ended}");
    }
    assert_eq!(told(&ended, "queues"), "2", "{ended}");
    let written = sha256(&image);
    assert_eq!(told(&ended, "after"), written, "{ended}");
    let ended = second.with("vhost-user-blk-pci,num-queues=1", &socket).start().unwrap().wait().unwrap();
    assert_eq!(told(&ended, "before"), written, "{ended}");
    end.signal(Signal::TERM).unwrap();
    ends_well(end, &socket);
}

#[test]
fn a_worker_that_is_killed_has_a_successor_and_the_guest_goes_on() {
    let Some(lab) = Lab::with_program("qemu-killed") else { return };
    let Some(qemu) = Qemu::find(&lab, 1, "readdisk,commands,disk,reboot") else { return };
    let image = lab.image("disk.img", &content(16 * MIB));
    let socket = lab.folder().join("disk.sock");
    let path = format!("path={}", image.display());
    let (end, id) = back_end(&lab, &socket, &["--disk", &path]);
    let mut guest = qemu.with("vhost-user-blk-pci,num-queues=1", &socket).start().unwrap();
    guest.expect("CELLBLOCK-WAITS").unwrap();
    let worker = end.processes(&id).unwrap().pid("block").unwrap();
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    end.expect_message("sent away: its worker process was killed by signal 9").unwrap();
    guest.type_in("quit\n").unwrap();
    let ended = guest.wait().unwrap();
    assert!(ended.output.contains("CELLBLOCK-DISK same"), "{ended}");
    assert_eq!(told(&ended, "after"), sha256(&image), "{ended}");
    end.signal(Signal::TERM).unwrap();
    end.wait().unwrap().assert(0, "no longer served");
}

/// A front end that connects and says nothing, for as long as the stream lives; its worker serves.
fn silent(end: &Vm, id: &str, socket: &Path) -> (UnixStream, Tree) {
    let stream = UnixStream::connect(socket).unwrap();
    end.expect_message("its worker serves").unwrap();
    (stream, end.processes(id).unwrap())
}

#[test]
fn the_worker_is_in_the_same_jail_as_a_vms() {
    let Some(lab) = Lab::with_program("vhost-user-jail") else { return };
    let image = lab.image("disk.img", &[0; 4096]);
    let path = format!("path={}", image.display());
    for user in lab.users() {
        let folder = lab.sockets(if matches!(user, User::Own) { "own" } else { "ordinary" });
        for (device, name) in [(&["--rng"][..], "entropy"), (&["--disk", &path][..], "block")] {
            let socket = folder.join(name);
            let (end, id) = back_end_of(&lab, &user, &socket, device);
            let (_stream, tree) = silent(&end, &id, &socket);
            let worker = Process(tree.pid(name).unwrap());
            for thread in worker.threads().unwrap() {
                let thread = Process(thread);
                assert_eq!(thread.status("Seccomp").unwrap(), "2", "{name}");
                assert_eq!(thread.status("NoNewPrivs").unwrap(), "1", "{name}");
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(thread.status(set).unwrap(), "0000000000000000", "{set} of {name}");
                }
            }
            assert_eq!(worker.threads().unwrap().len(), 2, "one beside the register thread");
            for kind in ["user", "pid", "mnt", "net", "ipc", "uts"] {
                let (theirs, ours) = (
                    worker.namespace(kind).unwrap(),
                    Process(std::process::id() as i32).namespace(kind).unwrap(),
                );
                assert_ne!(theirs, ours, "{kind} of {name}");
            }
            let supervisor = Process(tree.pid("supervisor").unwrap());
            assert_eq!(supervisor.status("Seccomp").unwrap(), "2");
            end.signal(Signal::TERM).unwrap();
            end.wait().unwrap().assert(0, "no longer served");
        }
    }
}

#[test]
fn a_front_end_that_makes_no_sense_is_sent_away_and_the_next_one_served() {
    let Some(lab) = Lab::with_program("vhost-user-nonsense") else { return };
    let socket = lab.folder().join("rng.sock");
    let (end, id) = back_end(&lab, &socket, &["--rng"]);
    let (mut stream, _) = silent(&end, &id, &socket);
    stream.write_all(&[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap_or_default();
    assert_eq!(rest, b"", "nothing is answered");
    end.expect_message("sent away: it gave up: the front end broke the protocol").unwrap();
    let _second = UnixStream::connect(&socket).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !end.processes(&id).is_ok_and(|tree| tree.serves()) {
        assert!(Instant::now() < deadline, "the next front end is not served");
    }
    end.signal(Signal::TERM).unwrap();
    end.wait().unwrap().assert(0, "no longer served");

    let (once, _) = back_end(&lab, &socket, &["--rng", "--once"]);
    UnixStream::connect(&socket).unwrap().write_all(&[0xff; 64]).unwrap();
    once.wait().unwrap().assert(6, "broke the protocol");
}

#[test]
fn the_socket_is_this_users_alone_and_nobody_elses() {
    let Some(lab) = Lab::with_program("vhost-user-socket") else { return };
    let socket = lab.folder().join("rng.sock");
    let (end, _) = back_end(&lab, &socket, &["--rng"]);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let second = lab.back_end(&socket).with(["--rng"]).start().wait().unwrap();
    second.assert(3, "something is there already");
    // A front that is killed leaves its socket, which the next one replaces.
    end.signal(Signal::KILL).unwrap();
    end.wait().unwrap();
    assert!(socket.exists());
    let (end, _) = back_end(&lab, &socket, &["--rng"]);
    end.signal(Signal::INT).unwrap();
    ends_well(end, &socket);
    lab.back_end(&socket).start().wait().unwrap().assert(2, "--disk");
    let gone = format!("path={}", lab.folder().join("gone.img").display());
    lab.back_end(&socket).with(["--disk", &gone]).start().wait().unwrap().assert(3, "cannot be opened");
    assert!(!socket.exists());
}
