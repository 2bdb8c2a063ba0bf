//! The spawner process: one loop over the supervisor's socket and the workers' pidfds.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_jail::{JailError, Layer, process, spawner as jail, sys};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};

use crate::protocol::{Cause, Event, Offer, Program, Refusal, Request};
use crate::slot::{self, Ground, Process, Slot, Unstarted, cloning, descriptors, host_pid};
use crate::{MAX_PROCESSES, Manifest, keep_only, out_of_the_way};
use crate::{activity, init};

/// Exit statuses of the spawner process.
pub(crate) const ENDED: i32 = 0;
pub(crate) const UNABLE: i32 = 1;
pub(crate) const BROKEN: i32 = 2;

/// In the forked child: enters the jail, becomes the namespace's init and forks the spawner, which serves until the end.
pub(crate) fn run(
    manifest: Manifest,
    privileged: bool,
    [socket, offers]: [OwnedFd; 2],
    proc: OwnedFd,
    mapped: impl FnOnce() -> io::Result<()>,
) -> ! {
    let Ok(socket) = out_of_the_way(socket).map(Control::from_fd) else { sys::exit_now(UNABLE) };
    let unable = |error: JailError| -> ! {
        // Nothing more can be done if the supervisor is gone.
        let _ = socket.send_message(&Event::Unable(error), &[]);
        sys::exit_now(UNABLE)
    };
    if let Err(error) = enter(&manifest, privileged, proc.as_fd(), mapped) {
        unable(error)
    }
    if manifest.layers.has(Layer::Pid) {
        match process::fork_into(proc.as_fd(), 0, None).map_err(cloning) {
            Ok(sys::Side::Child) => {}
            Ok(sys::Side::Parent { pidfd, .. }) => init::run(&socket, &pidfd, manifest.lock.as_ref()),
            Err(error) => unable(error),
        }
    }
    match Service::prepare(manifest, privileged, socket.as_fd(), offers, proc) {
        Ok(mut service) => sys::exit_now(service.serve(&socket)),
        Err(error) => unable(error),
    }
}

fn enter(
    manifest: &Manifest,
    privileged: bool,
    proc: BorrowedFd,
    mapped: impl FnOnce() -> io::Result<()>,
) -> Result<(), JailError> {
    let workers = manifest.workers.iter().map(|entry| &entry.binary);
    let tombstone = manifest.tombstone.as_ref().map(|tombstone| &tombstone.binary);
    let plan = jail::Plan {
        layers: manifest.layers,
        privileged,
        ids: manifest.ids,
        proc,
        binaries: workers.chain(tombstone).map(AsFd::as_fd).collect(),
        file_size: manifest.workers.iter().map(|entry| entry.limits.file_size).max().unwrap_or(0),
        refusal: manifest.refusal,
    };
    jail::enter(&plan, mapped)
}

struct Service {
    ground: Ground,
    slots: Vec<Slot>,
    tombstone: Option<slot::Program>,
    /// From the front: other binaries.
    offers: Control,
    /// The number of the last that was taken.
    offered: u32,
    /// What the supervisor has not taken yet. While there is something, no request is read, so this stays short.
    outbox: VecDeque<(Event, Option<OwnedFd>)>,
    /// Those that have ended, as was told, and are still to be reaped.
    dead: Vec<OwnedFd>,
    /// Keeps the uid range ours.
    lock: Option<OwnedFd>,
}

