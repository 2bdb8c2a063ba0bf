//! `cellblock ps --security`: what the kernel says of each process, against what it was started with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::os::fd::AsRawFd;
use std::process::Command;

use cellblock_e2e::Lab;

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
    let output = Command::new(lab.places().program()).args(["ps", plan.id(), "--security"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = "DIFFERS: it sees the mounts / (tmpfs), / (tmpfs), not one empty read-only tmpfs";
    assert!(!output.status.success() && text.contains(wanted), "{text}");
    assert_eq!(text.matches("DIFFERS in").count(), 1, "{text}");
    // One that does not answer was not checked, which is no success.
    vm.signal(rustix::process::Signal::STOP).unwrap();
    let output = Command::new(lab.places().program()).args(["ps", plan.id(), "--security"]).output().unwrap();
    vm.signal(rustix::process::Signal::CONT).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("NOT CHECKED: it does not answer"), "{text}");
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
