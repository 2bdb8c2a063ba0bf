//! The vCPU actor: one thread that enters the guest, hands each exit to a device's worker, and re-enters with the reply.
//!
//! States: *running* until it meets its end, which it reports once; *stranded* while the worker that it waits for is being
//! replaced; *paused* between two instructions, with nothing owed to the guest. It owns its vCPU, its lanes and its mailbox; it
//! shares the bus, which never changes while it runs. There is no lock on its path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cellblock_bus::Bus;
use cellblock_channel::KickWatch;
use cellblock_channel::doorbell::Ringer;
use cellblock_hypervisor::{ExitData, Vcpu, VmEntry, VmExit};
use cellblock_ring::Access;
use cellblock_wire::slot::{Action, Op, Reply, Space};
use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::exit_stats::ExitStats;
use crate::proxy::{Proxy, Successor, Waited};
use crate::worker::Blame;

/// What the VM actor tells a vCPU; a kick goes with it.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// End, without finishing the open exit.
    Stop,
    /// The device of this index has a new worker.
    Succeed { device: usize, successor: Successor },
    /// Nobody answers for the device of this index any more; that counts as its incarnation `generation`.
    Leave { device: usize, generation: u32 },
    /// Finish the open exit, say [`Report::Paused`] with this number, and do not enter the guest before [`Command::Resume`].
    Pause { number: u32 },
    /// Go on.
    Resume,
    /// Enter the guest for the first time.
    Begin,
}

impl Command {
    /// The device whose worker it is about.
    pub(crate) fn device(&self) -> Option<usize> {
        match self {
            Command::Succeed { device, .. } | Command::Leave { device, .. } => Some(*device),
            Command::Stop | Command::Pause { .. } | Command::Resume | Command::Begin => None,
        }
    }
}

/// What a vCPU tells the VM actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// Its last word.
    Ended { vcpu: u32, ended: Ended },
    /// The worker of this device and incarnation has not answered in time. The vCPU waits on, and says so again now and then.
    Late { vcpu: u32, device: usize, generation: u32, answers: u64, request: String },
    /// The worker of this device and incarnation gave no usable answer. The vCPU waits for its successor.
    Trouble { device: usize, generation: u32, blame: Blame },
    /// Two workers died on one request, which is now settled without an answer.
    Poison { device: usize, request: String },
    /// It is paused, as [`Command::Pause`] of this number said.
    Paused { vcpu: u32, number: u32 },
}

/// How a vCPU ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    PowerOff,
    Reset,
    TripleFault,
    Internal(String),
    Stopped,
}

/// How a vCPU's thread is heard.
#[derive(Debug, Clone)]
pub(crate) struct Mouth {
    pub id: u32,
    pub reporter: Sender<Report>,
    pub ringer: Arc<Ringer>,
}

impl Mouth {
    pub(crate) fn ended(&self, ended: Ended) {
        self.say(Report::Ended { vcpu: self.id, ended });
    }

    fn say(&self, report: Report) {
        // There is room for all that a vCPU says before it is answered; that it still waits it says again.
        let _ = self.reporter.try_send(report);
        self.ringer.ring();
    }
}

/// One vCPU's thread.
pub(crate) struct VcpuActor<V> {
    pub vcpu: V,
    pub bus: Arc<Bus>,
    /// One for each device, by its index.
    pub proxies: Vec<Proxy>,
    pub kicks: KickWatch,
    pub commands: Receiver<Command>,
    pub mouth: Mouth,
    pub exits: Arc<AtomicU64>,
    /// Where accesses are counted register by register, if anybody wants to know.
    pub stats: Option<Arc<ExitStats>>,
    /// It is to pause, or does: the number of the order.
    pub pause: Option<u32>,
}

impl<V: Vcpu> VcpuActor<V> {
    /// Runs the vCPU to its end.
    pub(crate) fn run(mut self) -> Ended {
        let mut entry = match self.begin() {
            Ok(entry) => entry,
            Err(ended) => return ended,
        };
        loop {
            let exit = match self.vcpu.run(entry) {
                Ok(exit) => exit,
                Err(error) => return Ended::Internal(error.to_string()),
            };
            // SYNC POINT: none; a count for people.
            self.exits.fetch_add(1, Ordering::Relaxed);
            let next = self.answer(exit).and_then(|entry| match self.pause {
                None => Ok(entry),
                Some(_) => self.rest(entry),
            });
            entry = match next {
                Ok(entry) => entry,
                Err(ended) => return ended,
            };
        }
    }

    /// Waits until the devices are there whose registers the guest reads without asking anybody.
    fn begin(&mut self) -> Result<VmEntry, Ended> {
        loop {
            match self.commands.recv().unwrap_or(Command::Stop) {
                Command::Begin => break,
                command => self.follow(command)?,
            }
        }
        if self.pause.is_some() { self.rest(VmEntry::Resume) } else { Ok(VmEntry::Resume) }
    }

    /// Pauses, once the guest's instruction is complete.
    fn rest(&mut self, mut entry: VmEntry) -> Result<VmEntry, Ended> {
        let internal = |error: cellblock_hypervisor::Error| Ended::Internal(error.to_string());
        while let Some(exit) = self.vcpu.finish(entry).map_err(internal)? {
            // SYNC POINT: none; a count for people.
            self.exits.fetch_add(1, Ordering::Relaxed);
            entry = self.answer(exit)?;
        }
        let mut told = None;
        while let Some(number) = self.pause {
            if told.replace(number) != Some(number) {
                self.mouth.say(Report::Paused { vcpu: self.mouth.id, number });
            }
            // A supervisor whose loop is gone has no use for this vCPU either.
            self.follow(self.commands.recv().unwrap_or(Command::Stop))?;
        }
        self.vcpu.tell_of_pause().map_err(internal)?;
        Ok(VmEntry::Resume)
    }