impl Service {
    /// With everything prepared that a start needs.
    fn prepare(
        manifest: Manifest,
        privileged: bool,
        socket: BorrowedFd,
        offers: OwnedFd,
        proc: OwnedFd,
    ) -> Result<Service, JailError> {
        // It was for the clone. Later it would be closed twice: what is not kept is closed by its number.
        drop(manifest.cgroup);
        let proc = out_of_the_way(proc).map_err(descriptors)?;
        let ground = Ground::new(proc, manifest.layers, privileged, manifest.ids, manifest.refusal)?;
        let entries = manifest.workers.into_iter().enumerate();
        let slots =
            entries.map(|(index, entry)| Slot::new(index, entry, &ground)).collect::<Result<_, _>>()?;
        let tombstone =
            manifest.tombstone.map(|tombstone| slot::Program::of(tombstone, &ground)).transpose()?;
        let lock = manifest.lock.map(out_of_the_way).transpose().map_err(descriptors)?;
        let offers = out_of_the_way(offers).map(Control::from_fd).map_err(descriptors)?;
        let service = Service {
            ground,
            slots,
            tombstone,
            offers,
            offered: 0,
            outbox: VecDeque::new(),
            dead: Vec::new(),
            lock,
        };
        service.close_the_rest(socket).map_err(descriptors)?;
        Ok(service)
    }

    /// The front's descriptors, among them the supervisor's end of our own socket: while we hold that, it never closes.
    fn close_the_rest(&self, socket: BorrowedFd) -> io::Result<()> {
        let mut kept = vec![socket, self.offers.as_fd(), self.ground.proc.as_fd()];
        kept.extend(self.lock.as_ref().map(AsFd::as_fd));
        kept.extend(self.slots.iter().flat_map(Slot::descriptors));
        kept.extend(self.tombstone.iter().flat_map(slot::Program::descriptors));
        keep_only(&kept)
    }

    /// Until the supervisor closes its socket; returns the exit status.
    fn serve(&mut self, socket: &Control) -> i32 {
        let host_pid = activity::own_pid(self.ground.proc.as_fd()).unwrap_or(0);
        self.outbox.push_back((Event::Ready { host_pid }, None));
        let status = loop {
            if let Err(status) = self.turn(socket) {
                break status;
            }
        };
        self.end_all();
        status
    }

