//! The system calls of the sandbox as safe functions. None but `may_write` allocates, so the others may be called between clone
//! and exec. Other crates see those alone that do no harm whatever their arguments are.
#![allow(unsafe_code)] // Each wraps one call that libc offers as unsafe or not at all.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The kernel's answer as a result.
fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Side {
    /// The new process.
    Child,
    /// The caller.
    Parent {
        /// The child's pid in the caller's pid namespace.
        pid: i32,
        /// Refers to the child.
        pidfd: OwnedFd,
    },
}

/// `struct clone_args`, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with `namespaces` (CLONE_NEW*), into `cgroup` if given. The child is a copy of the whole process, but has only
/// the calling thread.
///
/// # Safety
/// As for fork(2): with other threads in the process the child may only make async-signal-safe calls.
///
/// # Errors
/// The kernel's.
pub unsafe fn fork_into(namespaces: i32, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    // SAFETY: the caller's promise.
    unsafe { fork_with(namespaces, cgroup) }
}

/// As [`fork_into`], for a child that executes another program: this process rests until it has, or has ended.
///
/// # Safety
/// As there.
///
/// # Errors
/// The kernel's.
pub(crate) unsafe fn fork_to_exec(namespaces: i32, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    // SAFETY: the caller's promise.
    unsafe { fork_with(namespaces | libc::CLONE_VFORK, cgroup) }
}

unsafe fn fork_with(flags: i32, cgroup: Option<BorrowedFd>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { 0x2_0000_0000 } else { 0 };
    let arguments = CloneArguments {
        flags: (flags as u32 as u64) | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM the child has its own copy of everything, the stack too; `pidfd` outlives the call.
    // What the child may do then is the caller's promise.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    match checked(pid)? {
        0 => Ok(Side::Child),
        // SAFETY: the kernel has just made this descriptor for the parent, and nobody else knows it.
        pid => Ok(Side::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Ends the process at once, without destructors or flushes.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// New namespaces for this process.
pub(crate) fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// prctl with numbers only.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<i64> {
    // SAFETY: the options used here take numbers, no pointers.
    checked(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into())
}

/// From now on no memory of this process, and of what it forks and executes, gains the right to be executed
/// (`PR_SET_MDWE`, Linux 6.3; nothing before).
pub(crate) fn refuse_new_code() -> io::Result<()> {
    const PR_SET_MDWE: i32 = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;
    match prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done.map(drop),
    }
}

/// Has this kind of speculation (`PR_SPEC_*`) held back in this thread and in what it starts, for good.
pub(crate) fn hold_speculation(kind: u64) -> io::Result<()> {
    prctl(libc::PR_SET_SPECULATION_CTRL, kind, libc::PR_SPEC_FORCE_DISABLE.into()).map(drop)
}

/// How it stands with this kind of speculation in this thread.
pub(crate) fn speculation(kind: u64) -> io::Result<u64> {
    prctl(libc::PR_GET_SPECULATION_CTRL, kind, 0).map(|state| state as u64)
}

/// A core-scheduling cookie of its own for this process.
pub(crate) fn new_core_cookie() -> io::Result<()> {
    let (create, own, group) =
        (libc::PR_SCHED_CORE_CREATE, 0u64, libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP as u64);
    // SAFETY: without an address it writes nothing.
    checked(unsafe { libc::prctl(libc::PR_SCHED_CORE, create as u64, own, group, 0u64) }.into()).map(drop)
}

/// The core-scheduling cookie of `thread` (0: this one).
pub(crate) fn core_cookie(thread: i32) -> io::Result<u64> {
    let (get, scope) = (libc::PR_SCHED_CORE_GET as u64, libc::PR_SCHED_CORE_SCOPE_THREAD as u64);
    let mut cookie = 0u64;
    // SAFETY: the kernel writes one 8-byte cookie.
    checked(unsafe { libc::prctl(libc::PR_SCHED_CORE, get, thread as u64, scope, &raw mut cookie) }.into())?;
    Ok(cookie)
}

/// A session keyring of its own, empty, in place of the user's, which may hold what opens file systems and networks. Where there
/// are no keyrings, or no more of them for this user, the old one stays: only calls that no policy allows reach it.
pub(crate) fn fresh_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name is one that is not given.
    match checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nameless) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EDQUOT | libc::EPERM)) => {
            Ok(())
        }
        joined => joined.map(drop),
    }
}

/// `fd` as number `number`, replacing what was there.
pub(crate) fn place(fd: RawFd, number: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: takes no pointer. Callers are about to close everything else, so no owner is left surprised.
    checked(unsafe { libc::dup3(fd, number, flags) }.into()).map(drop)
}

