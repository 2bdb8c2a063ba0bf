//! The spawner process: one loop over the supervisor's socket and the workers' pidfds.
#![allow(unsafe_code)] // Clones workers.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_jail::worker::{self, Progress};
use cellblock_jail::{JailError, Layer, LayerSet, Step, spawner as jail, sys};
use cellblock_policy::with_refusal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};

use crate::protocol::{Cause, Event, Refusal, Request};
use crate::{Entry, Manifest, keep_only, out_of_the_way, prepared_name};

/// Exit statuses of the spawner process.
const ENDED: i32 = 0;
const UNABLE: i32 = 1;
const BROKEN: i32 = 2;

/// In the forked child: enters the jail, serves, and ends the process.
pub(crate) fn run(
    manifest: Manifest,
    privileged: bool,
    socket: OwnedFd,
    proc: OwnedFd,
    mapped: impl FnOnce() -> io::Result<()>,
) -> ! {
    let Ok(socket) = out_of_the_way(socket).map(Control::from_fd) else { sys::exit_now(UNABLE) };
    let status = match Service::prepare(manifest, privileged, socket.as_fd(), proc, mapped) {
        Ok(mut service) => service.serve(&socket),
        Err(error) => {
            // Nothing more can be done if the supervisor is gone.
            let _ = socket.send_message(&Event::Unable(error), &[]);
            UNABLE
        }
    };
    // Whatever still runs ends now, with pid 1 of its namespace.
    sys::exit_now(status)
}

/// One worker of the manifest.
struct Slot {
    entry: Entry,
    name: CString,
    id: Option<u32>,
    maps: (CString, CString),
    ruleset: Option<OwnedFd>,
    progress: Progress,
    running: Option<OwnedFd>,
}

struct Service {
    proc: OwnedFd,
    layers: LayerSet,
    privileged: bool,
    slots: Vec<Slot>,
    /// What the supervisor has not taken yet. While there is something, no request is read, so this stays short.
    outbox: VecDeque<(Event, Option<OwnedFd>)>,
    /// Keeps the uid range ours.
    lock: Option<OwnedFd>,
}

impl Service {
    /// Jailed and with everything prepared that a start needs.
    fn prepare(
        manifest: Manifest,
        privileged: bool,
        socket: BorrowedFd,
        proc: OwnedFd,
        mapped: impl FnOnce() -> io::Result<()>,
    ) -> Result<Service, JailError> {
        let proc = out_of_the_way(proc).map_err(descriptors)?;
        let plan = jail::Plan {
            layers: manifest.layers,
            privileged,
            ids: manifest.ids,
            proc: proc.as_fd(),
            binaries: manifest.workers.iter().map(|entry| entry.binary.as_fd()).collect(),
            file_size: manifest.workers.iter().map(|entry| entry.limits.file_size).max().unwrap_or(0),
            refusal: manifest.refusal,
        };
        jail::enter(&plan, mapped)?;
        let (layers, ids) = (manifest.layers, manifest.ids);
        let slots = slots(manifest.workers, layers, ids, manifest.refusal)?;
        let lock = manifest.lock.map(out_of_the_way).transpose().map_err(descriptors)?;
        let service = Service { proc, layers, privileged, slots, outbox: VecDeque::new(), lock };
        service.close_the_rest(socket).map_err(descriptors)?;
        Ok(service)
    }

    /// The front's descriptors, among them the supervisor's end of our own socket: while we hold that, it never closes.
    fn close_the_rest(&self, socket: BorrowedFd) -> io::Result<()> {
        let mut kept = vec![socket, self.proc.as_fd()];
        kept.extend(self.lock.as_ref().map(AsFd::as_fd));
        for slot in &self.slots {
            kept.push(slot.entry.binary.as_fd());
            kept.extend(slot.entry.cgroup.as_ref().map(AsFd::as_fd));
            kept.extend(slot.ruleset.as_ref().map(AsFd::as_fd));
        }
        keep_only(&kept)
    }

    /// Until the supervisor closes its socket; returns the exit status.
    fn serve(&mut self, socket: &Control) -> i32 {
        self.outbox.push_back((Event::Ready, None));
        let status = loop {
            if let Err(status) = self.turn(socket) {
                break status;
            }
        };
        self.end_all();
        status
    }

