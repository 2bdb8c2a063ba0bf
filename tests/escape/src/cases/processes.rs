//! Other processes, and more of its own.
//!
//! Should there ever be one to be reached, nothing is done to it: the host's own would be among them.

use libc::{EAGAIN, EINVAL, ENOSPC, EPERM, ESRCH};

use crate::attempt::{Attempt, Own, at, call, judged};
use crate::{Case, Held};

/// In its pid namespace there is nobody else.
const ALONE: &[(i32, &str)] = &[(ESRCH, "pid")];
const EXACT: &[(i32, &str)] = &[(EAGAIN, "rlimits")];
/// Numbers that any process of a host could have; more would only take longer.
const OTHERS: std::ops::Range<usize> = 2..1000;
/// More than any worker may have.
const MANY: usize = 64;

pub(super) const CASES: &[Case] = &[
    Case::new("signal_others", |_| others(|pid| call(libc::SYS_kill, [pid, 0])), ALONE),
    Case::new("signal_everybody", |_| call(libc::SYS_kill, [-1isize as usize, 0]), ALONE),
    Case::new("signal_other_threads", |_| others(|pid| call(libc::SYS_tgkill, [pid, pid, 0])), ALONE),
    Case::new(
        "queue_signal",
        |_| {
            let info = [0u64; 16];
            others(|pid| call(libc::SYS_rt_sigqueueinfo, [pid, 0, at(&info)]))
        },
        &[(ESRCH, "pid"), (EPERM, "pid")],
    ),
    Case::new("open_process", |_| others(|pid| call(libc::SYS_pidfd_open, [pid, 0])), ALONE),
    // PTRACE_SEIZE: it is not stopped.
    Case::new("trace_others", |_| others(|pid| call(libc::SYS_ptrace, [0x4206, pid, 0, 0])), ALONE),
    Case::new("read_memory_of_others", |_| others_memory(libc::SYS_process_vm_readv), ALONE),
    Case::new("write_memory_of_others", |_| others_memory(libc::SYS_process_vm_writev), ALONE),
    Case::new(
        "compare_with_others",
        |_| others(|pid| call(libc::SYS_kcmp, [1, pid, 1, 0, 0])),
        &[(ESRCH, "pid"), (libc::ENOSYS, "the kernel has none")],
    ),
    Case::new(
        "limit_others",
        |_| {
            let old = [0u64, 0];
            others(|pid| call(libc::SYS_prlimit64, [pid, libc::RLIMIT_AS as usize, 0, at(&old)]))
        },
        ALONE,
    ),
    Case::new(
        "pin_others",
        |_| {
            // No CPU at all: invalid, once the process is found and may be changed.
            let mask = 0u64;
            others(|pid| call(libc::SYS_sched_setaffinity, [pid, 8, at(&mask)]))
        },
        ALONE,
    ),
    Case::new(
        "move_pages_of_others",
        |_| others(|pid| call(libc::SYS_move_pages, [pid, 0, 0, 0, 0, 0])),
        &[(ESRCH, "pid"), (libc::ENOSYS, "the kernel has none")],
    ),
    Case::new(
        "locks_of_others",
        |_| {
            let (head, length) = ([0u64], [0u64]);
            others(|pid| call(libc::SYS_get_robust_list, [pid, at(&head), at(&length)]))
        },
        ALONE,
    ),
    Case::new(
        "clone_into_namespaces",
        |_| {
            call(
                libc::SYS_clone,
                [(libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::SIGCHLD) as usize, 0, 0, 0, 0],
            )
            .inspect(end_child)
        },
        &[(ENOSPC, "user"), (EAGAIN, "rlimits"), (EINVAL, "the kernel has none")],
    ),
    Case::new("fork_bomb", fork_bomb, EXACT),
    Case::new("clone3_bomb", clone3_bomb, EXACT),
    Case::new("thread_bomb", thread_bomb, EXACT),
];

/// The same with every other process, until one is answered for in another way than that it does not exist.
fn others(one: impl Fn(usize) -> Attempt) -> Attempt {
    let nobody = Err(Held::Errno(ESRCH));
    OTHERS.map(one).find(|attempt| *attempt != nobody).unwrap_or(nobody)
}

fn others_memory(number: libc::c_long) -> Attempt {
    let byte = [0u8];
    // In the first page, which no process has.
    let (here, there) = ([at(&byte), 1], [8usize, 1]);
    others(|pid| call(number, [pid, at(&here), 1, at(&there), 1, 0]))
}

/// In a child that a case has made: it is over at once. In the parent: nothing.
fn end_child(pid: &i64) {
    if *pid == 0 {
        let _ = call(libc::SYS_exit_group, [0]);
    }
}

/// Children that do nothing until they are killed.
fn bomb(one: impl Fn() -> Attempt) -> Attempt {
    let mut children = Vec::new();
    let end = loop {
        match one() {
            Ok(0) => loop {
                let _ = call(libc::SYS_ppoll, [0, 0, 0, 0, 0]);
            },
            Ok(pid) if children.len() < MANY => children.push(pid),
            end => break end,
        }
    };
    for pid in children {
        let _ = call(libc::SYS_kill, [pid as usize, libc::SIGKILL as usize]);
        let _ = call(libc::SYS_wait4, [pid as usize, 0, 0, 0]);
    }
    end
}

fn fork_bomb(_: &Own) -> Attempt {
    bomb(|| call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]))
}

/// `struct clone_args`: as fork.
fn clone3_bomb(_: &Own) -> Attempt {
    let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    bomb(|| call(libc::SYS_clone3, [at(&arguments), size_of_val(&arguments)]))
}

/// Threads that rest until there are no more to be had.
fn thread_bomb(_: &Own) -> Attempt {
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut threads = Vec::new();
    let end = judged(|| {
        for _ in 0..MANY {
            let over = std::sync::Arc::clone(&over);
            let rest = move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            };
            match std::thread::Builder::new().stack_size(64 << 10).spawn(rest) {
                Ok(thread) => threads.push(thread),
                Err(error) => return Err(error.raw_os_error().unwrap_or(0)),
            }
        }
        Ok(MANY as i64)
    });
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    end
}
