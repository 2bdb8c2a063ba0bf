//! A worker's half of its sandbox, closed.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // Forks, and enters a program for good.
#![allow(clippy::unwrap_used)] // Helpers outside #[test] functions are test code, too.

use cellblock_channel::process::install::{InstallError, MAX_PROGRAM, install};
use cellblock_channel::process::seal::close_sandbox;
use cellblock_policy::{Arch, Section, compile};
use rustix::thread::set_no_new_privs;

/// In a child: a compiled policy, in the kernel.
#[test]
fn the_kernel_takes_and_obeys_a_program() {
    let text = "[start]\ngetpid\n[serve]\nexit_group\nrt_sigprocmask\nsigaltstack\nmunmap\n";
    let start = compile(text, &[], Arch::X86_64, Section::Start).unwrap();
    let serve = compile(text, &[], Arch::X86_64, Section::Serve).unwrap();
    let run = |child: &dyn Fn() -> i32| {
        // SAFETY: the child makes plain system calls and ends by _exit.
        match unsafe { libc::fork() } {
            0 => {
                let status = child();
                // SAFETY: ends the child.
                unsafe { libc::_exit(status) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: waits for the child just made, into a local.
                unsafe { libc::waitpid(pid, &raw mut status, 0) };
                status
            }
        }
    };
    let enter = || {
        set_no_new_privs(true).is_ok()
            && install(&start, false).is_ok()
            && close_sandbox(&serve).is_ok_and(|closed| closed.seccomp)
    };
    let closed = run(&|| if enter() { 7 } else { 1 });
    assert!(libc::WIFEXITED(closed) && libc::WEXITSTATUS(closed) == 7, "{closed:#x}");
    let refused = run(&|| {
        enter();
        // SAFETY: harmless where it is allowed.
        unsafe { libc::syscall(libc::SYS_getpid) };
        0
    });
    assert!(libc::WIFSIGNALED(refused) && libc::WTERMSIG(refused) == libc::SIGSYS, "{refused:#x}");
}

#[test]
fn what_is_no_program_is_refused() {
    for length in [0, 7, 12, MAX_PROGRAM + 8] {
        let refused = install(&vec![0; length], false);
        assert!(matches!(refused, Err(InstallError::Length(told)) if told == length), "{refused:?}");
    }
}
