//! A network device, over a tap's queue or passt's stream, whose far ends send what they like.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, Ticks, fresh};
use cellblock_net::backend::{Backend, OnePair, Passt, Tap};
use cellblock_net::{identity, pairs};
use cellblock_sdk::virtio::{Inline, Interrupt, Ram, Transport};
use cellblock_wire::device::{Bucket, Limits, NetConfig};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let how = script.u8();
    let limits = Limits {
        bytes: (how & 2 != 0).then_some(Bucket { per_second: 1000, burst: 1500 }),
        operations: (how & 4 != 0).then_some(Bucket { per_second: 10, burst: 2 }),
    };
    let stream = how & 1 != 0;
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: [1400, 0, 68, 65535][usize::from(how >> 3 & 3)],
        pairs: 1,
        offloads: !stream,
        receive: limits,
        transmit: limits,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = if stream { SocketType::STREAM } else { SocketType::SEQPACKET };
    let (near, far) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let near = Arc::new(near);
    if stream {
        drive(ram, &mut script, &config, || Passt::new(Arc::clone(&near)), far);
    } else {
        drive(ram, &mut script, &config, || Tap::new(Arc::clone(&near), config.mtu), far);
    }
}

fn drive<B: Backend>(
    ram: Ram,
    script: &mut Script<'_>,
    config: &NetConfig,
    backend: impl Fn() -> B,
    far: OwnedFd,
) {
    let memory = ram.clone();
    let make = || {
        let (interrupt, identity) = (Interrupt::new(Line), identity(config));
        let pairs = pairs(config, &identity, &memory, &Ticks, vec![backend()], Box::new(OnePair));
        let engine = Inline::new(pairs, interrupt.clone());
        Transport::new(identity, engine, memory.clone(), interrupt)
    };
    let mut far = Some(far);
    Guest::new(ram, 2, make).run(script, |script| {
        let Some(end) = &far else { return };
        match script.u8() % 4 {
            0 => {
                let _ = recv(end, &mut [0; 4096], RecvFlags::DONTWAIT);
            }
            1 if script.u8() == 0 => far = None,
            _ => {
                // A frame with a header, or in a stream with a length before it; or less than that.
                let count = script.u8().into();
                let _ = send(end, script.bytes(count), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    });
}
