//! What the host's `/proc` says of a VM's processes, and what happens when one dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeSet;

use cellblock_e2e::processes::{Process, Tree};
use cellblock_e2e::{Lab, User};
use rustix::process::{Pid, Signal, kill_process};

const VMM: [&str; 4] = ["front", "supervisor", "init", "spawner"];

fn workers(lab: &Lab, tree: &Tree) -> Vec<(String, Process)> {
    let expected = lab.places().workers();
    let found: Vec<_> = tree
        .processes
        .iter()
        .filter(|row| !VMM.contains(&&*row.process))
        .map(|row| (row.process.clone(), Process(row.pid)))
        .collect();
    assert_eq!(
        found.iter().map(|(name, _)| name).collect::<BTreeSet<_>>(),
        expected.iter().collect(),
        "{tree:?}"
    );
    found
}

/// Runs `check` on the idle VM of each user.
fn for_each_user(name: &str, check: impl Fn(&Lab, &User, &Tree)) {
    let Some(lab) = Lab::with_guests(name) else { return };
    for user in lab.users() {
        let plan = lab.guest("hello").with_every_device().as_user(&user);
        let (_vm, tree) = plan.idle();
        check(&lab, &user, &tree);
    }
}

#[test]
fn every_worker_is_filtered_and_powerless() {
    for_each_user("powerless", |lab, _, tree| {
        for (name, process) in workers(lab, tree) {
            for thread in process.threads().unwrap() {
                let thread = Process(thread);
                assert_eq!(thread.status("Seccomp").unwrap(), "2", "{name}");
                assert_eq!(thread.status("NoNewPrivs").unwrap(), "1", "{name}");
                for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                    assert_eq!(thread.status(set).unwrap(), "0000000000000000", "{set} of {name}");
                }
            }
        }
    });
}

#[test]
fn supervisor_and_spawner_are_filtered_and_powerless_too() {
    for_each_user("vmm", |_, _, tree| {
        for name in ["supervisor", "init", "spawner"] {
            let process = Process(tree.pid(name).unwrap());
            for thread in process.threads().unwrap() {
                assert_eq!(Process(thread).status("Seccomp").unwrap(), "2", "{name}");
                assert_eq!(Process(thread).status("NoNewPrivs").unwrap(), "1", "{name}");
            }
            if name == "supervisor" {
                assert_eq!(process.status("CapEff").unwrap(), "0000000000000000", "{name}");
                assert_eq!(process.status("CapBnd").unwrap(), "0000000000000000", "{name}");
            }
        }
    });
}

#[test]
fn every_worker_has_its_own_view_of_users_processes_and_files() {
    for_each_user("views", |lab, _, tree| {
        let host = Process(std::process::id() as i32);
        for kind in ["user", "pid", "mnt"] {
            let mut seen = BTreeSet::from([host.namespace(kind).unwrap()]);
            for (name, process) in workers(lab, tree) {
                assert!(seen.insert(process.namespace(kind).unwrap()), "{name} shares its {kind} namespace");
            }
        }
        // Empty ones, which the VM's workers may share with each other.
        for kind in ["net", "ipc", "uts"] {
            for (name, process) in workers(lab, tree) {
                assert_ne!(
                    process.namespace(kind).unwrap(),
                    host.namespace(kind).unwrap(),
                    "{kind} of {name}"
                );
            }
        }
    });
}

#[test]
fn a_worker_sees_one_empty_read_only_file_system() {
    for_each_user("files", |lab, _, tree| {
        for (name, process) in workers(lab, tree) {
            let mounts = process.mounts().unwrap();
            assert_eq!(mounts.len(), 1, "{name}: {mounts:?}");
            let (point, kind, options) = &mounts[0];
            assert!(
                point == "/" && kind == "tmpfs" && options.split(',').any(|word| word == "ro"),
                "{name}: {mounts:?}"
            );
            let root = std::fs::read_dir(format!("/proc/{}/root/", process.0)).map(Iterator::count);
            assert!(root.is_ok_and(|entries| entries == 0), "{name}'s root is not empty");
        }
    });
}

#[test]
fn a_worker_holds_only_what_it_was_granted() {
    const ALLOWED: [&str; 6] = [
        "socket:",
        "pipe:",
        "/memfd:",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[timerfd]",
    ];
    // Those that do DMA have guest memory, a disk has its image: exactly one file of the host, and a network device perhaps a
    // tap's queue.
    const DMA: [&str; 6] = ["balloon", "block", "console", "entropy", "net", "vsock"];
    if !rustix::process::geteuid().is_root() {
        return cellblock_e2e::skip("only root may look into processes that have made themselves undumpable");
    }
    for_each_user("granted", |lab, _, tree| {
        for (name, process) in workers(lab, tree) {
            let mut files = process.files().unwrap();
            if name == "block" {
                let images = files.extract_if(.., |file| file.ends_with(".img")).count();
                assert_eq!(images, 1, "{files:?}");
            }
            if name == "net" {
                assert!(files.extract_if(.., |file| file == "/dev/net/tun").count() <= 1, "{files:?}");
            }
            assert!(
                files.iter().all(|file| ALLOWED.iter().any(|kind| file.starts_with(kind))),
                "{name}: {files:?}"
            );
            // The supervisor's, and the one by which a vsock worker gets its streams, or passt's, or what is typed.
            let sockets = files.iter().filter(|file| file.starts_with("socket:")).count();
            assert!(
                sockets <= 1 + usize::from(matches!(&*name, "vsock" | "net" | "serial")),
                "{name}: {files:?}"
            );
            assert!(files.len() <= 24, "{name}: {files:?}");
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.0)).unwrap();
            let dma = DMA.contains(&&*name);
            assert_eq!(maps.contains("guest-ram"), dma, "{name}: those map guest memory that do DMA");
            assert_eq!(files.iter().any(|file| file.contains("guest-ram")), dma, "{name}: {files:?}");
        }
    });
}

