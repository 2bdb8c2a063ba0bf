//! The supervisor's and the loader's jail, entered by forked processes and looked at from /proc. As root, then again as an
//! ordinary user. No test harness: it would have threads.
#![allow(unsafe_code)] // Forks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // All of this is test code.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cellblock_jail::inspect::{Inspection, inspect};
use cellblock_jail::speculation::{Control, Speculation};
use cellblock_jail::supervisor::{self, Confinement};
use cellblock_jail::{JailError, Layer, LayerSet, Refusal, Step, loader, spawner, sys};

fn is_root() -> bool {
    sys::own_ids().0 == 0
}

fn how() -> Confinement {
    Confinement {
        layers: LayerSet::all(),
        privileged: is_root(),
        id: is_root().then_some(0x7200_003f),
        refusal: Refusal::Kill,
    }
}

/// What a child does: enter its jail; then, while it is jailed; and the call with which it ends.
struct Child {
    enter: fn(&[std::os::fd::BorrowedFd]) -> Result<(), JailError>,
    then: fn(),
    end: libc::c_long,
}

/// Not entered yet.
const WAITING: u32 = u32::MAX;

/// Forks; inspects the child once it is jailed (as far as this user may), lets it go on, returns its wait status.
///
/// The two speak through shared memory, as no policy allows any one call to speak by.
fn run(child: &Child) -> (Option<Inspection>, i32) {
    let page = sys::shared_page().unwrap();
    let (entered, gate) = (&page[0], &page[1]);
    entered.store(WAITING, Ordering::SeqCst);
    let (kept, also_kept) = std::io::pipe().unwrap();
    // SAFETY: this process has one thread.
    match unsafe { sys::fork_into(0, None) }.unwrap() {
        sys::Side::Child => {
            let result = (child.enter)(&[kept.as_fd(), also_kept.as_fd()]);
            entered.store(result.map_or_else(|error| error.errno as u32, |()| 0), Ordering::SeqCst);
            while gate.load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            (child.then)();
            // SAFETY: ends this process of one thread, takes no pointer.
            unsafe { libc::syscall(child.end, 7) };
            unreachable!()
        }
        sys::Side::Parent { pid, pidfd } => {
            let give_up = Instant::now() + Duration::from_secs(10);
            let mut status = 0;
            let mut ended = || {
                // SAFETY: asks after the child just made, into a local.
                unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) != 0 }
            };
            while entered.load(Ordering::SeqCst) == WAITING && !ended() {
                assert!(Instant::now() < give_up, "it hangs on its way in");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(entered.load(Ordering::SeqCst), 0, "it could not enter: {status:#x}");
            let seen = inspect(pid).ok();
            gate.store(1, Ordering::SeqCst);
            // SAFETY: waits for the child just made, into a local.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            drop(pidfd);
            (seen, status)
        }
    }
}

fn exited(status: i32) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7
}

fn refused(status: i32) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
}

fn nothing() {}

fn open_something() {
    let _ = std::fs::File::open("/etc/passwd");
}

fn make_a_socket() {
    // SAFETY: takes no pointer.
    unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
}

fn kick_a_thread() {
    let own = std::process::id();
    // SAFETY: takes no pointer. Were it allowed, the process would end by another signal than the test expects.
    unsafe { libc::syscall(libc::SYS_tgkill, own, own, libc::SIGKILL) };
}

fn as_supervisor(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    supervisor::confine(&how())?;
    supervisor::confine_loop(&how())
}

fn as_vcpu(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    supervisor::confine(&how())?;
    supervisor::confine_vcpu(&how())
}

fn as_loader(kept: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    loader::confine(&how(), kept)
}

/// Without seccomp, the file system must be gone by itself.
fn as_supervisor_without_seccomp(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    let how = Confinement { layers: LayerSet::all().without(Layer::Seccomp), ..how() };
    supervisor::confine(&how)?;
    supervisor::confine_loop(&how)
}

