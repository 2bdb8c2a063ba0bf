//! Devices that serve other VMMs: QEMU's guest, emulated, uses our disk, entropy, network and socket devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_e2e::files::{content, sha256};
use cellblock_e2e::processes::{Process, Tree};
use cellblock_e2e::qemu::{PATIENCE, Qemu};
use cellblock_e2e::{Lab, User, Vm, skip};
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
    assert_eq!(ended.told("before"), before, "{ended}");
    assert_eq!(ended.told("after"), sha256(&image), "{ended}");
    assert_ne!(ended.told("after"), before, "{ended}");
    assert_eq!((ended.told("id"), ended.told("ro")), ("first.disk", "0"));
    assert!(ended.told("current").starts_with("virtio_rng"), "{ended}");
    assert_eq!(ended.told("bytes"), "1024", "{ended}");
    assert!(ended.told("distinct").parse::<u32>().unwrap() > 200, "{ended}");
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
    assert_eq!(ended.told("queues"), "2", "{ended}");
    let written = sha256(&image);
    assert_eq!(ended.told("after"), written, "{ended}");
    let ended = second.with("vhost-user-blk-pci,num-queues=1", &socket).start().unwrap().wait().unwrap();
    assert_eq!(ended.told("before"), written, "{ended}");
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
    assert_eq!(ended.told("after"), sha256(&image), "{ended}");
    end.signal(Signal::TERM).unwrap();
    end.wait().unwrap().assert(0, "no longer served");
}

/// Has the guest run `command`, and returns what it tells behind `start`.
fn asked(guest: &mut Vm, command: &str, start: &str) -> String {
    guest.type_in(&format!("{command}\n")).unwrap();
    guest.expect_line(&format!("CELLBLOCK-{start}=")).unwrap()
}

/// The addresses of this test are its own: it runs once more in a network namespace, where they are.
#[test]
fn qemus_guest_uses_our_network() {
    let tools = Command::new("unshare").args(["-n", "true"]).output();
    if !tools.is_ok_and(|output| output.status.success()) || !Path::new("/dev/net/tun").exists() {
        return skip("taps need root and /dev/net/tun");
    }
    let own = std::env::current_exe().unwrap();
    let mut inner = Command::new("unshare");
    inner.arg("-n").arg(own).args(["--exact", "in_a_network_of_its_own", "--ignored", "--nocapture"]);
    assert!(inner.status().unwrap().success());
}

#[test]
#[ignore = "by qemus_guest_uses_our_network"]
fn in_a_network_of_its_own() {
    const BYTES: usize = 4 * MIB;
    let Some(lab) = Lab::with_program("qemu-net") else { return };
    let Some(qemu) = Qemu::find(&lab, 1, "commands,reboot") else { return };
    let tap = ["tap", "create", "e2e0", "--address", "192.168.70.1/24"];
    let made = Command::new(lab.places().program()).args(tap).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let socket = lab.folder().join("net.sock");
    let (end, _) = back_end(&lab, &socket, &["--net", "tap=e2e0", "--once"]);
    let mut guest = qemu.with_net(&socket).start().unwrap();
    guest.expect("CELLBLOCK-WAITS").unwrap();
    let up = "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up; \
              ip addr add 192.168.70.2/24 dev eth0; ping -c 3 -q 192.168.70.1 >/tmp/ping; \
              tell \"LOST=$(grep -o '[0-9]*% packet loss' /tmp/ping)\"";
    assert_eq!(asked(&mut guest, up, "LOST"), "0% packet loss");

    let listener = TcpListener::bind(("192.168.70.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (out, into) = (lab.folder().join("out"), lab.image("into", &content(BYTES)));
    let send = format!(
        "dd if=/dev/urandom of=/tmp/f bs=64k count=64 2>/dev/null; tell SENT=$(sha256sum /tmp/f | cut -d' ' -f1); \
         nc 192.168.70.1 {port} </tmp/f"
    );
    let sent = asked(&mut guest, &send, "SENT");
    let mut bytes = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
    std::fs::write(&out, bytes).unwrap();
    assert_eq!(sha256(&out), sent, "to the host");
    let give = std::fs::read(&into).unwrap();
    let giver = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&give).unwrap());
    let take =
        format!("nc 192.168.70.1 {port} </dev/null >/tmp/g; tell GOT=$(sha256sum /tmp/g | cut -d' ' -f1)");
    assert_eq!(asked(&mut guest, &take, "GOT"), sha256(&into), "to the guest");
    giver.join().unwrap();
    guest.type_in("quit\n").unwrap();
    guest.wait().unwrap().assert(0, "");
    ends_well(end, &socket);
}

/// What scripts/guest/vsock.c sends.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

#[test]
fn streams_go_both_ways_between_qemus_guest_and_the_host() {
    let Some(lab) = Lab::with_program("qemu-vsock") else { return };
    let Some(qemu) = Qemu::find(&lab, 1, "commands,reboot") else { return };
    let (socket, path) = (lab.folder().join("vsock.sock"), lab.folder().join("v"));
    let device = format!("cid=3,path={}", path.display());
    let (end, _) = back_end(&lab, &socket, &["--vsock", &device, "--once"]);
    let listener = UnixListener::bind(format!("{}_6000", path.display())).unwrap();
    let mut guest = qemu.with("vhost-user-vsock-pci", &socket).start().unwrap();
    guest.expect("CELLBLOCK-WAITS").unwrap();

    guest.type_in("vsock echo 5000 1 &\n").unwrap();
    guest.expect("CELLBLOCK-VSOCK listening").unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "CONNECT 5000").unwrap();
    let (mut line, mut byte) = (String::new(), [0]);
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    assert!(line.starts_with("OK "), "{line}");
    let bytes = pattern(3 * MIB);
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == bytes, "{} of {} bytes came back, or others", got.len(), bytes.len());

    let echo = std::thread::spawn(move || {
        let (mut stream, mut chunk) = (listener.accept().unwrap().0, vec![0; 1 << 16]);
        loop {
            match stream.read(&mut chunk).unwrap() {
                0 => return,
                count => stream.write_all(&chunk[..count]).unwrap(),
            }
        }
    });
    guest.type_in("vsock send 6000 3145728\n").unwrap();
    guest.expect("CELLBLOCK-VSOCK got=3145728 wrong=0").unwrap();
    echo.join().unwrap();
    guest.type_in("quit\n").unwrap();
    guest.wait().unwrap().assert(0, "");
    ends_well(end, &socket);
    assert!(!path.exists());
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
        let vsock = format!("cid=3,path={}", folder.join("v").display());
        let devices = [
            (&["--rng"][..], "entropy"),
            (&["--disk", &path][..], "block"),
            (&["--vsock", &vsock][..], "vsock"),
        ];
        for (device, name) in devices {
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
            // Nothing but what it was granted: no ring, no doorbell, and of files the disk alone.
            let image = image.display().to_string();
            let root = rustix::process::geteuid().is_root();
            if !root {
                skip("only root may look into processes that have made themselves undumpable");
            }
            for file in if root { worker.files().unwrap() } else { Vec::new() } {
                let plain = ["anon_inode:", "socket:"].iter().any(|kind| file.starts_with(kind));
                let memory = file.starts_with(&format!("/memfd:{name} "));
                assert!(plain || memory || (name == "block" && file == image), "{name} holds {file}");
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
    second.assert(3, "is in use by another VM or program");
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
    let pairs = ["--net", "tap=none,queues=2"];
    lab.back_end(&socket).with(pairs).start().wait().unwrap().assert(3, "has one queue pair");
    assert!(!socket.exists());
}
