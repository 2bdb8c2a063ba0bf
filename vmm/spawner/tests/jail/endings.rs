//! How workers end, and that they do.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cellblock_channel::socket::{self, Control};
use cellblock_jail::{JailError, Layer, Step};
use cellblock_spawner::MAX_PROCESSES;
use cellblock_spawner::protocol::{Cause, Event, Program, Refusal};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::machine::{Prober, Vm, Worker, default_layers};

const REPEATS: usize = 50;

pub(crate) fn reported(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    let worker = vm.worker(0);
    assert_eq!(worker.try_attempt('e', 7), None);
    assert_eq!(vm.end_of(0), Cause::Exited(7));
    assert!(worker.ends());
    let worker = vm.worker(0);
    vm.client().examine(0, 0).unwrap();
    let Event::Examined { worker: 0, instance: 0, activity: Some(activity) } = vm.event() else {
        panic!("it is not seen")
    };
    assert!(matches!(activity.state, b'R' | b'S' | b'D'), "{activity:?}");
    vm.client().examine(0, 1).unwrap();
    assert_eq!(vm.event(), Event::Examined { worker: 0, instance: 1, activity: None });
    vm.client().kill(0, 0).unwrap();
    assert_eq!(vm.end_of(0), Cause::Signaled { signal: 9, core: false });
    drop(worker);
    drop(vm.worker(0).control);
    assert_eq!(vm.end_of(0), Cause::Exited(0), "its socket was closed");
    let aborting = vm.worker(0);
    assert_eq!(aborting.try_attempt('a', 0), None);
    assert!(matches!(vm.end_of(0), Cause::Signaled { core: false, .. }));
}

pub(crate) fn cannot_enter(prober: &Prober) {
    let mut text = prober.entry();
    text.binary = prober.open("text");
    let mut garbage = prober.entry();
    garbage.start_filter = vec![0xff; 16];
    let mut odd = prober.entry();
    odd.start_filter = vec![1];
    let vm = Vm::start(vec![text, garbage, odd], default_layers());
    for (number, step, errno) in
        [(0, Step::Exec, libc::ENOEXEC), (1, Step::Seccomp, libc::EINVAL), (2, Step::Seccomp, libc::EINVAL)]
    {
        let _worker = vm.cloned(number, 0);
        assert_eq!(
            vm.event(),
            Event::Failed { worker: number, instance: 0, error: JailError { step, errno } }
        );
    }
}

/// Another descriptor of `socket`.
fn another(socket: &Control) -> Control {
    Control::from_fd(socket.as_fd().try_clone_to_owned().unwrap())
}

pub(crate) fn refused(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    let (_ours, theirs) = socket::pair().unwrap();
    vm.client().start(1, 0, Program::Own, another(&theirs)).unwrap();
    assert_eq!(vm.event(), Event::Refused { worker: 1, instance: 0, reason: Refusal::NoSuchWorker });
    vm.client().kill(u32::MAX, 0).unwrap();
    assert_eq!(vm.event(), Event::Refused { worker: u32::MAX, instance: 0, reason: Refusal::NoSuchWorker });
    vm.client().start(0, 0, Program::Tombstone, another(&theirs)).unwrap();
    assert_eq!(vm.event(), Event::Refused { worker: 0, instance: 0, reason: Refusal::NoTombstone });
    let _worker = vm.worker(0);
    vm.client().start(0, 0, Program::Own, theirs).unwrap();
    assert_eq!(vm.event(), Event::Refused { worker: 0, instance: 0, reason: Refusal::Running });
}

pub(crate) fn again(prober: &Prober) {
    let entries = (0..4).map(|_| prober.entry()).collect();
    let vm = Vm::start(entries, default_layers());
    for _ in 0..10 {
        let workers: Vec<Worker> = (0..4).map(|number| vm.worker(number)).collect();
        for number in 0..4 {
            vm.client().kill(number, 0).unwrap();
            assert_eq!(vm.end_of(number), Cause::Signaled { signal: 9, core: false });
        }
        assert!(workers.iter().all(Worker::ends));
    }
}

