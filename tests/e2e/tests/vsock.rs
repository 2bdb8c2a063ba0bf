//! Streams between programs of the host and of Debian's guest, by Linux's own vsock driver (in the emulated host), and the
//! device's path.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm, places};
use rustix::process::{Pid, Signal, kill_process};

const MIB: usize = 1 << 20;

fn vsock(path: &Path) -> [String; 2] {
    ["--vsock".to_owned(), format!("cid=3,path={}", path.display())]
}

/// A guest that waits for commands, and its path. The emulator now and then breaks a guest on its way up: that is repeated
/// once, and said.
fn linux(lab: &Lab) -> (Vm, PathBuf) {
    let (vm, path, _) = named_linux(lab);
    (vm, path)
}

/// As [`linux`], with the VM's name.
fn named_linux(lab: &Lab) -> (Vm, PathBuf, String) {
    let path = lab.sockets("sockets").join("v");
    let start = || {
        let plan = lab.linux("vmlinux", "load,commands,reboot").with(vsock(&path));
        let mut vm = plan.start();
        vm.expect("CELLBLOCK-WAITS").map(|()| (vm, plan.id().to_owned()))
    };
    let vm = start().or_else(|error| {
        assert!(places::in_emulated_host(), "{error}");
        eprintln!("RETRY: the guest did not come up: {error}");
        start()
    });
    let (vm, id) = vm.unwrap();
    (vm, path, id)
}

fn quit(mut vm: Vm) {
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
}

/// What scripts/guest/vsock.c sends.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

fn connect(path: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.set_write_timeout(Some(patience())).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    stream
}

/// The first line of the device's answer; empty = it was refused.
fn answer(stream: &mut UnixStream) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    line
}

/// Sends `bytes` and their end, and reads until the guest's.
fn exchange(mut stream: UnixStream, bytes: Vec<u8>) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    got
}

#[test]
fn host_programs_reach_the_guests() {
    let Some(lab) = Lab::with_images("vsock-host") else { return };
    let (mut vm, path) = linux(&lab);
    let mut refused = connect(&path, 4999);
    assert_eq!(answer(&mut refused), "", "nobody listens there");
    vm.type_in("vsock echo 5000 6 &\n").unwrap();
    vm.expect("CELLBLOCK-VSOCK listening").unwrap();
    let mut stream = connect(&path, 5000);
    assert!(answer(&mut stream).starts_with("OK "));
    let bytes = pattern(3 * MIB);
    assert!(exchange(stream, bytes.clone()) == bytes, "not what was sent");
    // Several at once, each with its own bytes; what is sent before the answer arrives, too.
    let at_once: Vec<_> = (0..4)
        .map(|number| {
            let bytes = pattern(MIB / 2)[number..].to_vec();
            let path = path.clone();
            thread::spawn(move || {
                let mut stream = connect(&path, 5000);
                stream.write_all(b"early").unwrap();
                assert!(answer(&mut stream).starts_with("OK "));
                let got = exchange(stream, bytes.clone());
                assert!(got == [b"early", &bytes[..]].concat(), "connection {number}: {} bytes", got.len());
            })
        })
        .collect();
    at_once.into_iter().for_each(|connection| connection.join().unwrap());
    // Nothing sent, nothing got.
    let mut empty = connect(&path, 5000);
    answer(&mut empty);
    assert_eq!(exchange(empty, vec![]), b"");
    vm.expect("CELLBLOCK-VSOCK served=6").unwrap();
    quit(vm);
    assert!(!path.exists());
}

#[test]
fn guest_programs_reach_the_hosts() {
    let Some(lab) = Lab::with_images("vsock-guest") else { return };
    let (mut vm, path) = linux(&lab);
    let listener = |port: u32| UnixListener::bind(format!("{}_{port}", path.display())).unwrap();
    let echo = listener(6000);
    let serving = thread::spawn(move || {
        let echo_one = |mut stream: UnixStream| {
            let (mut chunk, mut total) = (vec![0; 1 << 16], 0);
            loop {
                let count = stream.read(&mut chunk).unwrap();
                if count == 0 {
                    return total;
                }
                stream.write_all(&chunk[..count]).unwrap();
                total += count;
            }
        };
        let connections: Vec<_> = (0..5)
            .map(|_| echo.accept().unwrap().0)
            .map(|stream| thread::spawn(move || echo_one(stream)))
            .collect();
        connections.into_iter().map(|connection| connection.join().unwrap()).sum::<usize>()
    });
    vm.type_in("vsock send 6000 3145728\n").unwrap();
    vm.expect("CELLBLOCK-VSOCK got=3145728 wrong=0 writer=0").unwrap();
    vm.type_in("for n in 1 2 3 4; do vsock send 6000 500000 & done; wait; echo AT-ONCE\n").unwrap();
    for _ in 0..4 {
        vm.expect("CELLBLOCK-VSOCK got=500000 wrong=0 writer=0").unwrap();
    }
    vm.expect("AT-ONCE").unwrap();
    assert_eq!(serving.join().unwrap(), 3 * MIB + 2_000_000);
    // Nobody listens; one that closes at once; a port that nobody could have.
    let hasty = listener(6002);
    vm.type_in("vsock send 6001 10; vsock send 6002 100000000; vsock send 4294967294 1; echo REFUSED\n")
        .unwrap();
    drop(hasty.accept().unwrap());
    vm.expect("CELLBLOCK-VSOCK connect: Connection reset by peer").unwrap();
    vm.expect("CELLBLOCK-VSOCK ").unwrap();
    vm.expect("REFUSED").unwrap();
    assert!(!vm.output().contains("got=100000000"));
    quit(vm);
}

