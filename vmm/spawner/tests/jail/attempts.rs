//! What a compromised worker would try.

use cellblock_jail::{Layer, Limits};
use cellblock_spawner::protocol::Cause;

use crate::machine::{Prober, Vm, default_layers, is_root};

const SIGSYS: Cause = Cause::Signaled { signal: 31, core: false };

pub(crate) fn strict(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    let own = i64::from(std::process::id());
    for (what, number) in [
        ('o', 0),
        ('c', 0),
        ('s', 0),
        ('A', 0),
        ('k', own),
        ('f', 0),
        ('u', 0),
        ('n', 0),
        ('m', 0),
        ('p', own),
        ('U', 0),
    ] {
        let worker = vm.worker(0);
        assert_eq!(worker.try_attempt(what, number), None, "{what}");
        assert_eq!(vm.end_of(0), SIGSYS, "{what}");
    }
}

pub(crate) fn loose(prober: &Prober) {
    let listener = abstract_listener();
    let mut entry = prober.entry();
    entry.limits = Limits { threads: 1, ..Limits::SMALL };
    let vm = Vm::start(vec![entry], default_layers().without(Layer::Seccomp));
    let worker = vm.worker(0);
    let own = i64::from(std::process::id());
    let refused = |what: char, number: i64, errnos: &[i32]| {
        let (result, errno) = worker.attempt(what, number);
        assert!(result < 0 && errnos.contains(&errno), "{what}: {result}, errno {errno}");
    };
    assert_eq!(worker.attempt('l', 0).0, 1 << 3, "one descriptor");
    refused('o', 0, &[libc::ENOENT]);
    refused('d', 0, &[libc::EACCES]);
    refused('c', 0, &[libc::EACCES, libc::EROFS]);
    refused('s', 0, &[libc::EACCES, libc::ENETUNREACH]);
    refused('A', 0, &[libc::EPERM, libc::ECONNREFUSED]);
    refused('k', own, &[libc::ESRCH]);
    refused('k', worker.host_pid.into(), &[libc::ESRCH]);
    refused('f', 0, &[libc::EAGAIN]);
    refused('n', 0, &[libc::EPERM]);
    refused('m', 0, &[libc::EPERM]);
    refused('p', own, &[libc::EPERM, libc::ESRCH]);
    refused('x', 0, &[libc::EBADF]);
    refused('M', 1 << 30, &[libc::ENOMEM]);
    if is_root() {
        refused('U', 0, &[libc::EINVAL]);
    }
    assert_eq!(worker.attempt('M', 1 << 20).0, 0, "small maps are possible");
    assert_eq!(worker.attempt('P', 0).0, 0, "its parent is out of sight");
    assert_eq!(worker.attempt('h', 0).0, 1, "the host's name is hidden");
    drop(listener);
}

/// Reachable by name from the host's network namespace.
fn abstract_listener() -> std::os::unix::net::UnixListener {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name("cellblock-test").unwrap();
    std::os::unix::net::UnixListener::bind_addr(&address).unwrap()
}

pub(crate) fn threads(prober: &Prober) {
    for threads in [1, 2, 4] {
        let mut entry = prober.entry();
        entry.limits = Limits { threads, ..Limits::SMALL };
        let vm = Vm::start(vec![entry], default_layers().without(Layer::Seccomp));
        assert_eq!(vm.worker(0).attempt('t', 0).0, i64::from(threads) - 1);
    }
    let mut entry = prober.entry();
    entry.limits = Limits { threads: 1, ..Limits::SMALL };
    let vm = Vm::start(vec![entry], default_layers().without(Layer::Seccomp).without(Layer::Rlimits));
    assert_eq!(vm.worker(0).attempt('t', 0).0, 16, "the check can fail");
}

/// The spawner's own limits must leave room for its workers': nobody may raise a limit again.
pub(crate) fn file_sizes(prober: &Prober) {
    let mut entry = prober.entry();
    entry.limits = Limits { threads: 2, file_size: 1 << 40, ..Limits::SMALL };
    let vm = Vm::start(vec![entry, prober.entry()], default_layers().without(Layer::Seccomp));
    let (large, none) = (vm.worker(0), vm.worker(1));
    assert_eq!(large.attempt('t', 0).0, 1);
    assert_eq!(none.attempt('t', 0).0, i64::from(Limits::SMALL.threads) - 1);
}
