//! The socket device: a guest, a front and host programs that do what they like.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use cellblock_channel::socket;
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, Ticks, fresh};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_vsock::{Host, Vsock, identity};
use cellblock_wire::device::VsockConfig;
use cellblock_wire::vsock::Stream;

const CONFIG: VsockConfig = VsockConfig { cid: 17 };

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let (front, worker) = socket::pair().unwrap();
    let memory = ram.clone();
    let make = || {
        let interrupt = Interrupt::new(Line);
        let broker = worker.as_fd().try_clone_to_owned().unwrap();
        let work = Vsock::new(&CONFIG, Host::new(broker).unwrap(), Ticks);
        let engine = Inline::new(vec![(work, vec![0, 1, 2])], interrupt.clone());
        Transport::new(identity(&CONFIG), engine, memory.clone(), interrupt)
    };
    let mut programs: Vec<UnixStream> = vec![];
    Guest::new(ram, 3, make).run(&mut script, |script| {
        let what = script.u8();
        match what & 7 {
            0..=2 if programs.len() < 4 => {
                let (theirs, mine) = UnixStream::pair().unwrap();
                mine.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                let stream =
                    if what & 7 == 0 { Stream::Accepted } else { Stream::Connected { id: script.value() } };
                let message: Vec<u8> = stream.encode().to_vec();
                let _ = front.send(&message, &[theirs.as_fd()]);
                programs.push(mine);
            }
            3 => {
                let count = script.u8().into();
                let _ = front.send(script.bytes(count), &[]);
            }
            4 => {
                let _ = front.try_recv(&mut [0; 64], 4);
            }
            _ => {
                let Some(program) = programs.get_mut(usize::from(what >> 3 & 3)) else { return };
                let _ = match what >> 5 & 3 {
                    0 => program.write(b"CONNECT 52\n"),
                    1 => {
                        let count = script.u8().into();
                        program.write(script.bytes(count))
                    }
                    2 => program.read(&mut [0; 4096]),
                    _ => program
                        .shutdown(
                            [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(what >> 5) % 3],
                        )
                        .map(|()| 0),
                };
            }
        }
    });
}
