//! What of the kernel is for those who administer it, and its widest doors.
//!
//! Each case asks for a right in a way that changes nothing on the host, should it ever get it: the kernel looks at rights first.

use libc::{EACCES, EINVAL, ENOENT, ENOSYS, EPERM};

use crate::attempt::{Attempt, Own, any, at, call, close, judged, text};
use crate::{Case, Held};

const NO_CAPS: &[(i32, &str)] = &[(EPERM, "caps"), (ENOSYS, "the kernel has none")];

/// Neither a file nor a module.
const NOWHERE: &std::ffi::CStr = c"/cellblock-escape/nowhere";

pub(super) const CASES: &[Case] = &[
    Case::new("bpf_programs_of_host", |_| bpf(11), NO_CAPS),
    Case::new(
        "load_bpf_for_tracing",
        load_bpf,
        &[(EPERM, "caps"), (EINVAL, "caps"), (ENOSYS, "the kernel has none")],
    ),
    Case::new(
        "measure_whole_cpu",
        |_| perf(-1i32 as usize, 0),
        &[
            (EACCES, "caps"),
            (EPERM, "caps"),
            (ENOENT, "the kernel has none"),
            (ENOSYS, "the kernel has none"),
        ],
    ),
    Case::new(
        "measure_kernel",
        |_| perf(0, usize::MAX),
        &[
            (EACCES, "caps"),
            (EPERM, "caps"),
            (ENOENT, "no such counter"),
            (libc::EOPNOTSUPP, "no such counter"),
            (ENOSYS, "the kernel has none"),
        ],
    ),
    Case::new(
        "handle_faults_of_kernel",
        |_| call(libc::SYS_userfaultfd, [libc::O_CLOEXEC as usize]),
        NO_CAPS,
    )
    .harmless("it handles faults of its own memory, where the host's sysctl lets everybody"),
    Case::new(
        "load_module",
        |_| {
            any([
                call(libc::SYS_init_module, [0, 0, text(c"")]),
                call(libc::SYS_finit_module, [0, text(c""), 0]),
            ])
        },
        NO_CAPS,
    ),
    Case::new(
        "remove_module",
        |_| call(libc::SYS_delete_module, [text(NOWHERE), libc::O_NONBLOCK as usize]),
        NO_CAPS,
    ),
    // Flags that there are not, and no image.
    Case::new("load_other_kernel", |_| call(libc::SYS_kexec_load, [0, 0, 0, 0xff00]), NO_CAPS),
    // Ctrl-Alt-Del off: harmless, and asks for the same right.
    Case::new(
        "reboot",
        |_| call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0]),
        &[(EPERM, "caps"), (EINVAL, "pid")],
    ),
    Case::new(
        "swap",
        |_| any([call(libc::SYS_swapon, [text(NOWHERE), 0]), call(libc::SYS_swapoff, [text(NOWHERE)])]),
        NO_CAPS,
    ),
    Case::new("account_processes", |_| call(libc::SYS_acct, [text(NOWHERE)]), NO_CAPS),
    // How much of it is unread, for which the right to clear it is needed.
    Case::new("clear_kernel_log", |_| call(libc::SYS_syslog, [9, 0, 0]), NO_CAPS),
    Case::new("set_clock", set_clock, NO_CAPS),
    Case::new("tune_clock", tune_clock, NO_CAPS),
    Case::new("port_io", port_io, NO_CAPS),
    Case::new("hang_up_terminal", |_| call(libc::SYS_vhangup, []), NO_CAPS),
    Case::new(
        "steal_terminal",
        |own| any(own.granted.iter().map(|fd| call(libc::SYS_ioctl, [*fd as usize, 0x540e, 1]))),
        &[
            (libc::ENOTTY, "no terminal is granted"),
            (EINVAL, "no terminal is granted"),
            (libc::EOPNOTSUPP, "no terminal is granted"),
            (ENOENT, "nothing is granted"),
        ],
    ),
    Case::new(
        "real_time_scheduling",
        |_| {
            let priority = 1;
            call(libc::SYS_sched_setscheduler, [0, libc::SCHED_FIFO as usize, at::<i32>(&priority)])
        },
        &[(EPERM, "rlimits")],
    ),
    Case::new(
        "higher_priority",
        |_| call(libc::SYS_setpriority, [0, 0, -20i32 as usize]),
        &[(EACCES, "rlimits"), (EPERM, "rlimits")],
    ),
    Case::new("real_time_disk_priority", |_| call(libc::SYS_ioprio_set, [1, 0, 1 << 13]), NO_CAPS),
    Case::new(
        "change_own_memory_map",
        |_| call(libc::SYS_prctl, [libc::PR_SET_MM as usize, 1, 0, 0, 0]),
        &[(EPERM, "caps"), (EINVAL, "the kernel has none")],
    ),
];