pub(crate) fn several(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry(), prober.entry()], default_layers());
    let most = MAX_PROCESSES as u32;
    let mut processes: Vec<Worker> = (0..most).map(|instance| vm.instance(0, instance)).collect();
    let other = vm.worker(1);
    let (_ours, theirs) = socket::pair().unwrap();
    vm.client().start(0, most, Program::Own, theirs).unwrap();
    assert_eq!(vm.event(), Event::Refused { worker: 0, instance: most, reason: Refusal::Running });
    // One that is not there is not killed, and nobody in its place; one that is dies alone.
    vm.client().kill(0, most).unwrap();
    vm.client().kill(0, 1).unwrap();
    let cause = Cause::Signaled { signal: 9, core: false };
    assert_eq!(vm.event(), Event::Ended { worker: 0, instance: 1, cause });
    assert!(processes.remove(1).ends());
    processes.push(vm.instance(0, most));
    for worker in processes.iter().chain([&other]) {
        assert_eq!(worker.try_attempt('e', 7), None);
        let (worker, instance) = (worker.number, worker.instance);
        assert_eq!(vm.event(), Event::Ended { worker, instance, cause: Cause::Exited(7) });
    }
}

/// A copy of `file`; sealed, nobody can change it any more.
fn copy(prober: &Prober, file: &str, sealed: bool) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("offered", flags).unwrap());
    std::io::copy(&mut File::from(prober.open(file)), &mut copy).unwrap();
    if sealed {
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&copy, all).unwrap();
    }
    copy
}

pub(crate) fn offered(prober: &Prober) {
    let mut vm = Vm::start(vec![prober.entry(), prober.entry()], default_layers());
    let offer =
        |vm: &mut Vm, file, sealed| vm.authority.offer(0, &[copy(prober, file, sealed).as_fd()]).unwrap();
    let (control, theirs) = socket::pair().unwrap();
    let start = |vm: &Vm, worker, offer| {
        vm.client().start(worker, 1, Program::Offered { offer }, another(&theirs)).unwrap();
    };
    let refused = |reason| Event::Refused { worker: 0, instance: 1, reason };
    start(&vm, 0, 1);
    assert_eq!(vm.event(), refused(Refusal::NothingOffered));
    let number = offer(&mut vm, "prober", false);
    start(&vm, 0, number);
    assert_eq!(vm.event(), refused(Refusal::NotSealed));
    // Only for the worker that it was offered for, and only as long as it is.
    let number = offer(&mut vm, "prober", true);
    start(&vm, 1, number);
    assert!(matches!(vm.event(), Event::Refused { worker: 1, reason: Refusal::NothingOffered, .. }));
    vm.client().settle(0, number, false).unwrap();
    start(&vm, 0, number);
    assert_eq!(vm.event(), refused(Refusal::NothingOffered));

    // What one client offers is not started, nor adopted, for another.
    let own = vm.worker(0);
    let number = offer(&mut vm, "prober", true);
    let other = offer(&mut vm, "text", true);
    start(&vm, 0, number);
    assert!(matches!(vm.event(), Event::Started { worker: 0, instance: 1, .. }));
    let mut hello = [0; 16];
    let (length, _) = control.recv(&mut hello, 0).unwrap();
    assert_eq!(&hello[..length], b"hello");
    vm.client().settle(0, other, false).unwrap();
    vm.client().settle(0, number, true).unwrap();
    let adopted = vm.instance(0, 4);
    vm.client().kill(0, 1).unwrap();
    assert!(matches!(vm.event(), Event::Ended { instance: 1, .. }));

    // One that cannot be executed: it is not the worker's before it is adopted.
    let number = offer(&mut vm, "text", true);
    let exec = |instance| {
        let error = JailError { step: Step::Exec, errno: libc::ENOEXEC };
        Event::Failed { worker: 0, instance, error }
    };
    start(&vm, 0, number);
    assert!(matches!(vm.event(), Event::Started { instance: 1, .. }));
    assert_eq!(vm.event(), exec(1));
    let other = vm.instance(0, 2);
    // One that is refused meanwhile does not take its place.
    let refused = offer(&mut vm, "prober", true);
    vm.client().settle(0, refused, false).unwrap();
    vm.client().settle(0, number, true).unwrap();
    let _ = vm.cloned(0, 3);
    assert_eq!(vm.event(), exec(3));
    for (worker, instance) in [(own, 0), (other, 2), (adopted, 4)] {
        assert_eq!(worker.try_attempt('e', 7), None);
        assert_eq!(vm.event(), Event::Ended { worker: 0, instance, cause: Cause::Exited(7) });
    }
}

