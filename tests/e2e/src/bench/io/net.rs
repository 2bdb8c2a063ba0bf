//! A virtio network device: one TCP connection between guest and host over a tap, one direction at a time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::{CMDLINE, Images, Session, compare};
use crate::Request;
use crate::rival::{Guest, Program};

const DIRECTIONS: [&str; 2] = ["transmit", "receive"];
/// Of one figure, in seconds of the guest's time; an eighth more to warm up.
const SPAN: f64 = 1.0;
/// Where the host listens, on each tap.
const PORT: u16 = 5001;

/// Measures each of `programs`; whether ours is fast enough.
pub(super) fn run(request: &Request, programs: &[Program], images: &Images) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("the host's end of the connections")?;
    // Ends with this process.
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| serve(stream))))
    });
    let mut sessions = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        let (name, tap, network) =
            (program.name(), format!("bench{number}"), format!("192.168.{}", 71 + number));
        make_tap(&tap, &format!("{network}.1/24"))?;
        let (kernel, initrd) = (&images.kernel, Some(images.initrd.as_path()));
        let guest = Guest {
            kernel,
            initrd,
            cmdline: CMDLINE,
            cpus: request.cpus,
            disk: None,
            tap: Some(&tap),
            exit_stats: false,
        };
        let mut vm = program.start(&guest, "bench-net", folder.path())?;
        vm.expect("CELLBLOCK-WAITS")?;
        vm.type_in(&format!("ip link set eth0 up; ip addr add {network}.2/24 dev eth0; tell ADDRESS\n"))?;
        vm.expect("CELLBLOCK-ADDRESS")?;
        sessions.push(Session { name, vm, host: format!("{network}.1") });
    }
    let measures = DIRECTIONS.map(|direction| (direction, format!("tcp HOST {PORT} {direction} {SPAN}")));
    let kept = compare(request, &mut sessions, &measures)?;
    sessions.into_iter().try_for_each(Session::end)?;
    Ok(kept)
}

/// A tap that both programs take: of one queue, made before.
fn make_tap(name: &str, address: &str) -> Result<()> {
    let tools: [&[&str]; 3] = [
        &["tunctl", "-t", name],
        &["ip", "addr", "add", address, "dev", name],
        &["ip", "link", "set", name, "up"],
    ];
    for words in tools {
        let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| words.join(" "))?;
        ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// One connection of the guest's, as tests/guests/linux/tcp.c describes it.
fn serve(mut stream: TcpStream) {
    let (mut direction, mut buffer) = ([0], vec![0; 128 << 10]);
    if stream.read_exact(&mut direction).is_err() {
        return;
    }
    if direction == *b"r" {
        while stream.write_all(&buffer).is_ok() {}
        return;
    }
    let mut bytes = 0u64;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        bytes += count as u64;
    }
    let _ = stream.write_all(&bytes.to_ne_bytes());
}
