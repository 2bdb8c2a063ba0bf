//! A network device's far end: opened by the front, so that the worker needs no name and no question.

mod links;
mod passt;
pub(crate) mod tap;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use cellblock_channel::tap::{Name, attach, set_offloads, use_queue};
use cellblock_config::{Net, NetBackend};
use cellblock_wire::device::{NetConfig, Role};
use rustix::fs::OFlags;
use rustix::io::Errno;

use links::Links;
pub(crate) use passt::Passt;

/// How long the processes of a VM that has just ended may still hold a tap.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is opened for each queue of a tap.
const TUN: &str = "/dev/net/tun";

/// A network device, ready to be granted.
pub(crate) struct OpenNet {
    /// What the worker is told.
    pub(crate) config: NetConfig,
    /// The tap's queues, or passt's stream.
    pub(crate) resources: Vec<(Role, OwnedFd)>,
    /// Ends with the VM.
    pub(crate) passt: Option<Passt>,
}

/// Opens the far end of `net`, network device `number` of the VM `vm`.
///
/// # Errors
/// A sentence: there is no such tap, it is not this user's, in use, or passt does not start.
pub(crate) fn open(net: &Net, vm: &str, number: usize) -> Result<OpenNet, String> {
    let mut config = NetConfig {
        mac: net.mac.unwrap_or_else(|| own_address(vm, number)),
        mtu: net.mtu.unwrap_or(0),
        pairs: net.queues,
        offloads: net.offloads,
        receive: net.limits,
        transmit: net.limits,
    };
    let (resources, passt) = match &net.backend {
        NetBackend::Passt => {
            let (passt, stream) = Passt::start(&net.id, net.mtu)?;
            (vec![(Role::NetStream, stream)], Some(passt))
        }
        NetBackend::Tap(name) => {
            let (queues, mtu) = open_tap(name, net.queues).map_err(|why| format!("net {}: {why}", net.id))?;
            // A tap that has another than the usual MTU: its guest must know of it.
            if net.mtu.is_none() && mtu != 1500 && mtu >= 68 {
                config.mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            }
            ((0..).map(Role::Tap).zip(queues).collect(), None)
        }
    };
    Ok(OpenNet { config, resources, passt })
}

/// An address that is the same whenever the VM `vm` starts: locally administered, unicast.
fn own_address(vm: &str, number: usize) -> [u8; 6] {
    // FNV-1a, 64 bits: it need be stable and spread, no more.
    let bytes = vm.bytes().chain([0]).chain(number.to_le_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [_, _, rest @ ..] = hash.to_be_bytes();
    let [first, others @ ..] = rest;
    let [a, b, c, d, e] = others;
    [first & 0xfc | 0x02, a, b, c, d, e]
}

/// `queues` queues of the tap `text`, of which the first is in use, and the interface's MTU.
fn open_tap(text: &str, queues: u16) -> Result<(Vec<OwnedFd>, u32), String> {
    let name = Name::new(text).ok_or_else(|| format!("tap is {text:?}; allowed is {}", Name::ALLOWED))?;
    let failed = |error: io::Error| format!("the host's network interfaces cannot be looked up: {error}");
    let links = Links::open().map_err(failed)?;
    let found = links.find(name).map_err(failed)?;
    let link = found.ok_or_else(|| {
        format!("there is no interface {name}; make it with: cellblock tap create {name} --user USER")
    })?;
    let end = Instant::now() + PATIENCE;
    loop {
        match attach_all(name, queues) {
            Ok(taps) => {
                // A tap with several queues takes more openers than one: then each would get some of the frames.
                let open = links.find(name).map_err(failed)?.map_or(0, |link| link.queues);
                if open <= u32::from(queues) {
                    return settle(&taps, name).map(|()| (taps, link.mtu));
                }
                if Instant::now() >= end {
                    return Err(format!("tap {name} is in use by another VM or program"));
                }
            }
            Err(Errno::BUSY) if Instant::now() >= end => {
                return Err(format!("tap {name} is in use by another VM or program"));
            }
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(refused(name, queues, errno)),
        }
        std::thread::sleep(PATIENCE / 50);
    }
}

fn attach_all(name: Name, queues: u16) -> Result<Vec<OwnedFd>, Errno> {
    let attach_one = |several| {
        let tap = open_tun()?;
        attach(&tap, name, several).map(|()| tap)
    };
    let all = (0..queues).map(|_| attach_one(true)).collect();
    match all {
        // It was made for one queue, as by `ip tuntap add`.
        Err(Errno::INVAL) if queues == 1 => attach_one(false).map(|tap| vec![tap]),
        other => other,
    }
}

fn open_tun() -> Result<OwnedFd, Errno> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let opened = options.open(TUN).map(OwnedFd::from);
    opened.map_err(|error| match Errno::from_io_error(&error) {
        // Told from what the interface itself refuses.
        Some(Errno::PERM) | None => Errno::ACCESS,
        Some(errno) => errno,
    })
}

/// As a driver finds it after a reset: whole frames with checksums only, over the first queue.
fn settle(taps: &[OwnedFd], name: Name) -> Result<(), String> {
    let plain = taps.iter().try_for_each(|tap| set_offloads(tap, 0));
    let one = taps.iter().skip(1).try_for_each(|tap| use_queue(tap, false));
    plain.and(one).map_err(|errno| format!("tap {name} cannot be set up: {errno}"))
}

fn refused(name: Name, queues: u16, errno: Errno) -> String {
    match errno {
        Errno::PERM => format!(
            "tap {name} is not this user's; make it anew with: cellblock tap create {name} --user {}",
            rustix::process::getuid().as_raw()
        ),
        Errno::INVAL if queues > 1 => format!(
            "{name} is no tap interface that was made for several queues; make one with: cellblock tap create NAME"
        ),
        Errno::INVAL => format!("{name} is no tap interface; make one with: cellblock tap create NAME"),
        _ => cannot_open(errno),
    }
}

/// Why `/dev/net/tun` cannot be opened.
fn cannot_open(errno: Errno) -> String {
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            format!("{TUN} is not there; load the kernel's module with: modprobe tun")
        }
        Errno::ACCESS => format!("{TUN} may not be opened by this user; as root: chmod 666 {TUN}"),
        _ => format!("{TUN} cannot be opened: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_stable_and_differ() {
        let address = own_address("web-1", 0);
        assert_eq!(address, own_address("web-1", 0));
        assert_eq!(address[0] & 3, 2, "locally administered, unicast");
        let others = [own_address("web-1", 1), own_address("web-2", 0), own_address("web-10", 0)];
        assert!(others.iter().all(|other| *other != address), "{others:x?}");
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let gone = open_tap("no-such-tap", 1).unwrap_err();
        assert!(gone.contains("cellblock tap create no-such-tap"), "{gone}");
        assert!(open_tap("a/b", 1).unwrap_err().starts_with("tap is"));
        if open_tun().is_ok() && rustix::process::geteuid().is_root() {
            let none = open_tap("lo", 1).unwrap_err();
            assert!(none.contains("no tap interface"), "{none}");
        } else {
            eprintln!("SKIP: taps need root and {TUN}");
        }
    }
}