#[test]
fn the_front_keeps_neither_kvm_nor_guest_memory() {
    for_each_user("front", |_, _, tree| {
        let front = Process(tree.pid("front").unwrap());
        let files = front.files().unwrap();
        assert!(!files.iter().any(|file| file.contains("kvm") || file.contains("guest-ram")), "{files:?}");
    });
}

#[test]
fn limits_are_set() {
    for_each_user("limits", |lab, _, tree| {
        for (name, process) in workers(lab, tree) {
            let limit = |what: &str| process.limit(what).unwrap();
            assert_eq!(limit("Max core file size"), "0", "{name}");
            for what in ["Max open files", "Max address space", "Max file size", "Max processes"] {
                assert_ne!(limit(what), "unlimited", "{what} of {name}");
            }
            let streams = if name == "vsock" { 256 } else { 0 };
            assert!(limit("Max open files").parse::<u32>().unwrap() <= 64 + streams, "{name}");
        }
    });
}

#[test]
fn as_root_every_worker_has_a_uid_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        return cellblock_e2e::skip("not root");
    }
    let Some(lab) = Lab::with_guests("uids") else { return };
    let (_first, first) = lab.guest("hello").with_every_device().idle();
    let (_second, second) = lab.guest("hello").with_every_device().idle();
    let mut seen = BTreeSet::from(["0".to_owned()]);
    for (name, process) in workers(&lab, &first).into_iter().chain(workers(&lab, &second)) {
        let uids = process.status("Uid").unwrap();
        let uid = uids.split_whitespace().next().unwrap().to_owned();
        assert!(seen.insert(uid), "{name} shares its uid: {uids}");
    }
}

#[test]
fn a_killed_worker_is_replaced_in_the_same_jail_and_the_vm_runs_on() {
    let Some(lab) = Lab::with_guests("killed") else { return };
    for user in lab.users() {
        let plan = lab.guest("echo").with_every_device().as_user(&user);
        let (mut vm, tree) = plan.idle();
        for name in lab.places().workers() {
            let before = Process(tree.pid(&name).unwrap());
            let bounding = before.status("CapBnd").unwrap();
            kill(before.0);
            vm.expect_message(&format!("device {name}: its successor serves (generation 2")).unwrap();
            let after = Process(vm.processes(plan.id()).unwrap().pid(&name).unwrap());
            assert_ne!(after.0, before.0, "{name}");
            assert_eq!(after.status("Seccomp").unwrap(), "2", "{name}");
            assert_eq!(after.status("CapBnd").unwrap(), bounding, "{name}");
        }
        vm.type_in("still there\n").unwrap();
        vm.expect("still there").unwrap();
        vm.type_in("\u{4}").unwrap();
        vm.wait().unwrap().assert(0, "guest powered off");
    }
}

#[test]
fn a_layer_that_is_left_out_is_gone_and_the_rest_stays() {
    let Some(lab) = Lab::with_guests("layers") else { return };
    let layers = ["--without-layer", "net", "--without-layer", "seccomp"];
    let (_vm, tree) = lab.guest("hello").with_every_device().with(layers).idle();
    let host = Process(std::process::id() as i32);
    for (name, process) in workers(&lab, &tree) {
        assert_eq!(process.namespace("net").unwrap(), host.namespace("net").unwrap(), "{name}");
        assert_ne!(process.namespace("pid").unwrap(), host.namespace("pid").unwrap(), "{name}");
        assert_eq!(process.status("Seccomp").unwrap(), "0", "{name}");
        assert_eq!(process.status("NoNewPrivs").unwrap(), "1", "{name}");
    }
}

#[test]
fn ps_shows_the_tree() {
    let Some(lab) = Lab::with_guests("ps") else { return };
    let plan = lab.guest("hello").with_every_device();
    let (vm, _) = plan.idle();
    // Its workers may serve before it does anything.
    vm.expect_any().unwrap();
    let tree = vm.processes(plan.id()).unwrap();
    for row in &tree.processes {
        assert!(Process(row.pid).alive(), "{row:?}");
    }
    for name in VMM {
        tree.pid(name).unwrap();
    }
    let serial = tree.processes.iter().find(|row| row.process == "serial").unwrap();
    assert!(serial.exits > Some(0), "{serial:?}");
    assert!(serial.layers.iter().any(|layer| layer == "seccomp"), "{serial:?}");
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}
