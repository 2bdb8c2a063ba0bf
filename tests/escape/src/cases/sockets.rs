//! Networks, sockets, and what else leads to other processes: IPC and keys.

use libc::{EACCES, EAFNOSUPPORT, ECONNREFUSED, EHOSTUNREACH, EINVAL, ENETUNREACH, ENOENT, ENOSYS, EPERM};

use crate::attempt::{Attempt, Own, any, at, call, close, text};
use crate::{Case, Held};

const NO_NETWORK: &[(i32, &str)] = &[
    (ENETUNREACH, "net"),
    (EHOSTUNREACH, "net"),
    (EACCES, "landlock"),
    (ECONNREFUSED, "net"),
    (libc::EADDRNOTAVAIL, "net"),
    (EAFNOSUPPORT, "the kernel has none"),
];
const NO_CAPS: &[(i32, &str)] =
    &[(EPERM, "caps"), (EAFNOSUPPORT, "the kernel has none"), (libc::EPROTONOSUPPORT, "the kernel has none")];
const OWN_IPC: &[(i32, &str)] = &[(ENOENT, "ipc"), (ENOSYS, "the kernel has none")];

pub(super) const CASES: &[Case] = &[
    Case::new("connect_loopback", |_| connect_inet([127, 0, 0, 1]), NO_NETWORK),
    Case::new("connect_world", |_| connect_inet([192, 0, 2, 1]), NO_NETWORK),
    Case::new("connect_ipv6", connect_inet6, NO_NETWORK),
    Case::new("send_datagram", datagram, NO_NETWORK),
    Case::new("raw_socket", |_| socket(libc::AF_INET, libc::SOCK_RAW, 1), NO_CAPS),
    Case::new("packet_socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300), NO_CAPS),
    Case::new("configure_network", netlink, NO_CAPS),
    Case::new(
        "audit_log",
        |_| netlink_to(9, 1001),
        &[(EPERM, "caps"), (ECONNREFUSED, "net"), (libc::EPROTONOSUPPORT, "the kernel has none")],
    ),
    Case::new("bluetooth_socket", |_| socket(31, libc::SOCK_RAW, 1), NO_CAPS),
    Case::new("key_management_socket", |_| socket(15, libc::SOCK_RAW, 2), NO_CAPS),
    Case::new("xdp_socket", |_| socket(44, libc::SOCK_RAW, 0), NO_CAPS),
    Case::new(
        "connect_vsock",
        vsock,
        &[
            (EAFNOSUPPORT, "the kernel has none"),
            (libc::ENODEV, "no such device"),
            (libc::ECONNRESET, "nobody listens"),
            (ENETUNREACH, "net"),
            (EPERM, "caps"),
            (EACCES, "caps"),
            (libc::ETIMEDOUT, "nobody listens"),
        ],
    )
    .unheld("sockets of this family have no namespaces"),
    Case::new(
        "connect_abstract_socket",
        |own| connect_unix(b"\0", own.bait.listener()),
        &[(ECONNREFUSED, "net"), (EPERM, "landlock")],
    ),
    Case::new(
        "connect_control_socket",
        |_| connect_unix(b"\0", b"cellblock/0/any"),
        &[(ECONNREFUSED, "net"), (EPERM, "landlock")],
    ),
    Case::new(
        "connect_named_socket",
        |_| connect_unix(b"", b"/run/systemd/journal/socket"),
        &[(ENOENT, "mount"), (EACCES, "landlock")],
    ),
    Case::new(
        "connect_docker",
        |_| connect_unix(b"", b"/var/run/docker.sock"),
        &[(ENOENT, "mount"), (EACCES, "landlock")],
    ),
    Case::new("bind_privileged_port", bind_port, &[(EACCES, "caps")]),
    Case::new("forge_credentials", forge_credentials, &[(EPERM, "user"), (EINVAL, "user")]),
    Case::new(
        "force_socket_buffers",
        |own| option(own.control, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
        NO_CAPS,
    ),
    Case::new(
        "bind_to_device",
        |_| {
            let fd = socket_kept(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            let name = *b"eth0\0\0\0\0";
            let bound = call(
                libc::SYS_setsockopt,
                [fd as usize, 1, libc::SO_BINDTODEVICE as usize, at(&name), name.len()],
            );
            close(fd);
            bound
        },
        &[(libc::ENODEV, "net"), (EPERM, "caps")],
    ),
    Case::new("shared_memory_of_host", |own| call(libc::SYS_shmget, [ipc_key(own), 0, 0]), OWN_IPC),
    Case::new("message_queue_of_host", |own| call(libc::SYS_msgget, [ipc_key(own), 0]), OWN_IPC),
    Case::new("semaphore_of_host", |own| call(libc::SYS_semget, [ipc_key(own), 0, 0]), OWN_IPC),
    Case::new(
        "posix_queue_of_host",
        |_| call(libc::SYS_mq_open, [text(c"cellblock-escape"), libc::O_RDWR as usize, 0, 0]),
        &[(ENOENT, "ipc"), (EACCES, "ipc"), (ENOSYS, "the kernel has none")],
    ),
    Case::new(
        "keys_of_session",
        session_key,
        &[(libc::ENOKEY, "a session keyring of its own"), (ENOSYS, "the kernel has none"), (EACCES, "uid")],
    ),
    Case::new(
        "keys_of_uid",
        |own| any([key(own, -4), key(own, -5)]),
        &[(libc::ENOKEY, "user"), (ENOSYS, "the kernel has none"), (EACCES, "uid")],
    ),
];

fn socket_kept(family: i32, kind: i32, protocol: i32) -> Attempt {
    call(
        libc::SYS_socket,
        [family as usize, (kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize, protocol as usize],
    )
}

fn socket(family: i32, kind: i32, protocol: i32) -> Attempt {
    let fd = socket_kept(family, kind, protocol)?;
    close(fd);
    Ok(fd)
}

fn connected(family: i32, kind: i32, address: &[u8]) -> Attempt {
    let fd = socket_kept(family, kind, 0)?;
    let done = call(libc::SYS_connect, [fd as usize, address.as_ptr() as usize, address.len()]);
    close(fd);
    // A connection under way has found a way.
    if done == Err(Held::Errno(libc::EINPROGRESS)) { Ok(0) } else { done }
}

/// Port 22.
fn inet(address: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = libc::AF_INET as u8;
    bytes[3] = 22;
    bytes[4..8].copy_from_slice(&address);
    bytes
}

fn connect_inet(address: [u8; 4]) -> Attempt {
    connected(libc::AF_INET, libc::SOCK_STREAM, &inet(address))
}

fn connect_inet6(_: &Own) -> Attempt {
    let mut bytes = [0; 28];
    bytes[0] = libc::AF_INET6 as u8;
    bytes[3] = 22;
    bytes[23] = 1;
    connected(libc::AF_INET6, libc::SOCK_STREAM, &bytes)
}

fn datagram(_: &Own) -> Attempt {
    let fd = socket_kept(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let (bytes, to) = ([0u8; 4], inet([192, 0, 2, 1]));
    let sent = call(libc::SYS_sendto, [fd as usize, at(&bytes), bytes.len(), 0, at(&to), to.len()]);
    close(fd);
    sent
}

/// CID 2, the host: vsock has no namespaces.
fn vsock(_: &Own) -> Attempt {
    let mut bytes = [0; 16];
    bytes[0] = libc::AF_VSOCK as u8;
    bytes[4] = 22;
    bytes[8] = 2;
    connected(libc::AF_VSOCK, libc::SOCK_STREAM, &bytes)
}

fn connect_unix(before: &[u8], name: &[u8]) -> Attempt {
    let mut bytes = vec![libc::AF_UNIX as u8, 0];
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(name);
    if before.is_empty() {
        bytes.push(0);
    }
    connected(libc::AF_UNIX, libc::SOCK_STREAM, &bytes)
}

/// Takes the loopback interface up: `RTM_NEWLINK` of interface 1 with `IFF_UP`.
fn netlink(_: &Own) -> Attempt {
    netlink_to(0, 16)
}

/// Sends one message of `kind` with an `ifinfomsg`, and reads what the kernel answers.
fn netlink_to(protocol: i32, kind: u32) -> Attempt {
    const LENGTH: u32 = 32;
    const REQUEST_AND_ACKNOWLEDGE: u32 = 5;
    let fd = socket_kept(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
    let message = [LENGTH, kind | REQUEST_AND_ACKNOWLEDGE << 16, 1, 0, 0, 1, 1, 1];
    let answer = [0i32; 64];
    let outcome = call(libc::SYS_sendto, [fd as usize, at(&message), LENGTH as usize, 0, 0, 0])
        .and_then(|_| call(libc::SYS_recvfrom, [fd as usize, at(&answer), size_of_val(&answer), 0, 0, 0]));
    close(fd);
    outcome?;
    // The kernel has written it: `struct nlmsgerr` behind the header of 16 bytes.
    match std::hint::black_box(&answer)[4] {
        error if error < 0 => Err(Held::Errno(-error)),
        _ => Ok(0),
    }
}

fn bind_port(_: &Own) -> Attempt {
    let fd = socket_kept(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let address = inet([0; 4]);
    let bound = call(libc::SYS_bind, [fd as usize, at(&address), address.len()]);
    close(fd);
    bound
}

fn option(fd: i32, level: i32, name: i32) -> Attempt {
    let value = 1 << 30;
    call(
        libc::SYS_setsockopt,
        [fd as usize, level as usize, name as usize, at::<i32>(&value), size_of::<i32>()],
    )
}

/// A message to the supervisor as if from uid 0, process 1. No worker's policy looks into it.
fn forge_credentials(own: &Own) -> Attempt {
    // A log line of no text.
    let bytes = [3u8, 1, 0];
    let piece = [at(&bytes), bytes.len()];
    let credentials = [28u64, (libc::SCM_CREDENTIALS as u64) << 32 | 1, 1, 0];
    let message = [0, 0, at(&piece), 1, at(&credentials), size_of_val(&credentials), 0];
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    call(libc::SYS_sendmsg, [own.control as usize, at(&message), flags as usize])
}

const KEYCTL_SEARCH: usize = 10;
const SESSION: i32 = -3;

fn session_key(own: &Own) -> Attempt {
    key(own, SESSION)
}

fn key(own: &Own, keyring: i32) -> Attempt {
    call(libc::SYS_keyctl, [KEYCTL_SEARCH, keyring as usize, text(c"user"), text(own.bait.key()), 0])
}

fn ipc_key(own: &Own) -> usize {
    own.bait.ipc_key as usize
}