    /// The end of pid 1 would end them, too, but without a pid namespace nobody else does it.
    fn end_all(&mut self) {
        let running = || self.slots.iter().filter_map(|slot| slot.running.as_ref());
        for pidfd in running() {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        for pidfd in running() {
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// Sends, waits, and handles what there is. The error is the exit status.
    fn turn(&mut self, socket: &Control) -> Result<(), i32> {
        self.flush(socket)?;
        let (readable, ended) = self.wait(socket)?;
        for worker in ended {
            self.reap(worker);
        }
        if readable && self.outbox.is_empty() { self.receive(socket) } else { Ok(()) }
    }

    /// Waits for the socket and for workers' ends: whether there is a request, and who ended.
    fn wait(&self, socket: &Control) -> Result<(bool, Vec<usize>), i32> {
        let wanted = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        let running: Vec<(usize, BorrowedFd)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(worker, slot)| Some((worker, slot.running.as_ref()?.as_fd())))
            .collect();
        let mut watched = vec![PollFd::new(socket, wanted)];
        watched.extend(running.iter().map(|(_, pidfd)| PollFd::from_borrowed_fd(*pidfd, PollFlags::IN)));
        match poll(&mut watched, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, Vec::new())),
            Err(_) => return Err(BROKEN),
        }
        let socket = watched[0].revents();
        if socket.contains(PollFlags::HUP) && !socket.contains(PollFlags::IN) {
            return Err(ENDED);
        }
        let ended = running.iter().zip(&watched[1..]).filter(|(_, watch)| !watch.revents().is_empty());
        Ok((socket.contains(PollFlags::IN), ended.map(|((worker, _), _)| *worker).collect()))
    }

    fn receive(&mut self, socket: &Control) -> Result<(), i32> {
        match socket.try_recv_message::<Request>(1) {
            Ok((Request::Start { worker }, descriptors)) => self.start(worker, descriptors),
            Ok((Request::Kill { worker }, _)) => self.kill(worker),
            Err(SocketError::NotReady) => {}
            Err(SocketError::Closed) => return Err(ENDED),
            // A supervisor that sends nonsense is not one to serve.
            Err(_) => return Err(BROKEN),
        }
        Ok(())
    }

    fn start(&mut self, worker: u32, mut descriptors: Vec<OwnedFd>) {
        let (Some(slot), Some(control)) = (self.slots.get_mut(worker as usize), descriptors.pop()) else {
            let named = (worker as usize) < self.slots.len();
            let reason = if named { Refusal::NoSocket } else { Refusal::NoSuchWorker };
            return self.say(Event::Refused { worker, reason });
        };
        if slot.running.is_some() {
            return self.say(Event::Refused { worker, reason: Refusal::Running });
        }
        match slot.clone_worker(control, self.layers, self.privileged, self.proc.as_fd()) {
            Ok((pidfd, copy)) => {
                let host_pid = host_pid(self.proc.as_fd(), &pidfd).unwrap_or(0);
                slot.running = Some(pidfd);
                self.outbox.push_back((Event::Started { worker, host_pid }, Some(copy)));
            }
            Err(error) => self.say(Event::Failed { worker, error }),
        }
    }

    fn kill(&mut self, worker: u32) {
        match self.slots.get(worker as usize) {
            // Its end is reported when it is reaped; one that is dead already likewise.
            Some(slot) => drop(slot.running.as_ref().map(|pidfd| pidfd_send_signal(pidfd, Signal::KILL))),
            None => self.say(Event::Refused { worker, reason: Refusal::NoSuchWorker }),
        }
    }

    fn reap(&mut self, worker: usize) {
        let Some(slot) = self.slots.get_mut(worker) else { return };
        let Some(pidfd) = slot.running.as_ref() else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Ok(Some(status)) = waitid(WaitId::PidFd(pidfd.as_fd()), options) else { return };
        slot.running = None;
        let event = match slot.progress.failure().filter(|error| error.errno != 0) {
            Some(error) => Event::Failed { worker: worker as u32, error },
            None => Event::Ended { worker: worker as u32, cause: cause(&status) },
        };
        self.say(event);
    }

    fn say(&mut self, event: Event) {
        self.outbox.push_back((event, None));
    }

