//! The names that a policy may use for numbers. Those that differ between architectures are not here: a policy is
//! written for one architecture and can say the number, with its name in the line's comment.

/// Name and value, sorted by family.
const TABLE: &[(&str, u64)] = &[
    // mmap, mprotect
    ("PROT_NONE", 0x0),
    ("PROT_READ", 0x1),
    ("PROT_WRITE", 0x2),
    ("PROT_EXEC", 0x4),
    ("MAP_SHARED", 0x01),
    ("MAP_PRIVATE", 0x02),
    ("MAP_FIXED", 0x10),
    ("MAP_ANONYMOUS", 0x20),
    ("MAP_NORESERVE", 0x4000),
    ("MAP_POPULATE", 0x8000),
    ("MAP_STACK", 0x20000),
    ("MAP_FIXED_NOREPLACE", 0x100000),
    // madvise
    ("MADV_NORMAL", 0),
    ("MADV_WILLNEED", 3),
    ("MADV_DONTNEED", 4),
    ("MADV_FREE", 8),
    ("MADV_REMOVE", 9),
    ("MADV_HUGEPAGE", 14),
    ("MADV_NOHUGEPAGE", 15),
    ("MADV_DONTDUMP", 16),
    ("MADV_POPULATE_WRITE", 23),
    ("MADV_COLLAPSE", 25),
    // futex
    ("FUTEX_WAIT", 0),
    ("FUTEX_WAKE", 1),
    ("FUTEX_REQUEUE", 3),
    ("FUTEX_CMP_REQUEUE", 4),
    ("FUTEX_WAIT_BITSET", 9),
    ("FUTEX_WAKE_BITSET", 10),
    ("FUTEX_PRIVATE_FLAG", 128),
    ("FUTEX_CLOCK_REALTIME", 256),
    // fcntl
    ("F_DUPFD", 0),
    ("F_GETFD", 1),
    ("F_SETFD", 2),
    ("F_GETFL", 3),
    ("F_SETFL", 4),
    ("F_DUPFD_CLOEXEC", 1030),
    ("F_SETPIPE_SZ", 1031),
    ("F_GETPIPE_SZ", 1032),
    ("F_ADD_SEALS", 1033),
    ("F_GET_SEALS", 1034),
    ("FD_CLOEXEC", 1),
    ("O_RDONLY", 0),
    ("O_WRONLY", 1),
    ("O_RDWR", 2),
    ("O_NONBLOCK", 0o4000),
    ("O_CLOEXEC", 0o2000000),
    // clone, unshare
    ("CLONE_VM", 0x100),
    ("CLONE_FS", 0x200),
    ("CLONE_FILES", 0x400),
    ("CLONE_SIGHAND", 0x800),
    ("CLONE_PIDFD", 0x1000),
    ("CLONE_VFORK", 0x4000),
    ("CLONE_PARENT", 0x8000),
    ("CLONE_THREAD", 0x10000),
    ("CLONE_NEWNS", 0x20000),
    ("CLONE_SYSVSEM", 0x40000),
    ("CLONE_SETTLS", 0x80000),
    ("CLONE_PARENT_SETTID", 0x100000),
    ("CLONE_CHILD_CLEARTID", 0x200000),
    ("CLONE_DETACHED", 0x400000),
    ("CLONE_CHILD_SETTID", 0x1000000),
    ("CLONE_NEWCGROUP", 0x2000000),
    ("CLONE_NEWUTS", 0x4000000),
    ("CLONE_NEWIPC", 0x8000000),
    ("CLONE_NEWUSER", 0x10000000),
    ("CLONE_NEWPID", 0x20000000),
    ("CLONE_NEWNET", 0x40000000),
    // The seven above.
    ("CLONE_NEW_ANY", 0x7e020000),
    // *at, execveat
    ("AT_FDCWD", -100i64 as u64),
    ("AT_EMPTY_PATH", 0x1000),
    // prctl
    ("PR_SET_PDEATHSIG", 1),
    ("PR_GET_DUMPABLE", 3),
    ("PR_SET_DUMPABLE", 4),
    ("PR_SET_NAME", 15),
    ("PR_GET_SECCOMP", 21),
    ("PR_CAPBSET_READ", 23),
    ("PR_CAPBSET_DROP", 24),
    ("PR_SET_SECUREBITS", 28),
    ("PR_SET_TIMERSLACK", 29),
    ("PR_SET_NO_NEW_PRIVS", 38),
    ("PR_GET_NO_NEW_PRIVS", 39),
    ("PR_CAP_AMBIENT", 47),
    ("PR_SET_VMA", 0x53564d41),
    ("SUID_DUMP_DISABLE", 0),
    // seccomp
    ("SECCOMP_SET_MODE_FILTER", 1),
    ("SECCOMP_GET_ACTION_AVAIL", 2),
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    // epoll, eventfd, timerfd, clocks
    ("EPOLL_CTL_ADD", 1),
    ("EPOLL_CTL_DEL", 2),
    ("EPOLL_CTL_MOD", 3),
    ("EPOLL_CLOEXEC", 0o2000000),
    ("EFD_CLOEXEC", 0o2000000),
    ("EFD_NONBLOCK", 0o4000),
    ("TFD_CLOEXEC", 0o2000000),
    ("TFD_NONBLOCK", 0o4000),
    ("TFD_TIMER_ABSTIME", 1),
    ("CLOCK_REALTIME", 0),
    ("CLOCK_MONOTONIC", 1),
    ("CLOCK_BOOTTIME", 7),
    ("TIMER_ABSTIME", 1),
    // sockets
    ("AF_UNIX", 1),
    ("SOCK_STREAM", 1),
    ("SOCK_SEQPACKET", 5),
    ("SOCK_CLOEXEC", 0o2000000),
    ("MSG_PEEK", 0x2),
    ("MSG_DONTWAIT", 0x40),
    ("MSG_NOSIGNAL", 0x4000),
    ("MSG_CMSG_CLOEXEC", 0x40000000),
    ("SOL_SOCKET", 1),
    // sched_setscheduler
    ("SCHED_OTHER", 0),
    ("SCHED_BATCH", 3),
    // signals
    ("SIG_BLOCK", 0),
    ("SIG_UNBLOCK", 1),
    ("SIG_SETMASK", 2),
    ("SIGILL", 4),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGSEGV", 11),
    ("SIGTERM", 15),
    ("SIGSYS", 31),
    ("WNOHANG", 1),
    ("P_PIDFD", 3),
    // ioctl (the numbers are the same on x86_64 and aarch64)
    ("TCGETS", 0x5401),
    ("FIONREAD", 0x541b),
    ("FIONBIO", 0x5421),
    ("TUNSETOFFLOAD", 0x400454d0),
    ("TUNSETQUEUE", 0x400454d9),
    ("KVM_RUN", 0xae80),
    ("KVM_IRQ_LINE", 0x4008ae61),
    ("KVM_SIGNAL_MSI", 0x4020aea5),
    ("KVM_IRQFD", 0x4020ae76),
    ("KVM_IOEVENTFD", 0x4040ae79),
    ("KVM_SET_GSI_ROUTING", 0x4008ae6a),
];