/// A copy of `fd` with a number of at least `least`.
pub fn above(fd: BorrowedFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let number = checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }.into())?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Closes every descriptor from `first` to `last`.
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes no pointer. Callers hold no owner of such a descriptor that they use again.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// A session of its own, umask 077, no blocked signals, SIGPIPE ignored (also across exec).
pub(crate) fn fresh_session() -> io::Result<()> {
    // SAFETY: takes no pointer. It fails only for a process group's leader, which a fresh child is not.
    checked(unsafe { libc::setsid() }.into())?;
    // SAFETY: takes no pointer and cannot fail.
    unsafe { libc::umask(0o077) };
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let none = 0u64;
    // SAFETY: the kernel reads one 8-byte signal set.
    checked(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    })
    .map(drop)
}

/// Has the kernel reap this process' children, also those that it inherits.
pub fn forget_children() {
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Gives up all supplementary groups.
pub(crate) fn no_groups() -> io::Result<()> {
    // SAFETY: an empty list is not read.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<u32>()) }).map(drop)
}

/// Real, effective and saved gid, then uid, of this thread (raw: in a fresh child there is no other).
pub(crate) fn become_id(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes no pointer.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Effective uid and gid.
pub fn own_ids() -> (u32, u32) {
    // SAFETY: take nothing and cannot fail.
    let uid = unsafe { libc::geteuid() };
    // SAFETY: as above.
    (uid, unsafe { libc::getegid() })
}

/// Whether this process may write to the file or directory at `path`, by its effective ids.
pub(crate) fn may_write(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path ends in zero.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

/// Soft and hard limit of `resource`.
pub(crate) fn limit(resource: u32, value: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
    // SAFETY: reads one limit, writes none.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// capset(2), version 3: effective and permitted are `kept` (bit N = capability N), inheritable empty.
pub(crate) fn keep_capabilities(kept: u64) -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: header and data have the layout of version 3 of the call.
    checked(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Opens `path` beneath `directory`.
pub fn open_at(directory: BorrowedFd, path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the path ends in zero.
    let fd = checked(
        unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) }.into(),
    )?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// One write(2) of all of `bytes`.
pub(crate) fn write_all(fd: BorrowedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `bytes.len()` bytes.
    let written = checked(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as i64)?;
    if written as usize == bytes.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
}

/// One read(2).
pub fn read(fd: BorrowedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes.
    checked(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } as i64)
        .map(|count| count as usize)
}

/// The host name of this UTS namespace.
pub(crate) fn set_host_name(name: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `name.len()` bytes.
    checked(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Replaces the process by the binary behind `fd`, with one argument and no environment. Returns only to fail.
pub(crate) fn exec(fd: RawFd, name: &CStr) -> io::Error {
    let arguments = [name.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both lists end in null, and all strings end in zero.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Makes an empty read-only tmpfs this mount namespace's only mount, and the root and working directory.
pub(crate) fn enter_empty_root() -> io::Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: only flags change; the kernel reads the path, which ends in zero.
    let made = unsafe { libc::mount(none, c"/".as_ptr(), none, private, std::ptr::null()) };
    checked(made.into())?;
    let root = empty_tmpfs()?;
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    // SAFETY: both paths end in zero.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    // SAFETY: takes no pointer.
    checked(unsafe { libc::fchdir(root.as_raw_fd()) }.into())?;
    // SAFETY: both paths end in zero. The old root is put over the new one, and taken off next.
    checked(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the path ends in zero.
    checked(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into())?;
    // SAFETY: the path ends in zero.
    checked(unsafe { libc::chdir(c"/".as_ptr()) }.into()).map(drop)
}

/// A detached mount of an empty tmpfs: read-only, nosuid, nodev, noexec.
fn empty_tmpfs() -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const FSCONFIG_SET_FLAG: u32 = 0;
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const RDONLY_NOSUID_NODEV_NOEXEC: u32 = 0xf;
    // SAFETY: the name ends in zero.
    let context = checked(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor.
    let context = unsafe { OwnedFd::from_raw_fd(context as RawFd) };
    let set = |command: u32, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: key and value are null or end in zero, as the command asks.
        checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) })
            .map(drop)
    };
    let none = std::ptr::null();
    set(FSCONFIG_SET_STRING, c"mode".as_ptr(), c"0555".as_ptr())?;
    set(FSCONFIG_SET_STRING, c"nr_inodes".as_ptr(), c"1".as_ptr())?;
    set(FSCONFIG_SET_FLAG, c"ro".as_ptr(), none)?;
    set(FSCONFIG_CMD_CREATE, none, none)?;
    // SAFETY: takes no pointer.
    let mount = checked(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, RDONLY_NOSUID_NODEV_NOEXEC)
    })?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as RawFd) })
}

/// A page shared with all children forked later, zeroed; for good.
pub fn shared_page() -> io::Result<&'static [std::sync::atomic::AtomicU32; 1024]> {
    // SAFETY: a fresh anonymous mapping overlaps nothing.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: 4096 zeroed bytes, page-aligned, never unmapped; other processes touch them only as atomics of this
    // type.
    Ok(unsafe { &*page.cast() })
}
