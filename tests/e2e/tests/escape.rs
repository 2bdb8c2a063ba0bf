//! A compromised worker gets nowhere: hostile ones (`tests/escape`) in the place of every device's, under its own policy, in the jail
//! that ships, with seccomp and without.
#![allow(unsafe_code)] // What the hostile workers reach for is made by calls that nobody wraps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::{BTreeMap, BTreeSet};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use cellblock_e2e::hostile_workers::{infiltrate, judge, lab};
use cellblock_e2e::{User, skip};
use cellblock_escape::bait;

/// Every device, and the tombstone.
const EVERYBODY: &[&str] = &[];

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

/// What is on the host for the hostile workers to find.
struct Bait {
    shared: i32,
    queue: i32,
    semaphore: i32,
    _listener: UnixListener,
}

impl Bait {
    fn lay() -> Bait {
        let names = bait::Bait::of(std::process::id());
        let address = SocketAddr::from_abstract_name(names.listener()).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mode = libc::IPC_CREAT | 0o666;
        // SAFETY: takes numbers.
        let shared = unsafe { libc::shmget(names.ipc_key, 4096, mode) };
        // SAFETY: takes numbers.
        let queue = unsafe { libc::msgget(names.ipc_key, mode) };
        // SAFETY: takes numbers.
        let semaphore = unsafe { libc::semget(names.ipc_key, 1, mode) };
        assert!(shared >= 0 && queue >= 0 && semaphore >= 0, "{}", std::io::Error::last_os_error());
        // In a session keyring that is this thread's and its children's, and ends with them.
        const JOIN_SESSION_KEYRING: i32 = 1;
        const SESSION_KEYRING: i32 = -3;
        // SAFETY: takes numbers; without a name.
        let mut key = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0, 0, 0, 0) };
        if key >= 0 {
            let (kind, name, value) = (c"user".as_ptr(), names.key().as_ptr(), c"x".as_ptr());
            // SAFETY: reads two texts and a byte.
            key = unsafe { libc::syscall(libc::SYS_add_key, kind, name, value, 1, SESSION_KEYRING) };
        }
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
    let Some(whole) = lab("escape") else { return };
    let workers: Vec<_> =
        whole.places().workers().into_iter().map(|worker| (worker.clone(), worker)).collect();
    for (worker, policy) in &workers {
        infiltrate(&whole, worker, policy);
    }
    let _bait = Bait::lay();
    let mut passed = BTreeMap::<_, BTreeSet<_>>::new();
    for user in whole.users() {
        for seccomp in [true, false] {
            let these = judge(&whole, &user, seccomp, &workers);
            if seccomp {
                these.into_iter().for_each(|(case, devices)| passed.entry(case).or_default().extend(devices));
            }
        }
    }
    // Who answers in a failed device's place has a policy of its own; all else of its jail is that device's, and judged above.
    let Some(other) = lab("tombstone") else { return };
    infiltrate(&other, "rtc", "tombstone");
    let these = judge(&other, &User::Own, true, &[("rtc".to_owned(), "tombstone".to_owned())]);
    these.into_iter().for_each(|(case, devices)| passed.entry(case).or_default().extend(devices));
    let mut all: BTreeSet<_> = workers.into_iter().map(|(worker, _)| worker).collect();
    all.insert("tombstone".to_owned());
    let names = |devices: &[&str]| match devices {
        EVERYBODY => all.clone(),
        some => some.iter().copied().map(str::to_owned).collect(),
    };
    let expected: BTreeMap<_, _> = PASSES.iter().map(|(case, devices)| (*case, names(devices))).collect();
    assert_eq!(passed, expected, "what the policies let pass");
}