/// The value of `name`.
pub(crate) fn value_of(name: &str) -> Option<u64> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_agree_with_libc() {
        for (index, (name, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[index + 1..].iter().all(|(other, _)| other != name), "{name} stands twice");
        }
        let any = libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET;
        assert_eq!(value_of("CLONE_NEW_ANY"), Some(any as u64));
        assert_eq!(value_of("AT_FDCWD"), Some(libc::AT_FDCWD as i64 as u64));
        assert_eq!(value_of("O_CLOEXEC"), Some(libc::O_CLOEXEC as u64));
        assert_eq!(value_of("PR_SET_VMA"), Some(libc::PR_SET_VMA as u64));
        assert_eq!(value_of("MADV_DONTDUMP"), Some(libc::MADV_DONTDUMP as u64));
        assert_eq!(value_of("F_GET_SEALS"), Some(libc::F_GET_SEALS as u64));
        assert_eq!(value_of("MAP_STACK"), Some(libc::MAP_STACK as u64));
        assert_eq!(value_of("MAP_FIXED_NOREPLACE"), Some(libc::MAP_FIXED_NOREPLACE as u64));
        assert_eq!(value_of("PR_SET_NO_NEW_PRIVS"), Some(libc::PR_SET_NO_NEW_PRIVS as u64));
        assert_eq!(value_of("MSG_CMSG_CLOEXEC"), Some(libc::MSG_CMSG_CLOEXEC as u64));
        assert_eq!(value_of("FUTEX_WAIT_BITSET"), Some(libc::FUTEX_WAIT_BITSET as u64));
        assert_eq!(value_of("FIONBIO"), Some(libc::FIONBIO));
    }
}