    fn answer(&mut self, exit: VmExit) -> Result<VmEntry, Ended> {
        match exit {
            VmExit::Mmio { addr, write, data } => self.access(Space::Mmio, addr, write, data),
            VmExit::Pio { port, write, data } => self.access(Space::Pio, port.into(), write, data),
            // No hypercall reaches user space by design of the board: -KVM_ENOSYS, as the kernel itself answers.
            VmExit::Hypercall { .. } => Ok(VmEntry::Reply(ExitData::from((-1000i64).to_le_bytes()))),
            VmExit::Kicked => self.obey().map(|()| VmEntry::Resume),
            VmExit::Shutdown => Err(Ended::PowerOff),
            VmExit::Reset => Err(Ended::Reset),
            VmExit::TripleFault => Err(Ended::TripleFault),
            VmExit::InternalError(text) => Err(Ended::Internal(text)),
            other => Err(Ended::Internal(format!("an exit that this board does not have: {other:?}"))),
        }
    }

    fn access(&mut self, space: Space, addr: u64, write: bool, mut data: ExitData) -> Result<VmEntry, Ended> {
        if let Some(stats) = &self.stats {
            stats.count(space, addr, write);
        }
        let size = data.len();
        let hit = self.bus.find(space, addr, size).filter(|_| matches!(size, 1 | 2 | 4 | 8));
        let Some(hit) = hit.filter(|hit| hit.target.device < self.proxies.len()) else {
            return Ok(unclaimed(write, data));
        };
        let op = if write { Op::Write } else { Op::Read };
        let access = Access {
            space,
            op,
            size: size as u8,
            region: hit.target.region,
            offset: hit.offset,
            data: if write { number(&data) } else { 0 },
        };
        let reply = self.ask(hit.target.device, &access)?;
        match reply.action {
            Action::None => {}
            Action::PowerOff => return Err(Ended::PowerOff),
            Action::Reset => return Err(Ended::Reset),
        }
        if write {
            return Ok(VmEntry::Done);
        }
        data.copy_from_slice(&reply.data.to_le_bytes()[..size]);
        Ok(VmEntry::Reply(data))
    }

    /// Sends `access` to `device`, and waits for the answer: of the worker that it has, or of as many successors as it takes.
    fn ask(&mut self, device: usize, access: &Access) -> Result<Reply, Ended> {
        if self.proxies[device].is_left() {
            // Who was told that it serves again shall find it so, although the kick is still on its way.
            self.obey()?;
        }
        self.proxies[device].post(access);
        loop {
            match self.proxies[device].wait(&mut self.kicks) {
                Ok(Waited::Replied(reply)) => return Ok(self.permitted(device, reply)),
                Ok(Waited::Kicked) => self.obey()?,
                Ok(Waited::Late) => {
                    let (vcpu, proxy) = (self.mouth.id, &self.proxies[device]);
                    let (generation, request) = (proxy.generation(), proxy.outstanding());
                    let answers = proxy.answers();
                    self.mouth.say(Report::Late { vcpu, device, generation, answers, request });
                }
                Err(violation) => {
                    let generation = self.proxies[device].generation();
                    let blame = Blame::Violation(format!("protocol violation: {violation}"));
                    self.mouth.say(Report::Trouble { device, generation, blame });
                    while self.proxies[device].generation() == generation {
                        // A supervisor whose loop is gone has no use for this vCPU either.
                        self.follow(self.commands.recv().unwrap_or(Command::Stop))?;
                    }
                }
            }
        }
    }

    /// `reply`, without an action that is not its device's to ask for: a worker that does so is to be replaced.
    fn permitted(&self, device: usize, reply: Reply) -> Reply {
        if self.proxies[device].allows(reply.action) {
            return reply;
        }
        let Reply { generation, action, .. } = reply;
        let blame = Blame::Violation(format!(
            "protocol violation: reply asks for {action:?}, which is not for this device"
        ));
        self.mouth.say(Report::Trouble { device, generation, blame });
        Reply { action: Action::None, ..reply }
    }

    /// Does what the VM actor has told it.
    fn obey(&mut self) -> Result<(), Ended> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.follow(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Ended::Stopped),
            }
        }
    }

    fn follow(&mut self, command: Command) -> Result<(), Ended> {
        let (device, successor) = match command {
            Command::Stop => return Err(Ended::Stopped),
            Command::Pause { number } => {
                self.pause = Some(number);
                return Ok(());
            }
            Command::Resume => {
                self.pause = None;
                return Ok(());
            }
            Command::Begin => return Ok(()),
            Command::Leave { device, generation } => {
                self.proxies.get_mut(device).into_iter().for_each(|proxy| proxy.leave(generation));
                return Ok(());
            }
            Command::Succeed { device, successor } => (device, successor),
        };
        let Some(proxy) = self.proxies.get_mut(device) else { return Ok(()) };
        let request = proxy.outstanding();
        if proxy.succeed(successor) {
            self.mouth.say(Report::Poison { device, request });
        }
        Ok(())
    }
}

/// Nobody is there: the bus floats high, and a write goes nowhere.
fn unclaimed(write: bool, mut data: ExitData) -> VmEntry {
    if write {
        return VmEntry::Done;
    }
    data.fill(0xff);
    VmEntry::Reply(data)
}

fn number(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
