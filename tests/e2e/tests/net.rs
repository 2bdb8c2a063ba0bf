//! The network device, as Debian's own driver uses it (in the emulated host): over a tap with and without offloads, several queues,
//! and passt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cellblock_e2e::files::{content, sha256};
use cellblock_e2e::lab::Plan;
use cellblock_e2e::tap::Tap;
use cellblock_e2e::{Lab, Vm, places, skip};
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SocketType};

const WAITS: &str = "CELLBLOCK-WAITS";
const BYTES: usize = 4 << 20;

/// Waits until the guest takes commands; the emulator now and then corrupts a guest: then it is started once more.
fn with_commands(plan: &Plan<'_>) -> Vm {
    let mut vm = plan.start();
    if let Err(broken) = vm.expect(WAITS) {
        assert!(places::in_emulated_host(), "{broken:?}");
        eprintln!("RETRY: the first run broke: {broken:?}");
        drop(vm);
        vm = plan.start();
        vm.expect(WAITS).unwrap();
    }
    vm
}

/// Has the guest run `command`, and returns what it tells behind `start`.
fn told(vm: &mut Vm, command: &str, start: &str) -> String {
    vm.type_in(&format!("{command}\n")).unwrap();
    vm.expect_line(&format!("CELLBLOCK-{start}=")).unwrap()
}

/// Listens at `address`, takes one connection, and puts what comes into `file`.
fn take(address: &str, file: &Path) -> (u16, JoinHandle<()>) {
    let (listener, file) = (TcpListener::bind((address, 0)).unwrap(), file.to_owned());
    let port = listener.local_addr().unwrap().port();
    let taker = thread::spawn(move || {
        let mut bytes = vec![];
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        fs::write(file, bytes).unwrap();
    });
    (port, taker)
}

/// Listens at `address`, takes one connection, and gives it `bytes`.
fn give(address: &str, bytes: Vec<u8>) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let giver = thread::spawn(move || listener.accept().unwrap().0.write_all(&bytes).unwrap());
    (port, giver)
}

/// The largest packet that passes the host's interfaces while `during` runs, in bytes without the link's header.
fn largest_packet(during: impl FnOnce()) -> usize {
    let every_protocol = Protocol::from_raw(NonZero::new(u32::from(3u16.to_be())).unwrap());
    let socket = net::socket(AddressFamily::PACKET, SocketType::DGRAM, Some(every_protocol)).unwrap();
    net::sockopt::set_socket_timeout(&socket, net::sockopt::Timeout::Recv, Some(Duration::from_millis(100)))
        .unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut largest = 0;
            while !over.load(Ordering::Acquire) {
                // As long as it was, not as much as there is room for.
                let length =
                    net::recv(&socket, &mut [0u8; 64], RecvFlags::TRUNC).map_or(0, |(_, length)| length);
                largest = largest.max(length);
            }
            largest
        });
        during();
        over.store(true, Ordering::Release);
        listener.join().unwrap()
    })
}

/// 4 MiB each way (the guest writes 64 KiB at a time) between guest and `host`, which listens at `address`, with checksums. The
/// largest packets, out and in.
fn transfer(lab: &Lab, vm: &mut Vm, host: &str, address: &str) -> (usize, usize) {
    let file = lab.folder().join("out");
    let out = largest_packet(|| {
        let (port, taker) = take(address, &file);
        let command = format!(
            "dd if=/dev/urandom of=/tmp/f bs=64k count=64 2>/dev/null; nc {host} {port} -e dd if=/tmp/f bs=64k status=none; \
             tell SENT=$(sha256sum /tmp/f | cut -d' ' -f1)"
        );
        let sent = told(vm, &command, "SENT");
        taker.join().unwrap();
        assert_eq!(sha256(&file), sent, "to the host");
    });
    let into = largest_packet(|| {
        let bytes = content(BYTES);
        fs::write(&file, &bytes).unwrap();
        let (port, giver) = give(address, bytes);
        let command = format!(
            "{HOLD}; nc {host} {port} </tmp/hold >/tmp/g; kill $!; tell GOT=$(sha256sum /tmp/g | cut -d' ' -f1)"
        );
        let got = told(vm, &command, "GOT");
        giver.join().unwrap();
        assert_eq!(got, sha256(&file), "to the guest");
    });
    (out, into)
}

fn quit(mut vm: Vm) {
    vm.type_in("quit\n").unwrap();
    vm.wait().unwrap().assert(0, "guest rebooted");
}

