//! A console with one port, or with two that the driver is told of.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cellblock_console::port::{End, Pipes};
use cellblock_console::state::Standing;
use cellblock_console::{Console, Screen, handler, identity};
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, fresh};
use cellblock_sdk::host::Tally;
use cellblock_sdk::virtio::{Inline, Interrupt, Kept, Transport};
use cellblock_wire::device::ConsoleConfig;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

/// The host's ends of a port: what is typed, what is shown.
struct Far {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let ports = if script.flag() { vec!["one".into(), "two".into()] } else { vec![String::new()] };
    let config = ConsoleConfig { ports, columns: 80, rows: 25 };
    let (mut ends, mut far) = (vec![], vec![]);
    for _ in &config.ports {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, typed) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let (shown, output) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        ends.push((Arc::new(near), Arc::new(output)));
        far.push(Far { input: Some(typed), output: Some(shown) });
    }
    let memory = ram.clone();
    let make = || {
        let (interrupt, tally) = (Interrupt::new(Line), Arc::<Tally>::default());
        let end = |fd: &Arc<OwnedFd>, bit| Some(End { fd: Arc::clone(fd), bit });
        let pipes = ends.iter().zip(0..).map(|((input, output), port)| Pipes {
            input: end(input, 1 << (2 * port)),
            output: end(output, 2 << (2 * port)),
        });
        let (identity, screen) = (identity(&config), Screen::new(&config));
        let kept = Kept::new(Standing::legal(config.ports.len()));
        let work = Console::new(&config, pipes.collect(), screen.clone(), kept.clone(), &tally);
        let engine = Inline::new(vec![(work, (0..config.queues()).collect())], interrupt.clone());
        let on_event = handler(&identity, screen, interrupt.clone(), engine.kicker(0));
        Transport::new(identity, engine, memory.clone(), interrupt).on_event(on_event).keeping(kept)
    };
    let queues = config.queues();
    Guest::new(ram, queues, make).run(&mut script, |script| {
        let what = script.u8();
        let count = far.len();
        let Far { input, output } = &mut far[usize::from(what >> 4) % count];
        match what & 7 {
            0 => *input = None,
            1 => *output = None,
            2 => {
                if let Some(output) = output {
                    let _ = rustix::io::read(output.as_fd(), &mut [0; 4096]);
                }
            }
            _ => {
                let (count, flags) = (script.u8().into(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                if let Some(input) = input {
                    let _ = send(input.as_fd(), script.bytes(count), flags);
                }
            }
        }
    });
}
