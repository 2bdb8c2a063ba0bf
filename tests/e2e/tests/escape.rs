//! A compromised worker gets nowhere: hostile ones (`tests/escape`) in the place of every device's, under its own policy, in the jail
//! that ships, with seccomp and without.
#![allow(unsafe_code)] // What the hostile workers reach for is made by calls that nobody wraps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::{BTreeMap, BTreeSet};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use cellblock_e2e::hostile_workers::{infiltrate, judge, lab};
use cellblock_e2e::{User, skip};
use cellblock_escape::{IPC_KEY, KEY, LISTENER};

/// What policies let pass, for the rest of the jail to hold: each with the devices whose policies do. Whatever else reaches the kernel
/// is a policy that has become wider.
const PASSES: &[(&str, &[&str])] = &[
    // A policy does not look into a message: the kernel does.
    ("forge_credentials", EVERYBODY),
    // F_GETFD, of what is not open.
    ("use_inherited_descriptor", EVERYBODY),
    // Interrupts are raised by write(2).
    ("write_requests", EVERYBODY),
    // A qcow2 image grows, and its tables are allocated; guest memory has been mapped before.
    ("grow_image", &["block"]),
    ("write_beyond_image", &["block"]),
    ("grow_shared_memory", &["block"]),
    ("shrink_shared_memory", &["block"]),
    ("map_requests_writable", &["block"]),
    ("make_requests_writable", &["block"]),
    ("memory_bomb", &["block"]),
    ("heap_bomb", &["block"]),
    // Discarded ranges.
    ("punch_hole_into_requests", &["block"]),
];

const EVERYBODY: &[&str] = &[
    "acpi-power",
    "balloon",
    "block",
    "console",
    "entropy",
    "i8042",
    "net",
    "rtc",
    "serial",
    "tombstone",
    "vsock",
];

/// What is on the host for the hostile workers to find.
struct Bait {
    shared: i32,
    queue: i32,
    semaphore: i32,
    _listener: UnixListener,
}

impl Bait {
    fn lay() -> Bait {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(LISTENER).unwrap()).unwrap();
        let mode = libc::IPC_CREAT | 0o666;
        // SAFETY: takes numbers.
        let shared = unsafe { libc::shmget(IPC_KEY, 4096, mode) };
        // SAFETY: takes numbers.
        let queue = unsafe { libc::msgget(IPC_KEY, mode) };
        // SAFETY: takes numbers.
        let semaphore = unsafe { libc::semget(IPC_KEY, 1, mode) };
        assert!(shared >= 0 && queue >= 0 && semaphore >= 0, "{}", std::io::Error::last_os_error());
        const SESSION_KEYRING: i32 = -3;
        // SAFETY: reads two texts and a byte.
        let key = unsafe {
            let (kind, name, value) = (c"user".as_ptr(), KEY.as_ptr(), c"x".as_ptr());
            libc::syscall(libc::SYS_add_key, kind, name, value, 1, SESSION_KEYRING)
        };
        if key < 0 {
            let error = std::io::Error::last_os_error();
            skip(&format!("no key in the session's keyring to be found: {error}"));
        }
        Bait { shared, queue, semaphore, _listener: listener }
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        // SAFETY: removes what `lay` has made, as the next two.
        unsafe { libc::shmctl(self.shared, libc::IPC_RMID, std::ptr::null_mut()) };
        // SAFETY: as above.
        unsafe { libc::msgctl(self.queue, libc::IPC_RMID, std::ptr::null_mut()) };
        // SAFETY: as above.
        unsafe { libc::semctl(self.semaphore, 0, libc::IPC_RMID) };
    }
}

#[test]
fn a_compromised_worker_gets_nowhere_whichever_layer_must_hold_it() {
    let Some(lab) = lab("escape") else { return };
    let workers: Vec<_> = lab.places().workers().into_iter().map(|worker| (worker.clone(), worker)).collect();
    for (worker, policy) in &workers {
        infiltrate(&lab, worker, policy);
    }
    let _bait = Bait::lay();
    let mut passed = BTreeMap::<_, BTreeSet<_>>::new();
    for user in lab.users() {
        for seccomp in [true, false] {
            let these = judge(&lab, &user, seccomp, &workers);
            if seccomp {
                these.into_iter().for_each(|(case, devices)| passed.entry(case).or_default().extend(devices));
            }
        }
    }
    // Who answers in a failed device's place has a policy of its own.
    infiltrate(&lab, "rtc", "tombstone");
    let these = judge(&lab, &User::Own, true, &[("rtc".to_owned(), "tombstone".to_owned())]);
    these.into_iter().for_each(|(case, devices)| passed.entry(case).or_default().extend(devices));
    let here = |device: &&str| *device == "tombstone" || workers.iter().any(|(worker, _)| worker == device);
    let names =
        |devices: &[&str]| devices.iter().copied().filter(here).map(str::to_owned).collect::<BTreeSet<_>>();
    let expected: BTreeMap<_, _> = PASSES.iter().map(|(case, devices)| (*case, names(devices))).collect();
    assert_eq!(passed, expected, "what the policies let pass");
}
