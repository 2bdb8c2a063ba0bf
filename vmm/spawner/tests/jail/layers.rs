//! What /proc says of a worker and of the spawner, with all layers and without each.

use std::collections::BTreeSet;

use cellblock_jail::inspect::{Inspection, inspect};
use cellblock_jail::{Layer, LayerSet, Limits};
use cellblock_spawner::{MAX_PROCESSES, Manifest, SpawnerError};

use crate::machine::{Prober, Vm, default_layers, is_root};

fn own() -> Inspection {
    inspect(std::process::id() as i32).unwrap()
}

fn differs(one: &Inspection, other: &Inspection, namespace: &str) -> bool {
    one.namespaces[namespace] != other.namespaces[namespace]
}

/// What is wrong with a worker that should have `layers`: the layers that are missing, or that are there unasked.
fn wrong(worker: &Inspection, layers: LayerSet) -> Vec<String> {
    let host = own();
    let mut wrong = Vec::new();
    let mut expect = |layer: Layer, there: bool| {
        if there != layers.has(layer) {
            wrong.push(format!("{layer} is {}", if there { "there unasked" } else { "missing" }));
        }
    };
    expect(Layer::User, differs(worker, &host, "user"));
    expect(Layer::Pid, differs(worker, &host, "pid"));
    expect(Layer::Mount, differs(worker, &host, "mnt"));
    expect(Layer::Net, differs(worker, &host, "net"));
    expect(Layer::Ipc, differs(worker, &host, "ipc"));
    expect(Layer::Uts, differs(worker, &host, "uts"));
    expect(Layer::NoNewPrivs, worker.no_new_privs);
    expect(Layer::Seccomp, worker.seccomp == 2);
    // Without a user namespace of its own a process is counted together with others of its uid.
    let threads = Some(if layers.has(Layer::User) { 2 } else { 2 * MAX_PROCESSES as u64 });
    expect(Layer::Rlimits, worker.limits["Max processes"] == (threads, threads));
    wrong
}

pub(crate) fn every_layer(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    let running = vm.worker(0);
    let worker = inspect(running.host_pid).unwrap();
    assert_eq!(wrong(&worker, default_layers()), Vec::<String>::new());
    // An ordinary user may not look at the spawner, which is not dumpable.
    if let Ok(spawner) = inspect(vm.pid) {
        assert!(differs(&worker, &spawner, "user"), "a user namespace of its own");
        assert!(differs(&worker, &spawner, "pid"), "a pid namespace of its own");
        assert!(differs(&worker, &spawner, "mnt"), "a mount namespace of its own");
        assert!(!differs(&worker, &spawner, "net"), "the VM's network namespace");
    }
    assert_eq!(worker.capabilities, [0; 5]);
    assert_eq!(worker.seccomp_filters, 2, "the spawner's and its own");
    assert_eq!(worker.descriptors.keys().copied().collect::<Vec<_>>(), [3]);
    assert!(worker.descriptors[&3].starts_with("socket:"));
    assert_eq!(worker.uid_map.len(), 1);
    assert_eq!(worker.uid_map[0][1..], [worker.uids[0], 1], "it maps its own uid and no other");
    assert_eq!(worker.threads, 1);
    let [root] = &worker.mounts[..] else { panic!("{:?}", worker.mounts) };
    assert_eq!((root.point.as_str(), root.kind.as_str()), ("/", "tmpfs"));
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(root.options.contains(option), "{option}: {:?}", root.options);
    }
    let small = Limits::SMALL;
    let both = |value: u64| (Some(value), Some(value));
    assert_eq!(worker.limits["Max open files"], both(small.files.into()));
    assert_eq!(worker.limits["Max address space"], both(small.address_space));
    assert_eq!(worker.limits["Max file size"], both(0));
    assert_eq!(worker.limits["Max core file size"], both(0));
    assert_eq!(worker.limits["Max locked memory"], both(0));
}

pub(crate) fn spawner(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    confined(vm.pid, &["socket", "pidfd", "uids"], 1);
    // The supervisor's, and the front's for offers.
    confined(vm.spawner.get(), &["socket", "/proc", "prober", "landlock", "uids"], 2);
}

