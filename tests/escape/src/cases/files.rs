//! Files of the host, by every way there is to a name.

use libc::{EACCES, ENOENT, ENOTDIR, EPERM, EROFS};

use crate::Case;
use crate::attempt::{Attempt, Own, any, at, call, open, text};

/// There is nothing in the root, and Landlock denies even that.
const NOWHERE: &[(i32, &str)] = &[(ENOENT, "mount"), (EACCES, "landlock")];
/// Nothing can be made there either.
const NOTHING_NEW: &[(i32, &str)] =
    &[(EACCES, "landlock"), (EROFS, "mount"), (ENOENT, "mount"), (EPERM, "caps")];
const NO_CAPS: &[(i32, &str)] = &[(EPERM, "caps")];

pub(super) const CASES: &[Case] = &[
    Case::new("open_etc_passwd", |_| open(c"/etc/passwd", libc::O_RDONLY), NOWHERE),
    Case::new("open_host_root", |_| open(c"/", libc::O_RDONLY | libc::O_DIRECTORY), NOWHERE),
    Case::new("open_up_and_away", |_| open(c"../../../../../../etc/passwd", libc::O_RDONLY), NOWHERE),
    Case::new("open_kvm", |_| open(c"/dev/kvm", libc::O_RDWR), NOWHERE),
    Case::new(
        "open_physical_memory",
        |_| any([c"/dev/mem", c"/dev/kmem", c"/dev/port"].map(|path| open(path, libc::O_RDWR))),
        NOWHERE,
    ),
    Case::new("open_tun", |_| open(c"/dev/net/tun", libc::O_RDWR), NOWHERE),
    Case::new(
        "open_terminal",
        |_| any([c"/dev/tty", c"/dev/console", c"/dev/ptmx"].map(|path| open(path, libc::O_RDWR))),
        NOWHERE,
    ),
    Case::new(
        "open_own_proc",
        |_| {
            any([c"/proc/self/status", c"/proc/self/maps", c"/proc/thread-self"]
                .map(|path| open(path, libc::O_RDONLY)))
        },
        NOWHERE,
    ),
    Case::new("open_memory_of_pid_1", |_| open(c"/proc/1/mem", libc::O_RDWR), NOWHERE),
    Case::new(
        "open_kernel_addresses",
        |_| {
            any([c"/proc/kallsyms", c"/proc/iomem", c"/sys/kernel/notes", c"/sys/kernel/btf/vmlinux"]
                .map(|path| open(path, libc::O_RDONLY)))
        },
        NOWHERE,
    ),
    Case::new("open_sysctl", |_| open(c"/proc/sys/kernel/core_pattern", libc::O_WRONLY), NOWHERE),
    Case::new(
        "open_cgroup",
        |_| {
            any([c"/sys/fs/cgroup/cgroup.procs", c"/sys/fs/cgroup/memory.max"]
                .map(|path| open(path, libc::O_WRONLY)))
        },
        NOWHERE,
    ),
    Case::new("open_by_openat2", openat2, NOWHERE),
    Case::new("reopen_own_descriptor", reopen, NOWHERE),
    Case::new(
        "read_link_to_own_program",
        |_| read_link(c"/proc/self/exe"),
        &[(ENOENT, "mount"), (EACCES, "landlock")],
    ),
    Case::new("create_file", |_| open(c"/made", libc::O_CREAT | libc::O_WRONLY), NOTHING_NEW),
    Case::new("create_nameless_file", |_| open(c"/", libc::O_TMPFILE | libc::O_RDWR), NOTHING_NEW),
    Case::new(
        "make_directory",
        |_| call(libc::SYS_mkdirat, [libc::AT_FDCWD as usize, text(c"/made"), 0o777]),
        NOTHING_NEW,
    ),
    Case::new(
        "make_symlink",
        |_| call(libc::SYS_symlinkat, [text(c"/etc"), libc::AT_FDCWD as usize, text(c"/made")]),
        NOTHING_NEW,
    ),
    Case::new("make_device_node", |_| make_node(libc::S_IFBLK, 0x800), NOTHING_NEW),
    Case::new("make_memory_node", |_| make_node(libc::S_IFCHR, 0x101), NOTHING_NEW),
    Case::new("make_fifo", |_| make_node(libc::S_IFIFO, 0), NOTHING_NEW),
    Case::new("link_own_descriptor", link_own, NOTHING_NEW),
    Case::new(
        "remove_root",
        |_| call(libc::SYS_unlinkat, [libc::AT_FDCWD as usize, text(c"/."), libc::AT_REMOVEDIR as usize]),
        &[(libc::EINVAL, "mount"), (libc::EBUSY, "mount"), (EROFS, "mount"), (EACCES, "landlock")],
    ),
    Case::new(
        "change_mode_of_root",
        |_| call(libc::SYS_fchmodat, [libc::AT_FDCWD as usize, text(c"/"), 0o755]),
        &[(EROFS, "mount"), (EPERM, "uid")],
    ),
    Case::new(
        "change_owner_of_root",
        |_| call(libc::SYS_fchownat, [libc::AT_FDCWD as usize, text(c"/"), 0, 0, 0]),
        &[(EROFS, "mount"), (EPERM, "caps"), (libc::EINVAL, "user")],
    ),
    Case::new(
        "change_root",
        |_| call(libc::SYS_chroot, [text(c".")]),
        &[(EPERM, "caps"), (EACCES, "landlock")],
    ),
    Case::new("open_by_handle", handle, NO_CAPS),
    Case::new("watch_all_files", |_| call(libc::SYS_fanotify_init, [0, 0]), NO_CAPS),
    Case::new(
        "set_quota",
        // Q_SETINFO, without any.
        |_| call(libc::SYS_quotactl, [0x80_0006 << 8, text(c"/dev/vda"), 0, 0]),
        &[
            (ENOENT, "mount"),
            (EACCES, "landlock"),
            (EPERM, "caps"),
            (libc::ENOSYS, "the kernel has none"),
            (libc::EINVAL, "the kernel has none"),
        ],
    ),
    Case::new("execute_shell", |_| execute(c"/bin/sh"), NOWHERE),
    Case::new("execute_own_program", |_| execute(c"/proc/self/exe"), NOWHERE),
    Case::new(
        "load_library",
        |_| any([c"/lib", c"/usr/lib", c"/lib64/ld-linux-x86-64.so.2"].map(|path| open(path, libc::O_RDONLY))),
        NOWHERE,
    ),
    Case::new(
        "list_directory_of_descriptor",
        |own| {
            any(own
                .granted
                .iter()
                .map(|fd| call(libc::SYS_openat, [*fd as usize, text(c".."), libc::O_RDONLY as usize, 0])))
        },
        &[(ENOTDIR, "no directory is granted")],
    ),
];

