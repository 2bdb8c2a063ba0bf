//! Figures of a socket device's worker, between a host program's socket and the guest's buffers:
//! `CELLBLOCK_WORKER_DIR=… cargo test -p cellblock-vsock --test measure -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // All of this is test code.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use cellblock_sdk::testing::process::{Program, Supervised, Wanted};
use cellblock_sdk::testing::virtio::{DATA, Driver, Segment, shared_ram};
use cellblock_vsock::spec::{HEADER_BYTES, Header, op};
use cellblock_wire::device::{DeviceConfig, Role};
use rustix::event::{EventfdFlags, eventfd};

mod probes;
use probes::*;

const BYTES: usize = 256 << 20;
const PIECE: u32 = 64 << 10;
const PLACE: u64 = DATA + 0x20_0000;

fn start() -> (Guest<Supervised>, Vec<OwnedFd>) {
    let start = include_bytes!(concat!(env!("OUT_DIR"), "/worker.start.bpf"));
    let program = Program::find("vsock", env!("CARGO_BIN_EXE_vsock"), start);
    let (front, socket) = broker();
    let (ram, memory, fd) = shared_ram();
    let kicks: Vec<_> = (0..3).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let mut extras = vec![(memory, fd), (Role::Broker, socket)];
    extras.extend((0..).zip(&kicks).map(|(n, kick)| (Role::QueueKick(n), kick.try_clone().unwrap())));
    let config = DeviceConfig::Vsock(CONFIG);
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let worker = Supervised::start_with(&program, &wanted, extras).unwrap();
    let mut guest = Guest::new(Driver::new(worker, ram), front);
    guest.begin(ALL);
    (guest, kicks)
}

fn report(what: &str, started: Instant) {
    eprintln!("{what}: {:.0} MB/s", BYTES as f64 / started.elapsed().as_secs_f64() / 1e6);
}

#[test]
#[ignore = "figures"]
fn throughput() {
    let (mut guest, kicks) = start();
    to_guest(&mut guest);
    to_host(&mut guest, &kicks[1]);
}

/// Linux's receive buffers: 4 KiB each.
fn to_guest(guest: &mut Guest<Supervised>) {
    let (mut client, ports) = guest.accept(52);
    client.set_nonblocking(false).unwrap();
    let started = Instant::now();
    let writing = std::thread::spawn(move || {
        let chunk = vec![7; 1 << 20];
        (0..BYTES >> 20).for_each(|_| client.write_all(&chunk).unwrap());
        client
    });
    let (mut got, mut told) = (0, 0);
    while got < BYTES {
        let Some((header, _)) = guest.poll() else { continue };
        got += header.len as usize;
        if got - told > (GUEST_BUFFER / 4) as usize || header.op == op::CREDIT_REQUEST {
            told = got;
            guest.send(ports, op::CREDIT_UPDATE);
        }
    }
    report("host to guest, 4 KiB a packet", started);
    drop(writing.join().unwrap());
    guest.send(ports, op::RST);
    while guest.poll().is_some() {}
}

fn to_host(guest: &mut Guest<Supervised>, kick: &OwnedFd) {
    let ports = (4000, 5000);
    let mut server = guest.connect(ports);
    server.set_nonblocking(false).unwrap();
    let reading = std::thread::spawn(move || read_all(&mut server));
    let header = Header { len: PIECE, ..guest.header(ports, op::RW) };
    guest.driver.poke(PLACE, &header.encode());
    let chain = [Segment::read(PLACE, HEADER_BYTES as u32), Segment::read(PLACE + 0x1000, PIECE)];
    let started = Instant::now();
    let (mut sent, mut known) = (0usize, 0usize);
    while sent < BYTES {
        if sent - known + PIECE as usize <= cellblock_vsock::spec::BUFFER_BYTES as usize {
            guest.driver.push(1, &chain);
            rustix::io::write(kick, &1u64.to_ne_bytes()).unwrap();
            while guest.driver.used(1).is_none() {
                std::hint::spin_loop();
            }
            sent += PIECE as usize;
        }
        while let Some((header, _)) = guest.poll() {
            known = header.fwd_cnt as usize;
        }
    }
    guest.send(ports, op::RST);
    report("guest to host, 64 KiB a packet", started);
    reading.join().unwrap();
}

fn read_all(stream: &mut UnixStream) {
    let mut chunk = vec![0; 1 << 20];
    while !matches!(stream.read(&mut chunk), Ok(0) | Err(_)) {}
}