/// A guest program that does not read: its peer is held up, bounded, and nobody else.
#[test]
fn nobody_waits_for_one_that_does_not_read() {
    let Some(lab) = Lab::with_images("vsock-mute") else { return };
    let (mut vm, path) = linux(&lab);
    vm.type_in("vsock mute 5001 1 & vsock echo 5000 1 &\n").unwrap();
    for _ in 0..2 {
        vm.expect("CELLBLOCK-VSOCK listening").unwrap();
    }
    let mut mute = connect(&path, 5001);
    assert!(answer(&mut mute).starts_with("OK "));
    mute.set_write_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let (chunk, mut written) = (pattern(1 << 16), 0);
    let held_up = loop {
        match mute.write(&chunk) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
        assert!(written < 64 * MIB, "what nobody reads is taken without end");
    };
    assert_eq!(held_up.kind(), ErrorKind::WouldBlock);
    let mut stream = connect(&path, 5000);
    assert!(answer(&mut stream).starts_with("OK "));
    let bytes = pattern(MIB / 2);
    assert!(exchange(stream, bytes.clone()) == bytes);
    // Its end stands behind bytes that the guest does not take: it is over when the guest's side is.
    drop(mute);
    vm.type_in("killall vsock; echo KILLED\n").unwrap();
    vm.expect("KILLED").unwrap();
    assert_eq!(answer(&mut connect(&path, 5001)), "");
    quit(vm);
}

/// Streams end with the worker that had them, on both sides; its successor's work at once.
#[test]
fn a_killed_worker_resets_its_streams_and_no_others() {
    let Some(lab) = Lab::with_images("vsock-killed") else { return };
    let (mut vm, path, id) = named_linux(&lab);
    vm.type_in("vsock echo 5000 4 &\n").unwrap();
    vm.expect("CELLBLOCK-VSOCK listening").unwrap();
    for generation in 2..4 {
        let mut stream = connect(&path, 5000);
        assert!(answer(&mut stream).starts_with("OK "));
        stream.write_all(b"there").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        let worker = vm.processes(&id).unwrap().pid("vsock").unwrap();
        kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
        vm.expect_message(&format!("device vsock: its successor serves (generation {generation}")).unwrap();
        assert!(matches!(stream.read(&mut back), Ok(0) | Err(_)), "the host's end is over");
        vm.expect("CELLBLOCK-VSOCK read: Connection reset by peer").unwrap();
        let mut stream = connect(&path, 5000);
        assert!(answer(&mut stream).starts_with("OK "));
        let bytes = pattern(MIB / 4);
        assert!(exchange(stream, bytes.clone()) == bytes, "after generation {generation}");
    }
    vm.expect("CELLBLOCK-VSOCK served=4").unwrap();
    quit(vm);
}

#[test]
fn the_path_is_the_owners_while_the_vm_runs() {
    let Some(lab) = Lab::with_guests("vsock-path") else { return };
    for user in lab.users() {
        let path = lab.sockets("sockets").join("v");
        let first = lab.guest("hello").with(vsock(&path)).as_user(&user);
        let vm = first.start();
        vm.expect_any().unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        let second = lab.guest("poweroff").with(vsock(&path)).as_user(&user);
        second.start().wait().unwrap().assert(3, "is in use by another VM");
        // A guest without a driver: nobody is kept waiting for longer than the device waits itself.
        drop(UnixStream::connect(&path).unwrap());
        // Killed, it leaves its path, which the next one replaces and removes.
        drop(vm);
        assert!(path.exists());
        lab.guest("poweroff")
            .with(vsock(&path))
            .as_user(&user)
            .start()
            .wait()
            .unwrap()
            .assert(0, "guest powered off");
        assert!(!path.exists());
    }
    let file = lab.image("file", b"x");
    lab.guest("poweroff").with(vsock(&file)).start().wait().unwrap().assert(3, "is no socket");
    let long = lab.folder().join("x".repeat(100));
    lab.guest("poweroff").with(vsock(&long)).start().wait().unwrap().assert(3, "too long");
}
