//! `cellblock ps --security`: what the kernel says of each process, against what it was started with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::process::Command;

use cellblock_e2e::Lab;
use cellblock_e2e::lab::Plan;

#[test]
fn ps_security_finds_every_process_as_declared() {
    let Some(lab) = Lab::with_guests("declared") else { return };
    for user in lab.users() {
        let plan = lab.guest("hello").with_every_device().as_user(&user);
        let (_vm, tree) = plan.idle();
        let mut command = user.command(&lab.places().program());
        let own = command.args(["ps", &tree.id, "--security"]).output().unwrap();
        let output =
            Command::new(lab.places().program()).args(["ps", &tree.id, "--security"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("DIFFERS"), "{text}");
        // The front is outside; each device has a spare.
        let spares: u32 = tree.processes.iter().filter_map(|row| row.spares).sum();
        let jailed = tree.processes.len() - 1;
        assert!(text.matches("as declared").count() >= jailed, "{text}");
        assert!(text.matches("\n  spare ").count() >= spares as usize, "{text}");
        assert!(text.contains("not compared"), "{text}");
        let image = format!("{}.img (", lab.folder().join(&tree.id).display());
        assert!(text.contains(&image), "the disk's image is among its worker's descriptors: {text}");
        // Whoever started it may see less, and is told so.
        let text = String::from_utf8_lossy(&own.stdout);
        assert!(own.status.success() && text.contains("as declared"), "{text}");
    }
}

#[test]
fn ps_security_names_what_differs() {
    if !rustix::process::geteuid().is_root() {
        return cellblock_e2e::skip("only root can change another user's process");
    }
    let Some(lab) = Lab::with_guests("differs") else { return };
    let plan = lab.guest("hello").with_every_device();
    let (vm, tree) = plan.idle();
    give_a_mount(tree.pid("rtc").unwrap()).unwrap();
    let (fine, text) = security(&lab, &plan);
    let wanted = "DIFFERS: it sees the mounts / (tmpfs), / (tmpfs), not one empty read-only tmpfs";
    assert!(!fine && text.contains(wanted), "{text}");
    assert_eq!(text.matches("DIFFERS in").count(), 1, "{text}");
    // One that does not answer was not checked, which is no success.
    vm.signal(rustix::process::Signal::STOP).unwrap();
    let (fine, text) = security(&lab, &plan);
    vm.signal(rustix::process::Signal::CONT).unwrap();
    assert!(!fine && text.contains("NOT CHECKED: it does not answer"), "{text}");
}

/// What `ps --security` says of the VM of `plan`, and whether that is no failure.
fn security(lab: &Lab, plan: &Plan<'_>) -> (bool, String) {
    let output = Command::new(lab.places().program()).args(["ps", plan.id(), "--security"]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_vm_that_is_to_share_no_core_has_a_cookie_of_its_own_or_is_refused() {
    let Some(lab) = Lab::with_guests("cores") else { return };
    let plan = lab.guest("hello").with_every_device().with(["--core-sched"]);
    match cookie(0) {
        Err(libc::EINVAL) => {
            plan.start().wait().unwrap().assert(3, "--core-sched: this kernel has no core scheduling");
            cellblock_e2e::skip(
                "the kernel has no core scheduling: that VMs are refused was tested, not their cookies",
            );
        }
        Err(libc::ENODEV) => {
            let vm = plan.start();
            vm.expect_message("--core-sched does nothing").unwrap();
            cellblock_e2e::skip("each core runs one thread: the note was tested, not the cookies");
        }
        own => {
            let (_vm, tree) = plan.idle();
            let (fine, text) = security(&lab, &plan);
            assert!(fine && text.contains("core cookies"), "{text}");
            let mut seen: BTreeSet<_> = tree.processes.iter().map(|row| cookie(row.pid)).collect();
            assert_eq!(seen.len(), 2, "the front's, and the others': {seen:?}");
            assert!(!seen.contains(&Ok(0)) && !seen.contains(&own), "{seen:?}");
            let (_other, others) = lab.guest("hello").with(["--core-sched"]).idle();
            seen.extend(others.processes.iter().map(|row| cookie(row.pid)));
            assert_eq!(seen.len(), 4, "another VM's are others: {seen:?}");
        }
    }
}

/// With a kernel's answers that this one may not give.
#[test]
fn ps_security_sees_that_a_cookie_was_not_had() {
    let Some(lab) = Lab::with_guests("cookie") else { return };
    let pretended = |errno| {
        let plan = lab.guest("hello").with(["--core-sched"]);
        let start = || {
            answer_core_scheduling(errno).unwrap();
            plan.start()
        };
        let vm = std::thread::scope(|scope| scope.spawn(start).join().unwrap());
        (plan, vm)
    };
    let (_, vm) = pretended(libc::EDOM);
    vm.wait().unwrap().assert(3, "--core-sched: the kernel refuses it");
    // Nobody shares a core here.
    let (plan, vm) = pretended(libc::ENODEV);
    vm.expect_message("--core-sched does nothing: each core of this host runs one thread").unwrap();
    vm.expect_any().unwrap();
    vm.processes(plan.id()).unwrap();
    let (fine, text) = security(&lab, &plan);
    assert!(fine, "{text}");
    drop(vm);
    // As if it had one.
    let (plan, vm) = pretended(0);
    vm.expect_any().unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    let (fine, text) = security(&lab, &plan);
    let differing = text.matches("DIFFERS: its core-scheduling cookies are").count();
    assert!(!fine && differing >= tree.processes.len() - 1, "{text}");
}

/// The core-scheduling cookie of process `pid` (0: this thread), or the error number.
#[allow(unsafe_code)] // prctl.
fn cookie(pid: i32) -> Result<u64, i32> {
    let mut cookie = 0u64;
    let (get, thread) = (libc::PR_SCHED_CORE_GET, libc::PR_SCHED_CORE_SCOPE_THREAD);
    // SAFETY: the kernel writes one 8-byte cookie.
    let result = unsafe { libc::prctl(libc::PR_SCHED_CORE, get, pid, thread, &raw mut cookie) };
    let error = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if result == 0 { Ok(cookie) } else { Err(error()) }
}

/// Has the kernel answer this thread, and all that it starts, with `errno` whenever a core-scheduling cookie is wanted.
#[allow(unsafe_code)] // prctl and seccomp, of this thread alone.
fn answer_core_scheduling(errno: i32) -> std::io::Result<()> {
    // linux/filter.h: load a word, jump if it is equal, return.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FIRST_ARGUMENT: u32 = 16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut code = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 0, 2, libc::SYS_prctl as u32),
        step(LOAD, 0, 0, FIRST_ARGUMENT),
        step(EQUAL, 1, 0, libc::PR_SCHED_CORE as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: takes numbers.
    let mut result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 {
        let filter = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the kernel reads the program, which is whole.
        result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, filter, &raw const program) };
    }
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Mounts something where `pid` sees it.
#[allow(unsafe_code)] // Enters its namespace, in a thread of its own.
fn give_a_mount(pid: i32) -> std::io::Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    let enter = move || {
        let (none, root, kind) = (c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr());
        let steps: [&dyn Fn() -> i32; 3] = [
            // SAFETY: takes a number; it concerns this thread alone.
            &|| unsafe { libc::unshare(libc::CLONE_FS) },
            // SAFETY: takes numbers; it concerns this thread alone, which shares no working directory any more.
            &|| unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) },
            // SAFETY: reads three texts.
            &|| unsafe { libc::mount(none, root, kind, 0, std::ptr::null()) },
        ];
        let failed = steps.iter().any(|step| step() != 0);
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    std::thread::spawn(enter).join().expect("it does not panic")
}
