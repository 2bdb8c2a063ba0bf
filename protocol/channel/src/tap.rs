//! Tap interfaces (Linux `Documentation/networking/tuntap.rst`): the requests that the front makes of a descriptor of
//! `/dev/net/tun`, and the two that a worker makes of one that it was given.
#![allow(unsafe_code)] // ioctl: the kernel takes each of these by its number, with an argument of the type beside it.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

/// Bytes of the header before each frame (Virtio 1.3 §5.1.6, `struct virtio_net_hdr` with `num_buffers`).
pub const HEADER_BYTES: i32 = 12;

/// What the reader of a tap takes beside whole frames with checksums (`TUN_F_*`).
pub mod offload {
    /// Frames whose checksum is still to be made.
    pub const CSUM: usize = 1;
    /// TCP over IPv4 segments of up to 64 KiB. Needs `CSUM`.
    pub const TSO4: usize = 2;
    /// TCP over IPv6 segments of up to 64 KiB. Needs `CSUM`.
    pub const TSO6: usize = 4;
}

/// An interface's name: 1 to 15 bytes that the kernel takes as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name([u8; 16]);

impl Name {
    /// What a name may be.
    pub const ALLOWED: &str = "1 to 15 letters, digits, '-', '_' and '.'";

    /// `text`, if it is [`ALLOWED`](Self::ALLOWED).
    pub fn new(text: &str) -> Option<Name> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let mut bytes = [0; 16];
        let fits = (1..16).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != "..";
        fits.then(|| {
            bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
            Name(bytes)
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take_while(|byte| **byte != 0).try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

/// `struct ifreq` with `ifr_flags`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const TUNSETQUEUE: Opcode = opcode::write::<i32>(b'T', 217);

/// Makes `fd`, a fresh descriptor of `/dev/net/tun`, a queue of the tap `name`: frames come and go with a header of
/// [`HEADER_BYTES`]. Where there is no such interface, one is made if the caller may.
///
/// # Errors
/// `PERM`: the interface is another user's, or there is none and the caller may not make one. `BUSY`: it is in use. `INVAL`: it
/// is no tap, or one that was (or was not) made for several queues.
pub fn attach(fd: impl AsFd, name: Name, several_queues: bool) -> Result<()> {
    let several = if several_queues { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several;
    let mut request = Request { name: name.0, flags, rest: [0; 22] };
    // SAFETY: TUNSETIFF reads a `struct ifreq` and writes it back; `Request` has its 40 bytes.
    let setter = unsafe { Updater::<TUNSETIFF, Request>::new(&mut request) };
    // SAFETY: as above.
    unsafe { ioctl(&fd, setter) }?;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    let setter = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(HEADER_BYTES) };
    // SAFETY: as above.
    unsafe { ioctl(&fd, setter) }
}

/// Whether the interface stays when nobody has it open.
///
/// # Errors
/// The kernel's.
pub fn set_persistent(fd: impl AsFd, persistent: bool) -> Result<()> {
    set_number::<TUNSETPERSIST>(fd, persistent.into())
}

/// Lets the user `uid` attach to the interface.
///
/// # Errors
/// The kernel's.
pub fn set_owner(fd: impl AsFd, uid: u32) -> Result<()> {
    set_number::<TUNSETOWNER>(fd, usize::try_from(uid).map_err(|_| Errno::INVAL)?)
}

/// What the reader takes beside whole frames: bits of [`offload`].
///
/// # Errors
/// The kernel's.
pub fn set_offloads(fd: impl AsFd, bits: usize) -> Result<()> {
    set_number::<TUNSETOFFLOAD>(fd, bits)
}

/// Takes this queue of a tap with several into use, or out of it; what waits in it is then dropped.
///
/// # Errors
/// `INVAL`: it is so already.
pub fn use_queue(fd: impl AsFd, used: bool) -> Result<()> {
    let flags = if used { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    let request = Request { name: [0; 16], flags, rest: [0; 22] };
    // SAFETY: TUNSETQUEUE reads a `struct ifreq`; `Request` has its 40 bytes.
    let setter = unsafe { Setter::<TUNSETQUEUE, Request>::new(request) };
    // SAFETY: as above.
    unsafe { ioctl(fd, setter) }
}

/// A request of those that take a number.
fn set_number<const REQUEST: Opcode>(fd: impl AsFd, number: usize) -> Result<()> {
    // SAFETY: it is called for TUNSETPERSIST, TUNSETOWNER and TUNSETOFFLOAD, which take a number.
    let setter = unsafe { IntegerSetter::<REQUEST>::new_usize(number) };
    // SAFETY: as above.
    unsafe { ioctl(fd, setter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["tap0", "a", "123456789012345", "x-1_2.3"] {
            assert_eq!(Name::new(name).unwrap().to_string(), name);
        }
        for name in ["", "1234567890123456", "a b", "a/b", "tap%d", ".", "..", "a:1", "é"] {
            assert_eq!(Name::new(name), None, "{name}");
        }
    }

    #[test]
    fn the_numbers_are_linuxs() {
        assert_eq!(size_of::<Request>(), 40);
        let numbers = [TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE];
        let linux = [0x4004_54ca, 0x4004_54cb, 0x4004_54cc, 0x4004_54d0, 0x4004_54d8, 0x4004_54d9];
        assert_eq!(numbers, linux);
    }
}