/// An input for the guest's nc that does not end: passt ends connections whose guest has ended its own half.
const HOLD: &str = "rm -f /tmp/hold; mkfifo /tmp/hold; sleep 600 >/tmp/hold & :";
const UP: &str = "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up";

/// Over a tap with what `options` say: what the guest finds, and the largest packets, out and in.
fn over_a_tap(name: &str, options: &str) -> Option<([String; 3], (usize, usize))> {
    let lab = Lab::with_images(name)?;
    let tap = Tap::create(&lab, "e2e0", "192.168.70.1/24")?;
    let plan =
        lab.linux("vmlinux", "load,commands,reboot").with(["--net".to_owned(), format!("tap=e2e0{options}")]);
    let mut vm = with_commands(&plan);
    let command =
        format!("{UP}; ip addr add 192.168.70.2/24 dev eth0; tell MAC=$(cat /sys/class/net/eth0/address)");
    let mac = told(&mut vm, &command, "MAC");
    let mtu = told(&mut vm, "tell MTU=$(cat /sys/class/net/eth0/mtu)", "MTU");
    let carrier = told(&mut vm, "tell CARRIER=$(cat /sys/class/net/eth0/carrier)", "CARRIER");
    let ping =
        "ping -c 3 -q 192.168.70.1 >/tmp/ping; tell \"LOST=$(grep -o '[0-9]*% packet loss' /tmp/ping)\"";
    assert_eq!(told(&mut vm, ping, "LOST"), "0% packet loss");
    assert!(!tap.delete(), "it is in use");
    // Another VM cannot have it beside this one.
    lab.linux("vmlinux", "reboot").with(["--net", "tap=e2e0"]).start().wait().unwrap().assert(3, "is in use");
    let largest = transfer(&lab, &mut vm, "192.168.70.1", "192.168.70.1");
    quit(vm);
    assert!(tap.delete(), "the VM has left it");
    Some(([mac, mtu, carrier], largest))
}

#[test]
fn offloads_carry_large_segments_both_ways() {
    let Some((found, (out, into))) = over_a_tap("offloads", ",mac=02:aa:bb:cc:dd:ee") else { return };
    assert_eq!(found, ["02:aa:bb:cc:dd:ee", "1500", "1"]);
    assert!(out > 1500, "at most {out} bytes went out at once");
    assert!(into > 1500, "at most {into} bytes came in at once");
}

#[test]
fn without_offloads_frames_are_whole_and_no_larger_than_the_mtu() {
    let Some(([mac, mtu, _], (out, into))) = over_a_tap("plain", ",offloads=off,mtu=1400") else { return };
    assert_eq!(mtu, "1400");
    let first = u8::from_str_radix(&mac[..2], 16).unwrap();
    assert_eq!(first & 3, 2, "{mac}: locally administered, unicast");
    assert_eq!(out, 1400);
    // The tap's own MTU is 1500; the guest has told its peer by the segment size that it takes no more.
    assert_eq!(into, 1400);
}

#[test]
fn two_processors_have_two_queues() {
    let Some(lab) = Lab::with_images("queues") else { return };
    let Some(tap) = Tap::create(&lab, "e2e0", "192.168.70.1/24") else { return };
    for (cpus, queues) in [("1", 1), ("2", 2)] {
        let plan = lab.linux("vmlinux", "load,commands,reboot").with([
            "--net",
            "tap=e2e0,queues=2",
            "--cpus",
            cpus,
            "--memory",
            "256M",
        ]);
        let mut vm = with_commands(&plan);
        let command = format!(
            "{UP}; ip addr add 192.168.70.2/24 dev eth0; tell QUEUES=$(ls /sys/class/net/eth0/queues | wc -l)"
        );
        assert_eq!(told(&mut vm, &command, "QUEUES"), (2 * queues).to_string(), "each way");
        assert_eq!(tap.queues(), queues, "as many as processors");
        let tree = vm.processes(plan.id()).unwrap();
        let threads = fs::read_dir(format!("/proc/{}/task", tree.pid("net").unwrap())).unwrap().count();
        assert_eq!(threads, 3, "one for each pair, and the register thread");
        // From each processor, at a time.
        let takers: Vec<_> = (0..cpus.parse().unwrap())
            .map(|cpu: usize| (cpu, take("192.168.70.1", &lab.folder().join(format!("out{cpu}")))))
            .collect();
        vm.type_in("dd if=/dev/urandom of=/tmp/f bs=64k count=32 2>/dev/null\n").unwrap();
        for (cpu, (port, _)) in &takers {
            vm.type_in(&format!("taskset {} nc 192.168.70.1 {port} </tmp/f &\n", 1 << cpu)).unwrap();
        }
        let sent = told(&mut vm, "wait; tell SENT=$(sha256sum /tmp/f | cut -d' ' -f1)", "SENT");
        for (cpu, (_, taker)) in takers {
            taker.join().unwrap();
            assert_eq!(sha256(&lab.folder().join(format!("out{cpu}"))), sent, "from processor {cpu}");
        }
        quit(vm);
    }
}