/// `struct open_how`: no restriction on how the path is walked.
fn openat2(_: &Own) -> Attempt {
    let how = [libc::O_RDONLY as u64, 0, 0];
    call(libc::SYS_openat2, [libc::AT_FDCWD as usize, text(c"/etc/hostname"), at(&how), size_of_val(&how)])
}

/// With more rights than it was granted with.
fn reopen(own: &Own) -> Attempt {
    let path = format!("/proc/self/fd/{}\0", own.requests);
    let name = std::ffi::CStr::from_bytes_with_nul(path.as_bytes()).unwrap_or(c"/proc/self/fd/0");
    any([open(name, libc::O_RDWR), open(c"/dev/fd/3", libc::O_RDWR)])
}

fn read_link(path: &std::ffi::CStr) -> Attempt {
    let room = [0u8; 64];
    call(libc::SYS_readlinkat, [libc::AT_FDCWD as usize, text(path), at(&room), room.len()])
}

fn make_node(kind: u32, device: usize) -> Attempt {
    call(libc::SYS_mknodat, [libc::AT_FDCWD as usize, text(c"/made"), (kind | 0o666) as usize, device])
}

/// Gives something that it holds a name.
fn link_own(own: &Own) -> Attempt {
    let fd = own.image.unwrap_or(own.requests) as usize;
    call(
        libc::SYS_linkat,
        [fd, text(c""), libc::AT_FDCWD as usize, text(c"/made"), libc::AT_EMPTY_PATH as usize],
    )
}

/// A handle as another process might have made it: what it names is looked up past all directories.
fn handle(own: &Own) -> Attempt {
    let made = [8u32, 1, 2, 0, 0, 0];
    let fd = own.image.unwrap_or(own.requests) as usize;
    call(libc::SYS_open_by_handle_at, [fd, at(&made), libc::O_RDONLY as usize])
}

fn execute(path: &std::ffi::CStr) -> Attempt {
    let none = [0usize];
    call(libc::SYS_execve, [text(path), at(&none), at(&none)])
}
