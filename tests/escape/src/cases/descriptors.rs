//! What it was granted, used for more than it was granted for.

use libc::{EACCES, EBADF, EBUSY, EFBIG, EINVAL, ENODEV, ENOENT, ENOTSUP, ENOTTY, ENXIO, EPERM};

use crate::attempt::{Attempt, Own, any, at, call};
use crate::{Case, Held};

/// What an object says to a request that is not for its kind.
const NOT_FOR_IT: &[(i32, &str)] = &[
    (ENOTTY, "it is not for this object"),
    (EINVAL, "it is not for this object"),
    (ENOTSUP, "it is not for this object"),
    (ENXIO, "it is not for this object"),
    (ENODEV, "it is not for this object"),
    (ENOENT, "it is not for this object"),
    (EBADF, "it is not for this object"),
    (EBUSY, "it is not for this object"),
    (EACCES, "caps"),
    (EPERM, "caps"),
];
const SEALED: &[(i32, &str)] =
    &[(EPERM, "the memory's seals"), (EACCES, "the descriptor's rights"), (EINVAL, "the memory's seals")];

pub(super) const CASES: &[Case] = &[
    Case::new("use_inherited_descriptor", inherited, &[(EBADF, "there is none")]),
    Case::new("inject_terminal_input", |own| ioctls(own, 0x5412), NOT_FOR_IT),
    Case::new("terminal_selection", |own| ioctls(own, 0x541c), NOT_FOR_IT),
    Case::new("attach_other_tap", |own| ioctls(own, 0x4004_54ca), NOT_FOR_IT),
    Case::new("network_namespace_of_tap", |own| ioctls(own, 0x54e3), NOT_FOR_IT),
    Case::new("reread_partitions", |own| ioctls(own, 0x125f), NOT_FOR_IT),
    Case::new("discard_block_device", |own| ioctls(own, 0x1277), NOT_FOR_IT),
    Case::new("scsi_command", |own| ioctls(own, 0x2285), NOT_FOR_IT),
    Case::new("create_vm", |own| ioctls(own, 0xae01), NOT_FOR_IT),
    Case::new("run_vcpu", |own| ioctls(own, 0xae80), NOT_FOR_IT),
    Case::new("inject_interrupt", |own| ioctls(own, 0x4008_ae61), NOT_FOR_IT),
    Case::new("register_interrupt", |own| ioctls(own, 0x4020_ae76), NOT_FOR_IT),
    Case::new(
        "clone_file_ranges",
        |own| {
            any(own
                .granted
                .iter()
                .map(|fd| call(libc::SYS_ioctl, [*fd as usize, 0x4004_9409, own.requests as usize])))
        },
        &[
            (ENOTTY, "it is not for this object"),
            (EINVAL, "it is not for this object"),
            (ENOTSUP, "it is not for this object"),
            (EBADF, "it is not for this object"),
            (libc::EXDEV, "it is not for this object"),
            (EPERM, "the memory's seals"),
            (EACCES, "the descriptor's rights"),
            (libc::EISDIR, "it is not for this object"),
            (libc::ETXTBSY, "the memory's seals"),
        ],
    ),
    Case::new(
        "set_immutable",
        |own| {
            let flags = 0x10u64;
            any(own.granted.iter().map(|fd| call(libc::SYS_ioctl, [*fd as usize, 0x4008_6602, at(&flags)])))
        },
        NOT_FOR_IT,
    ),
    Case::new(
        "signals_to_others",
        |own| {
            any(own
                .granted
                .iter()
                .map(|fd| call(libc::SYS_fcntl, [*fd as usize, libc::F_SETOWN as usize, 2])))
        },
        &[(libc::ESRCH, "pid"), (EBADF, "it is not for this object"), (EINVAL, "it is not for this object")],
    ),
    Case::new(
        "lease_image",
        |own| any(own.image.map(|fd| call(libc::SYS_fcntl, [fd as usize, libc::F_SETLEASE as usize, 0]))),
        &[
            (EACCES, "uid"),
            (ENOENT, "nothing is granted"),
            (libc::EAGAIN, "others have it open"),
            (EPERM, "caps"),
        ],
    ),
    Case::new(
        "write_requests",
        |own| {
            let bytes = [0u8; 8];
            call(libc::SYS_write, [own.requests as usize, at(&bytes), bytes.len()])
        },
        &[(EPERM, "the memory's seals"), (EFBIG, "rlimits")],
    ),
    Case::new(
        "map_requests_writable",
        |own| map(own.requests, libc::PROT_READ | libc::PROT_WRITE, 0),
        SEALED,
    ),
    Case::new("make_requests_writable", make_writable, SEALED),
    Case::new(
        "punch_hole_into_requests",
        |own| call(libc::SYS_fallocate, [own.requests as usize, 3, 0, 4096]),
        SEALED,
    ),
    Case::new(
        "shrink_shared_memory",
        |own| resize(own, 0),
        &[(EPERM, "the memory's seals"), (EINVAL, "the memory's seals")],
    ),
    Case::new(
        "grow_shared_memory",
        |own| resize(own, 1 << 40),
        &[(EPERM, "the memory's seals"), (EFBIG, "rlimits"), (EINVAL, "the memory's seals")],
    ),
    Case::new(
        "seal_shared_memory",
        |own| {
            any(own.memories.iter().map(|fd| {
                call(libc::SYS_fcntl, [*fd as usize, libc::F_ADD_SEALS as usize, libc::F_SEAL_WRITE as usize])
            }))
        },
        &[(EPERM, "the memory's seals")],
    ),
    Case::new(
        "grow_image",
        |own| beyond(own, |fd| call(libc::SYS_ftruncate, [fd, 1 << 40])),
        &[
            (EFBIG, "rlimits"),
            (ENOENT, "nothing is granted"),
            (EINVAL, "the descriptor's rights"),
            (libc::ENOSPC, "the disk is full"),
        ],
    ),
    Case::new(
        "write_beyond_image",
        |own| {
            beyond(own, |fd| {
                let bytes = [0u8; 512];
                let piece = [at(&bytes), bytes.len()];
                call(libc::SYS_pwritev2, [fd, at(&piece), 1, 1 << 40, 0, 0])
            })
        },
        &[(EFBIG, "rlimits"), (ENOENT, "nothing is granted"), (EBADF, "the descriptor's rights")],
    ),
    Case::new(
        "reserve_beyond_image",
        |own| beyond(own, |fd| call(libc::SYS_fallocate, [fd, 0, 0, 1 << 40])),
        &[
            (EFBIG, "rlimits"),
            (ENOENT, "nothing is granted"),
            (libc::ENOSPC, "the disk is full"),
            (ENOTSUP, "it is not for this object"),
        ],
    ),
    Case::new(
        "descriptor_of_supervisor",
        |own| peer(own, |pidfd| call(libc::SYS_pidfd_getfd, [pidfd, 4, 0])),
        &[
            (EPERM, "caps"),
            (EINVAL, "pid"),
            (libc::ESRCH, "pid"),
            (libc::ENOPROTOOPT, "the kernel has none"),
            (libc::ENODATA, "the socket does not tell"),
            (EBADF, "there is none"),
        ],
    ),
    Case::new(
        "signal_to_supervisor",
        |own| peer(own, |pidfd| call(libc::SYS_pidfd_send_signal, [pidfd, 0, 0, 0])),
        &[
            (EPERM, "landlock"),
            (EINVAL, "pid"),
            (libc::ESRCH, "pid"),
            (libc::ENOPROTOOPT, "the kernel has none"),
            (libc::ENODATA, "the socket does not tell"),
        ],
    ),
    Case::new(
        "memory_of_supervisor",
        |own| {
            peer(own, |pidfd| {
                let byte = [0u8];
                let piece = [at(&byte), 1];
                call(libc::SYS_process_madvise, [pidfd, at(&piece), 1, 21, 0])
            })
        },
        &[
            (EPERM, "caps"),
            (EINVAL, "pid"),
            (libc::ESRCH, "pid"),
            (EACCES, "caps"),
            (libc::ENOPROTOOPT, "the kernel has none"),
            (libc::ENODATA, "the socket does not tell"),
            (libc::ENOSYS, "the kernel has none"),
        ],
    ),
    Case::new("block_shared_eventfds", unblock, &[(EBADF, "there is none")])
        .harmless("the supervisor neither reads nor writes what a worker could make block"),
    Case::new(
        "unlock_image",
        |own| {
            beyond(own, |fd| {
                let unlock = [libc::F_UNLCK as u64, 0, 0, 0];
                call(libc::SYS_fcntl, [fd, libc::F_OFD_SETLK as usize, at(&unlock)])
            })
        },
        &[(ENOENT, "nothing is granted")],
    )
    .harmless("the lock keeps other VMs from the device's own disk, whose bytes it can spoil anyway"),
];