/// 4 MiB each way at 2 MiB a second, of which half a MiB may pass at once.
#[test]
fn a_rate_is_kept_both_ways() {
    let Some(lab) = Lab::with_images("rate") else { return };
    let Some(_tap) = Tap::create(&lab, "e2e0", "192.168.70.1/24") else { return };
    let plan = lab.linux("vmlinux", "load,commands,reboot").with(["--net", "tap=e2e0,rate=2M+512K"]);
    let mut vm = with_commands(&plan);
    let command = format!(
        "{UP}; ip addr add 192.168.70.2/24 dev eth0; ping -c 1 192.168.70.1 >/dev/null; \
         dd if=/dev/zero of=/tmp/f bs=64k count=64 2>/dev/null; tell READY=1"
    );
    told(&mut vm, &command, "READY");
    let least = Duration::from_secs_f64(0.95 * (4.0 - 0.5) / 2.0);
    let measure = |vm: &mut Vm, what: &str, command: &str| {
        let begun = Instant::now();
        told(vm, &format!("{command}; tell DONE=1"), "DONE");
        let took = begun.elapsed();
        assert!(took >= least, "{what}: {took:?}");
        println!("{what}: {:.1} % of the rate", 100.0 * (4.0 - 0.5) / 2.0 / took.as_secs_f64());
    };
    let (port, taker) = take("192.168.70.1", &lab.folder().join("out"));
    measure(&mut vm, "out", &format!("nc 192.168.70.1 {port} </tmp/f"));
    taker.join().unwrap();
    let (port, giver) = give("192.168.70.1", content(BYTES));
    measure(&mut vm, "in", &format!("{HOLD}; nc 192.168.70.1 {port} </tmp/hold >/tmp/g; kill $!"));
    giver.join().unwrap();
    quit(vm);
}

/// passt gives the guest what this host may reach. It needs an interface with a default route to take after.
#[test]
fn passt_needs_no_tap() {
    let Some(lab) = Lab::with_images("passt") else { return };
    let there = Command::new("passt").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        return skip("passt is not here");
    }
    let Some(_tap) = Tap::create(&lab, "e2eup", "10.9.9.1/24") else { return };
    let route = Command::new("ip").args(["route", "add", "default", "via", "10.9.9.2"]).output().unwrap();
    if !route.status.success() {
        return skip("this host's routes are not the test's");
    }
    let plan = lab.linux("vmlinux", "load,commands,reboot").with(["--net", "passt"]);
    let mut vm = with_commands(&plan);
    let command =
        format!("{UP}; ip addr add 10.9.9.1/24 dev eth0; tell CARRIER=$(cat /sys/class/net/eth0/carrier)");
    assert_eq!(told(&mut vm, &command, "CARRIER"), "1");
    // The gateway's address is this host's own loopback, for passt.
    transfer(&lab, &mut vm, "10.9.9.2", "127.0.0.1");
    let passt = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        // The test's own thread is called after the test.
        let program = matches!(name.trim_end(), "passt" | "passt.avx2");
        program.then_some(path.file_name()?.to_str()?.parse::<i32>().ok()?)
    });
    let passt: Vec<_> = passt.collect();
    assert_eq!(passt.len(), 1, "one passt");
    let pid = rustix::process::Pid::from_raw(passt[0]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let command = "until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done; tell CARRIER=0";
    assert_eq!(told(&mut vm, command, "CARRIER"), "0", "the guest sees that its network is gone");
    quit(vm);
    assert!(!Path::new(&format!("/proc/{}", passt[0])).exists(), "nothing is left of it");
}

#[test]
fn what_cannot_be_opened_is_said() {
    let Some(lab) = Lab::with_guests("no-tap") else { return };
    let refused = |net: &str| lab.guest("poweroff").with(["--net", net]).start().wait().unwrap();
    refused("tap=nosuchtap").assert(3, "cellblock tap create nosuchtap");
    refused("tap=lo").assert(3, "lo is no tap interface");
    refused("tap=a/b").assert(2, "net is");
    refused("passt,queues=2").assert(2, "passt has one queue");
}