/// What leaves threads of the kernel's in the process, which are found as others would be.
pub(super) const LAST: &[Case] = &[Case::new(
    "open_file_by_io_uring",
    io_uring,
    &[
        (ENOENT, "mount"),
        (EACCES, "landlock"),
        (EPERM, "the host's sysctl"),
        (libc::ECANCELED, "rlimits"),
        (libc::EAGAIN, "rlimits"),
        (libc::ENOMEM, "rlimits"),
        (ENOSYS, "the kernel has none"),
    ],
)];

fn bpf(command: usize) -> Attempt {
    let attributes = [0u64; 4];
    call(libc::SYS_bpf, [command, at(&attributes), size_of_val(&attributes)])
}

/// `return 0`, as a kprobe's program.
fn load_bpf(_: &Own) -> Attempt {
    const KPROBE: u64 = 2;
    let program = [0x0000_0000_0000_00b7u64, 0x95];
    let attributes = [KPROBE | 2 << 32, at(&program) as u64, text(c"GPL") as u64, 0, 0, 0];
    call(libc::SYS_bpf, [5, at(&attributes), size_of_val(&attributes)])
}

/// Cycles, of the kernel too, of process `pid` (0 = this one) on `cpu`.
fn perf(pid: usize, cpu: usize) -> Attempt {
    let mut attributes = [0u64; 16];
    attributes[0] = (size_of_val(&attributes) as u64) << 32;
    let fd = call(libc::SYS_perf_event_open, [at(&attributes), pid, cpu, usize::MAX, 0])?;
    close(fd);
    Ok(fd)
}

/// To what it shows: nowhere else, should it work.
fn set_clock(_: &Own) -> Attempt {
    let now = [0i64; 2];
    // Mostly without a system call, which the policy may refuse.
    let read = judged(|| now_into(&now));
    let place = if read.is_ok() { at(&now) } else { 0 };
    any([call(libc::SYS_clock_settime, [0, place]), call(libc::SYS_settimeofday, [0, 0])])
}

#[allow(unsafe_code)] // A call of the C library's.
fn now_into(time: &[i64; 2]) -> Result<i64, i32> {
    // SAFETY: a timespec is two words.
    match unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, at(time) as *mut libc::timespec) } {
        0 => Ok(0),
        _ => Err(EINVAL),
    }
}

/// `struct timex` with a mode that there is not.
fn tune_clock(_: &Own) -> Attempt {
    let mut timex = [0u64; 32];
    timex[0] = 0x40;
    call(libc::SYS_adjtimex, [at(&timex)])
}

#[cfg(target_arch = "x86_64")]
fn port_io(_: &Own) -> Attempt {
    any([call(libc::SYS_iopl, [3]), call(libc::SYS_ioperm, [0x70, 2, 1])])
}

#[cfg(not(target_arch = "x86_64"))]
fn port_io(_: &Own) -> Attempt {
    Err(Held::Errno(ENOSYS))
}

/// Has the kernel open a file for it, past what a seccomp program sees.
fn io_uring(_: &Own) -> Attempt {
    const OPENAT: u8 = 18;
    const SUBMISSIONS: usize = 0x1000_0000;
    // struct io_uring_params: offsets of the rings' words from word 10 and 20 on.
    let parameters = [0u32; 30];
    let ring = call(libc::SYS_io_uring_setup, [1, at(&parameters)])?;
    let parameters = std::hint::black_box(&parameters);
    let map = |offset: usize| {
        let rights = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        call(libc::SYS_mmap, [0, 4096, rights, libc::MAP_SHARED as usize, ring as usize, offset])
    };
    let result = map(0).and_then(|rings| map(SUBMISSIONS).map(|entries| (rings as usize, entries as usize)));
    let outcome = result.and_then(|(rings, entries)| {
        let mut entry = [0u64; 8];
        entry[0] = u64::from(OPENAT) | (libc::AT_FDCWD as u32 as u64) << 32;
        entry[2] = text(c"/etc/passwd") as u64;
        put(entries, &entry);
        let tail = rings + parameters[11] as usize;
        put(tail, &1u32);
        call(libc::SYS_io_uring_enter, [ring as usize, 1, 0, 0, 0, 0])?;
        let (head, cqes) = (rings + parameters[21] as usize, rings + parameters[25] as usize);
        for _ in 0..1000 {
            if get::<u32>(head) == 1 {
                let error = get::<i32>(cqes + 8);
                return if error < 0 { Err(Held::Errno(-error)) } else { Ok(i64::from(error)) };
            }
            call(libc::SYS_sched_yield, [])?;
        }
        Err(Held::Errno(libc::EAGAIN))
    });
    close(ring);
    outcome
}

#[allow(unsafe_code)] // The rings that the kernel has just mapped.
fn put<T: Copy>(address: usize, value: &T) {
    // SAFETY: within a page of shared memory that mmap has returned, aligned as the kernel lays it out.
    unsafe { std::ptr::write_volatile(address as *mut T, *value) }
}

#[allow(unsafe_code)] // As above.
fn get<T: Copy>(address: usize) -> T {
    // SAFETY: as above.
    unsafe { std::ptr::read_volatile(address as *const T) }
}