/// Without no_new_privs Landlock must still be there.
fn as_supervisor_without_no_new_privs(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    let layers = LayerSet::all().without(Layer::NoNewPrivs);
    supervisor::confine(&Confinement { layers, ..how() })
}

/// Landlock says EACCES where an empty root says ENOENT.
fn find_landlock() {
    let error = std::fs::read_dir("/").map(drop).unwrap_err();
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        sys::exit_now(1);
    }
}

fn without_no_new_privs_landlock_is_left() {
    let enter = as_supervisor_without_no_new_privs;
    let (_, status) = run(&Child { enter, then: find_landlock, end: libc::SYS_exit_group });
    assert!(exited(status), "{status:#x}");
}

fn find_no_file() {
    let root = std::fs::read_dir("/");
    let reachable =
        std::fs::File::open("/etc/passwd").is_ok() || std::fs::File::open("/proc/self/status").is_ok();
    if reachable || root.is_ok() {
        sys::exit_now(1);
    }
}

fn check_confined(seen: Option<Inspection>) {
    let Some(seen) = seen else {
        // It is not dumpable, so an ordinary user may not look.
        assert!(!is_root());
        return;
    };
    assert_eq!(seen.capabilities, [0; 5]);
    assert!(seen.no_new_privs);
    assert_eq!(seen.seccomp, 2);
    assert_eq!(seen.uids, [0x7200_003f; 4]);
    assert!(seen.groups.is_empty());
    let [root] = &seen.mounts[..] else { panic!("{:?}", seen.mounts) };
    assert!(root.kind == "tmpfs" && root.options.contains("ro"));
    assert_eq!(seen.limits["Max core file size"], (Some(0), Some(0)));
}

fn the_supervisor_is_confined() {
    let (seen, status) = run(&Child { enter: as_supervisor, then: nothing, end: libc::SYS_exit_group });
    check_confined(seen);
    assert!(exited(status), "{status:#x}");
    for then in [open_something, make_a_socket, kick_a_thread] {
        let (_, status) = run(&Child { enter: as_supervisor, then, end: libc::SYS_exit_group });
        assert!(refused(status), "{status:#x}");
    }
}

fn a_vcpu_thread_is_confined() {
    let (seen, status) = run(&Child { enter: as_vcpu, then: nothing, end: libc::SYS_exit });
    check_confined(seen);
    assert!(exited(status), "{status:#x}");
    for then in [open_something, make_a_socket, kick_a_thread] {
        let (_, status) = run(&Child { enter: as_vcpu, then, end: libc::SYS_exit });
        assert!(refused(status), "{status:#x}");
    }
}

fn the_loader_is_confined_and_keeps_only_what_it_is_given() {
    let (seen, status) = run(&Child { enter: as_loader, then: nothing, end: libc::SYS_exit_group });
    if let Some(seen) = &seen {
        assert_eq!(seen.descriptors.len(), 2, "{:?}", seen.descriptors);
    }
    check_confined(seen);
    assert!(exited(status), "{status:#x}");
    let (_, status) = run(&Child { enter: as_loader, then: open_something, end: libc::SYS_exit_group });
    assert!(refused(status), "{status:#x}");
}

fn without_seccomp_no_path_is_left() {
    let (_, status) =
        run(&Child { enter: as_supervisor_without_seccomp, then: find_no_file, end: libc::SYS_exit_group });
    assert!(exited(status), "{status:#x}");
}

/// Has the kernel answer `PR_SET_SPECULATION_CTRL` with `EDOM`, and the question how that stands with `ERANGE`.
fn refuse_speculation_controls() {
    // linux/filter.h: load a word, jump if it is equal, return.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let errno = |number: i32| libc::SECCOMP_RET_ERRNO | number as u32;
    let code: [(u16, u8, u8, u32); 8] = [
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 3, libc::SYS_prctl as u32),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 2, 0, libc::PR_SET_SPECULATION_CTRL as u32),
        (EQUAL, 2, 0, libc::PR_GET_SPECULATION_CTRL as u32),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        (RETURN, 0, 0, errno(libc::EDOM)),
        (RETURN, 0, 0, errno(libc::ERANGE)),
    ];
    let bytes = code.iter().flat_map(|(code, yes, no, value)| {
        [&code.to_ne_bytes()[..], &[*yes, *no], &value.to_ne_bytes()].concat()
    });
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    cellblock_channel::process::install::install(&bytes.collect::<Vec<_>>(), false).unwrap();
}