    /// The end of init would end them, too, but without a pid namespace nobody else does it.
    fn end_all(&mut self) {
        let running = || self.slots.iter().flat_map(|slot| &slot.processes);
        for process in running() {
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
        for process in running() {
            let _ = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }

    /// Sends, waits, and handles what there is. The error is the exit status.
    fn turn(&mut self, socket: &Control) -> Result<(), i32> {
        self.flush(socket)?;
        self.bury();
        let (readable, ended) = self.wait(socket)?;
        for (worker, instance) in ended {
            self.reap(worker, instance);
        }
        if readable && self.outbox.is_empty() { self.receive(socket) } else { Ok(()) }
    }

    /// Waits for the socket and for workers' ends: whether there is a request, and who ended.
    fn wait(&self, socket: &Control) -> Result<(bool, Vec<(u32, u32)>), i32> {
        let wanted = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        let running: Vec<(u32, &Process)> = (0..)
            .zip(&self.slots)
            .flat_map(|(worker, slot)| slot.processes.iter().map(move |process| (worker, process)))
            .collect();
        let mut watched = vec![PollFd::new(socket, wanted)];
        watched.extend(running.iter().map(|(_, process)| PollFd::new(&process.pidfd, PollFlags::IN)));
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
        let ended = ended.map(|((worker, process), _)| (*worker, process.instance));
        Ok((socket.contains(PollFlags::IN), ended.collect()))
    }

    fn receive(&mut self, socket: &Control) -> Result<(), i32> {
        match socket.try_recv_message::<Request>(1) {
            Ok((Request::Start { worker, instance, program }, descriptors)) => {
                if let Program::Offered { offer } = program {
                    self.take_offers(offer, true);
                }
                self.start(worker, instance, program, descriptors);
            }
            Ok((Request::Settle { worker, offer, adopt }, _)) => {
                // One that was never started is let fall as it is, and another that is being tried stays.
                self.take_offers(offer, false);
                if let Some(slot) = self.slots.get_mut(worker as usize) {
                    slot.settle(offer, adopt);
                }
            }
            Ok((Request::Kill { worker, instance }, _)) => self.kill(worker, instance),
            Ok((Request::Examine { worker, instance }, _)) => self.examine(worker, instance),
            Err(SocketError::NotReady) => {}
            Err(SocketError::Closed) => return Err(ENDED),
            // A supervisor that sends nonsense is not one to serve.
            Err(_) => return Err(BROKEN),
        }
        Ok(())
    }

    /// Takes what the front has offered up to number `wanted`, unless it was taken before. Those before it were for upgrades that
    /// did not begin; those behind it are for others. Unless that is to be started, it is let fall, too.
    fn take_offers(&mut self, wanted: u32, start: bool) {
        while self.offered < wanted {
            match self.offers.try_recv_message::<Offer>(2) {
                Ok((Offer { worker, number }, files)) => {
                    self.offered = number;
                    let slot = self.slots.get_mut(worker as usize).filter(|_| start && number == wanted);
                    if let Some(slot) = slot {
                        slot.offered(number, files, &self.ground);
                    }
                }
                Err(SocketError::NotReady | SocketError::Closed | SocketError::Call { .. }) => return,
                // One that makes no sense is let fall.
                Err(_) => {}
            }
        }
    }

    fn start(&mut self, worker: u32, instance: u32, program: Program, mut descriptors: Vec<OwnedFd>) {
        let refused = |reason| Event::Refused { worker, instance, reason };
        let Some(slot) = self.slots.get_mut(worker as usize) else {
            return self.say(refused(Refusal::NoSuchWorker));
        };
        let Some(control) = descriptors.pop() else { return self.say(refused(Refusal::NoSocket)) };
        let taken = slot.processes.iter().any(|process| process.instance == instance);
        if taken || slot.processes.len() >= MAX_PROCESSES {
            return self.say(refused(Refusal::Running));
        }
        match slot.start(instance, program, control, self.tombstone.as_ref(), &self.ground) {
            Err(Unstarted::Refused(reason)) => self.say(refused(reason)),
            Err(Unstarted::Failed(error)) => self.say(Event::Failed { worker, instance, error }),
            Ok((pidfd, took)) => {
                let host_pid = host_pid(self.ground.proc.as_fd(), &pidfd).unwrap_or(0);
                self.outbox.push_back((Event::Started { worker, instance, host_pid, took }, Some(pidfd)));
            }
        }
    }

    fn kill(&mut self, worker: u32, instance: u32) {
        let Some(slot) = self.slots.get(worker as usize) else {
            return self.say(Event::Refused { worker, instance, reason: Refusal::NoSuchWorker });
        };
        // Its end is reported when it is reaped; one that is dead already likewise.
        for process in slot.processes.iter().filter(|process| process.instance == instance) {
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
    }

    fn examine(&mut self, worker: u32, instance: u32) {
        let Some(slot) = self.slots.get(worker as usize) else {
            return self.say(Event::Refused { worker, instance, reason: Refusal::NoSuchWorker });
        };
        let process = slot.processes.iter().find(|process| process.instance == instance);
        let activity = process.and_then(|process| activity::of(self.ground.proc.as_fd(), &process.pidfd));
        self.say(Event::Examined { worker, instance, activity });
    }

    fn reap(&mut self, worker: u32, instance: u32) {
        let Some(slot) = self.slots.get_mut(worker as usize) else { return };
        let Some(place) = slot.processes.iter().position(|process| process.instance == instance) else {
            return;
        };
        // It has ended when it can be reaped, which takes a while and can wait until that is told.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let Some(Ok(Some(status))) =
            slot.processes.get(place).map(|process| waitid(WaitId::PidFd(process.pidfd.as_fd()), options))
        else {
            return;
        };
        let process = slot.processes.swap_remove(place);
        let event = match process.failure {
            Some(error) => Event::Failed { worker, instance, error },
            None => Event::Ended { worker, instance, cause: cause(&status) },
        };
        self.dead.push(process.pidfd);
        self.say(event);
    }

    fn bury(&mut self) {
        for pidfd in self.dead.drain(..) {
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
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

pub(crate) fn cause(status: &WaitIdStatus) -> Cause {
    match status.terminating_signal() {
        Some(signal) => Cause::Signaled { signal, core: status.dumped() },
        None => Cause::Exited(status.exit_status().unwrap_or(0)),
    }
}