/// Of all numbers up to the limit, those that the grant does not explain.
fn inherited(own: &Own) -> Attempt {
    let known = |fd: i32| own.granted.contains(&fd) || fd == own.control;
    let others = (0..1024).filter(|fd| !known(*fd));
    any(others.map(|fd| call(libc::SYS_fcntl, [fd as usize, libc::F_GETFD as usize])))
        .map_err(|held| if held == Held::Errno(ENOENT) { Held::Errno(EBADF) } else { held })
}

/// A request to each descriptor, about a kilobyte of zeroes.
fn ioctls(own: &Own, request: usize) -> Attempt {
    let room = [0u64; 128];
    let fds = own.granted.iter().chain([&own.control]);
    any(fds.map(|fd| call(libc::SYS_ioctl, [*fd as usize, request, at(&room)])))
}

fn map(fd: i32, rights: i32, offset: usize) -> Attempt {
    let address =
        call(libc::SYS_mmap, [0, 4096, rights as usize, libc::MAP_SHARED as usize, fd as usize, offset])?;
    let _ = call(libc::SYS_munmap, [address as usize, 4096]);
    Ok(address)
}

fn make_writable(own: &Own) -> Attempt {
    let flags = libc::MAP_SHARED as usize;
    let address = call(libc::SYS_mmap, [0, 4096, libc::PROT_READ as usize, flags, own.requests as usize, 0])?;
    let rights = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let changed = call(libc::SYS_mprotect, [address as usize, 4096, rights]);
    let _ = call(libc::SYS_munmap, [address as usize, 4096]);
    changed
}

fn resize(own: &Own, bytes: usize) -> Attempt {
    any(own.memories.iter().map(|fd| call(libc::SYS_ftruncate, [*fd as usize, bytes])))
}

/// What is tried on a disk's image; others have none.
fn beyond(own: &Own, what: impl FnOnce(usize) -> Attempt) -> Attempt {
    own.image.map_or(Err(Held::Errno(ENOENT)), |fd| what(fd as usize))
}

/// What is tried on whoever made the control socket, which the kernel names to its other end.
fn peer(own: &Own, what: impl FnOnce(usize) -> Attempt) -> Attempt {
    const SO_PEERPIDFD: usize = 77;
    let (pidfd, length) = ([-1i32], [4u32]);
    let socket = own.control as usize;
    call(libc::SYS_getsockopt, [socket, libc::SOL_SOCKET as usize, SO_PEERPIDFD, at(&pidfd), at(&length)])?;
    what(std::hint::black_box(&pidfd)[0] as usize)
}

/// Has whoever shares an eventfd with it wait.
fn unblock(own: &Own) -> Attempt {
    any(own.granted.iter().map(|fd| call(libc::SYS_fcntl, [*fd as usize, libc::F_SETFL as usize, 0])))
}