/// Whether `entered` ended where speculation is held back, by the answer to that.
fn asked_for(entered: Result<(), JailError>) -> Result<(), JailError> {
    let asked = JailError { step: Step::Speculation, errno: libc::EDOM };
    if entered == Err(asked) {
        Ok(())
    } else {
        Err(JailError { step: Step::Speculation, errno: libc::EPROTO })
    }
}

fn supervisor_asks(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    refuse_speculation_controls();
    asked_for(supervisor::confine(&how()))
}

fn spawner_asks(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    refuse_speculation_controls();
    let proc = std::fs::File::open("/proc").unwrap();
    let plan = spawner::Plan {
        layers: LayerSet::none().with(Layer::Speculation),
        privileged: is_root(),
        ids: spawner::Ids::Own,
        proc: proc.as_fd(),
        binaries: Vec::new(),
        file_size: 0,
        refusal: Refusal::Kill,
    };
    asked_for(spawner::enter(&plan, || Ok(())))
}

fn supervisor_asks_for_nothing(_: &[std::os::fd::BorrowedFd]) -> Result<(), JailError> {
    refuse_speculation_controls();
    let layers = LayerSet::none().with(Layer::Rlimits);
    supervisor::confine(&Confinement { layers, id: None, ..how() })
}

/// The spawner's workers, and the supervisor's threads, have it from them.
fn speculation_is_held_back_unless_that_is_left_out() {
    for enter in [supervisor_asks, spawner_asks, supervisor_asks_for_nothing] {
        let (_, status) = run(&Child { enter, then: nothing, end: libc::SYS_exit_group });
        assert!(exited(status), "{status:#x}");
    }
    let (seen, _) = run(&Child { enter: as_supervisor, then: nothing, end: libc::SYS_exit_group });
    for kind in Speculation::ALL {
        match (kind.control().unwrap(), &seen) {
            (Control::Own { .. }, Some(seen)) => {
                let words = &seen.speculation[kind.name()];
                assert!(words.iter().all(|word| word.contains(" force ")), "{words:?}");
            }
            (control, _) => eprintln!("SKIP: {} is not held back here: {control}", kind.name()),
        }
    }
}

fn main() -> ExitCode {
    let who = if is_root() { "root" } else { "user" };
    let cases: [(&str, fn()); 6] = [
        ("the_supervisor_is_confined", the_supervisor_is_confined),
        ("a_vcpu_thread_is_confined", a_vcpu_thread_is_confined),
        (
            "the_loader_is_confined_and_keeps_only_what_it_is_given",
            the_loader_is_confined_and_keeps_only_what_it_is_given,
        ),
        ("without_no_new_privs_landlock_is_left", without_no_new_privs_landlock_is_left),
        ("without_seccomp_no_path_is_left", without_seccomp_no_path_is_left),
        (
            "speculation_is_held_back_unless_that_is_left_out",
            speculation_is_held_back_unless_that_is_left_out,
        ),
    ];
    let mut passed = true;
    for (name, case) in cases {
        let ok = std::panic::catch_unwind(case).is_ok();
        println!("test {who}::{name} ... {}", if ok { "ok" } else { "FAILED" });
        passed &= ok;
    }
    if is_root() {
        match Command::new("/proc/self/exe").uid(65534).gid(65534).status() {
            Ok(status) => passed &= status.success(),
            Err(error) => eprintln!("SKIP: the test program cannot be run as uid 65534: {error}"),
        }
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