/// Init or the spawner, process `pid`, which holds descriptors of the `allowed` kinds, and so many sockets.
fn confined(pid: i32, allowed: &[&str], sockets: usize) {
    let spawner = inspect(pid).unwrap_or_else(|error| {
        // Not dumpable: an ordinary user's own spawner shows only part of itself.
        assert!(!is_root(), "{error}");
        eprintln!("SKIP: {error}");
        own()
    });
    if spawner.pid != pid {
        return;
    }
    let [root] = &spawner.mounts[..] else { panic!("{:?}", spawner.mounts) };
    assert!(root.kind == "tmpfs" && root.options.contains("ro"));
    assert!(spawner.no_new_privs);
    assert_eq!((spawner.seccomp, spawner.seccomp_filters), (2, 1));
    // KILL, SETGID, SETUID, SETPCAP, SYS_ADMIN, in its own user namespace.
    let kept = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 21;
    assert_eq!(spawner.capabilities, [0, kept, kept, kept, 0]);
    let kinds: BTreeSet<&str> = spawner.descriptors.values().map(|target| kind(target)).collect();
    assert!(kinds.iter().all(|kind| allowed.contains(kind)), "{:?}", spawner.descriptors);
    assert_eq!(spawner.descriptors.values().filter(|target| target.starts_with("socket:")).count(), sockets);
    if is_root() {
        assert!(spawner.uids.iter().all(|uid| *uid >= 0x7100_0000), "{:?}", spawner.uids);
        assert_eq!(spawner.uid_map, [[0, spawner.uids[0], 64]]);
        assert!(spawner.groups.is_empty());
    }
}

fn kind(target: &str) -> &str {
    match target {
        _ if target.starts_with("socket:") => "socket",
        _ if target.ends_with("/prober") => "prober",
        _ if target.contains("landlock") => "landlock",
        _ if target.contains("pidfd") => "pidfd",
        _ if target.contains("cellblock-test-uids") => "uids",
        other => other,
    }
}

pub(crate) fn each_without(prober: &Prober) {
    for layer in Layer::ALL.into_iter().filter(|layer| *layer != Layer::Cgroup) {
        let layers = default_layers().without(layer);
        if layers.check(is_root()).is_err() {
            // Only `user`, for an ordinary user: see `conflict`.
            assert_eq!(layer, Layer::User);
            continue;
        }
        let vm = Vm::start(vec![prober.entry()], layers);
        let running = vm.worker(0);
        let worker = inspect(running.host_pid).unwrap();
        assert_eq!(wrong(&worker, layers), Vec::<String>::new(), "without {layer}");
        if layer != Layer::Caps {
            assert_eq!(worker.capabilities[1..3], [0; 2], "without {layer}");
        }
        assert_eq!(worker.descriptors.len(), 1, "without {layer}");
    }
}

pub(crate) fn conflict(prober: &Prober) {
    if is_root() {
        return;
    }
    let layers = default_layers().without(Layer::User);
    let manifest = Manifest {
        workers: vec![prober.entry()],
        layers,
        ids: cellblock_jail::spawner::Ids::Own,
        lock: None,
        tombstone: None,
        refusal: cellblock_jail::Refusal::Kill,
        cgroup: None,
    };
    let Err(SpawnerError::Layers(conflict)) = cellblock_spawner::start(manifest) else {
        panic!("it started")
    };
    assert!(conflict.to_string().contains("--without-layer pid"), "{conflict}");
    // And without all that it names it starts.
    let layers = conflict.impossible.iter().fold(layers, |layers, layer| layers.without(*layer));
    let vm = Vm::start(vec![prober.entry()], layers);
    let running = vm.worker(0);
    let worker = inspect(running.host_pid).unwrap();
    assert!(worker.no_new_privs && worker.seccomp == 2);
    assert_eq!(worker.capabilities[1..3], [0; 2]);
}

pub(crate) fn own_ids(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry(), prober.entry()], default_layers());
    let workers = [vm.worker(0), vm.worker(1)];
    let [one, other] = workers.each_ref().map(|worker| inspect(worker.host_pid).unwrap());
    if is_root() {
        assert!(one.uids[0] >= 0x7100_0001 && one.uids == one.gids, "{one:?}");
        assert_ne!(one.uids, other.uids);
        assert!(one.groups.is_empty());
    } else {
        assert_eq!(one.uids[0], cellblock_jail::sys::own_ids().0);
    }
}