/// A spawner that does not read for a while does all that it was asked for then, in order.
pub(crate) fn slow_spawner(prober: &Prober) {
    let vm = Vm::start(vec![prober.entry()], default_layers());
    let worker = vm.worker(0);
    vm.stop_spawner(true);
    // More than its socket takes.
    while !vm.client().is_behind() {
        vm.client().settle(0, 0, false).unwrap();
    }
    vm.client().kill(0, 0).unwrap();
    assert!(vm.client().examine(0, 0).is_err(), "a question is not kept");
    vm.client().catch_up();
    assert!(vm.client().is_behind() && !worker.has_ended());
    vm.stop_spawner(false);
    let end = Instant::now() + Duration::from_secs(10);
    while vm.client().is_behind() {
        assert!(Instant::now() < end, "it does not read");
        vm.client().catch_up();
    }
    assert_eq!(vm.end_of(0), Cause::Signaled { signal: 9, core: false });
}

fn repeat_end(prober: &Prober, layers: cellblock_jail::LayerSet, end: fn(Vm)) {
    for round in 0..REPEATS {
        let vm = Vm::start(vec![prober.entry(), prober.entry()], layers);
        let workers = [vm.worker(0), vm.worker(1)];
        assert!(workers.iter().all(|worker| worker.host_pid > 0));
        end(vm);
        for worker in &workers {
            assert!(worker.ends(), "round {round}: worker {} is left as {}", worker.number, worker.host_pid);
            assert!(is_readable(worker), "its pidfd says so, too");
        }
    }
}

fn is_readable(worker: &Worker) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut watched = [PollFd::new(&worker.pidfd, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap() == 1
}

pub(crate) fn socket_closes(prober: &Prober) {
    repeat_end(prober, default_layers(), drop);
}

pub(crate) fn spawner_killed(prober: &Prober) {
    for _ in 0..REPEATS {
        let vm = Vm::start(vec![prober.entry(), prober.entry()], default_layers());
        let workers = [vm.worker(0), vm.worker(1)];
        vm.kill_spawner();
        assert_eq!(vm.event(), Event::Lost(Cause::Signaled { signal: 9, core: false }));
        // They live, nobody starts another, and they end with the supervisor.
        assert_eq!(workers[0].try_attempt('e', 7), None);
        assert!(workers[0].ends() && is_readable(&workers[0]));
        let (_ours, theirs) = socket::pair().unwrap();
        vm.client().start(0, 1, Program::Own, theirs).unwrap();
        assert_eq!(vm.event(), Event::Refused { worker: 0, instance: 1, reason: Refusal::Lost });
        assert!(!workers[1].has_ended());
        drop(vm);
        assert!(workers[1].ends() && is_readable(&workers[1]));
    }
}

pub(crate) fn init_killed(prober: &Prober) {
    repeat_end(prober, default_layers(), |vm| vm.kill_init());
}

pub(crate) fn no_pid_namespace(prober: &Prober) {
    repeat_end(prober, default_layers().without(Layer::Pid), drop);
}