    fn flush(&mut self, socket: &Control) -> Result<(), i32> {
        while let Some((event, descriptor)) = self.outbox.front() {
            let descriptors: Vec<BorrowedFd> = descriptor.iter().map(AsFd::as_fd).collect();
            match socket.send_message(event, &descriptors) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(SocketError::NotReady) => break,
                Err(SocketError::Closed) => return Err(ENDED),
                Err(_) => return Err(BROKEN),
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Clones the child; returns its pidfd and a copy for the supervisor.
    fn clone_worker(
        &self,
        control: OwnedFd,
        layers: LayerSet,
        privileged: bool,
        proc: BorrowedFd,
    ) -> Result<(OwnedFd, OwnedFd), JailError> {
        let control = out_of_the_way(control).map_err(descriptors)?;
        let plan = worker::Plan {
            layers,
            privileged: privileged || layers.has(Layer::User),
            id: self.id,
            maps: &self.maps,
            limits: &self.entry.limits,
            control: control.as_fd(),
            binary: self.entry.binary.as_fd(),
            proc,
            ruleset: self.ruleset.as_ref().map(AsFd::as_fd),
            start_filter: &self.entry.start_filter,
            name: &self.name,
        };
        let cgroup = self.entry.cgroup.as_ref().filter(|_| layers.has(Layer::Cgroup)).map(AsFd::as_fd);
        self.progress.reset();
        // One after the other on their way into the jail: the first that is asked for is the first that a starting guest
        // needs, and would be held up by the others.
        // SAFETY: the spawner is single-threaded, so the child may do anything.
        let side = unsafe { sys::fork_to_exec(worker::namespaces(layers), cgroup) };
        match side.map_err(cloning)? {
            sys::Side::Child => worker::enter(&plan, &self.progress),
            sys::Side::Parent { pidfd, .. } => {
                let copy = pidfd.try_clone().map_err(descriptors)?;
                Ok((pidfd, copy))
            }
        }
    }
}

fn slots(
    entries: Vec<Entry>,
    layers: LayerSet,
    ids: jail::Ids,
    refusal: cellblock_jail::Refusal,
) -> Result<Vec<Slot>, JailError> {
    let page = sys::shared_page().map_err(cloning)?;
    let words = page.chunks_exact(2);
    let entries = entries.into_iter().zip(words).enumerate();
    entries.map(|(index, (entry, words))| slot(index, entry, words, layers, ids, refusal)).collect()
}

fn slot(
    index: usize,
    mut entry: Entry,
    words: &'static [std::sync::atomic::AtomicU32],
    layers: LayerSet,
    ids: jail::Ids,
    refusal: cellblock_jail::Refusal,
) -> Result<Slot, JailError> {
    let descriptors =
        |error: io::Error| JailError { step: Step::Descriptors, errno: error.raw_os_error().unwrap_or(0) };
    entry.binary = out_of_the_way(entry.binary).map_err(descriptors)?;
    entry.cgroup = entry.cgroup.map(out_of_the_way).transpose().map_err(descriptors)?;
    if refusal != cellblock_jail::Refusal::Kill {
        entry.start_filter = with_refusal(&entry.start_filter, refusal);
    }
    let ruleset = layers.has(Layer::Landlock).then(|| worker::ruleset(entry.binary.as_fd())).transpose()?;
    let ruleset =
        ruleset.map(|ruleset| sys::above(ruleset.as_fd(), worker::FREE)).transpose().map_err(descriptors)?;
    let id = ids.worker(layers, index);
    Ok(Slot {
        name: prepared_name(&entry),
        id,
        maps: worker::id_map(id),
        ruleset,
        progress: Progress::new(&words[0], &words[1]),
        running: None,
        entry,
    })
}

fn descriptors(error: io::Error) -> JailError {
    JailError { step: Step::Descriptors, errno: error.raw_os_error().unwrap_or(0) }
}

fn cloning(error: io::Error) -> JailError {
    JailError { step: Step::Clone, errno: error.raw_os_error().unwrap_or(0) }
}

fn cause(status: &WaitIdStatus) -> Cause {
    match status.terminating_signal() {
        Some(signal) => Cause::Signaled { signal, core: status.dumped() },
        None => Cause::Exited(status.exit_status().unwrap_or(0)),
    }
}

/// The host's number of the process behind `pidfd`, from the host's /proc; within our pid namespace there is no other way.
fn host_pid(proc: BorrowedFd, pidfd: &OwnedFd) -> Option<i32> {
    let path = CString::new(format!("self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let file = sys::open_at(proc, &path, 0).ok()?;
    let mut buffer = [0; 512];
    let length = sys::read(file.as_fd(), &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}
