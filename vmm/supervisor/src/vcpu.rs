//! The vCPU actor: one thread that enters the guest, hands each exit to a device's worker, and re-enters with the reply.
//!
//! States: *running* until it meets its end, which it reports once. It owns its vCPU, its lanes and its mailbox; it
//! shares the bus, which never changes while it runs. There is no lock on its path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cellblock_bus::Bus;
use cellblock_channel::KickWatch;
use cellblock_hypervisor::{ExitData, Vcpu, VmEntry, VmExit};
use cellblock_ring::Access;
use cellblock_wire::slot::{Action, Op, Space};
use crossbeam_channel::Receiver;

use crate::proxy::{NoAnswer, Proxy};

/// What the VM actor tells a vCPU; a kick goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// End, without finishing the open exit.
    Stop,
}

/// How a vCPU ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    PowerOff,
    Reset,
    TripleFault,
    Internal(String),
    /// The device of this index gave no usable answer.
    Device {
        index: usize,
        reason: String,
    },
    Stopped,
}

/// One vCPU's thread.
pub(crate) struct VcpuActor<V> {
    pub vcpu: V,
    pub bus: Arc<Bus>,
    /// One for each device, by its index.
    pub proxies: Vec<Proxy>,
    pub kicks: KickWatch,
    pub commands: Receiver<Command>,
    pub exits: Arc<AtomicU64>,
}

impl<V: Vcpu> VcpuActor<V> {
    /// Runs the vCPU to its end.
    pub(crate) fn run(mut self) -> Ended {
        let mut entry = VmEntry::Resume;
        loop {
            let exit = match self.vcpu.run(entry) {
                Ok(exit) => exit,
                Err(error) => return Ended::Internal(error.to_string()),
            };
            // SYNC POINT: none; a count for people.
            self.exits.fetch_add(1, Ordering::Relaxed);
            entry = match self.answer(exit) {
                Ok(entry) => entry,
                Err(ended) => return ended,
            };
        }
    }

    fn answer(&mut self, exit: VmExit) -> Result<VmEntry, Ended> {
        match exit {
            VmExit::Mmio { addr, write, data } => self.access(Space::Mmio, addr, write, data),
            VmExit::Pio { port, write, data } => self.access(Space::Pio, port.into(), write, data),
            // No hypercall reaches user space by design of the board: -KVM_ENOSYS, as the kernel itself answers.
            VmExit::Hypercall { .. } => Ok(VmEntry::Reply(ExitData::from((-1000i64).to_le_bytes()))),
            VmExit::Kicked if told_to_stop(&self.commands) => Err(Ended::Stopped),
            VmExit::Kicked => Ok(VmEntry::Resume),
            VmExit::Shutdown => Err(Ended::PowerOff),
            VmExit::Reset => Err(Ended::Reset),
            VmExit::TripleFault => Err(Ended::TripleFault),
            VmExit::InternalError(text) => Err(Ended::Internal(text)),
            other => Err(Ended::Internal(format!("an exit that this board does not have: {other:?}"))),
        }
    }

    fn access(&mut self, space: Space, addr: u64, write: bool, mut data: ExitData) -> Result<VmEntry, Ended> {
        let size = data.len();
        let hit = self.bus.find(space, addr, size).filter(|_| matches!(size, 1 | 2 | 4 | 8));
        let Some((hit, proxy)) = hit.and_then(|hit| Some((hit, self.proxies.get_mut(hit.target.device)?)))
        else {
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
        let commands = &self.commands;
        let stopped = || told_to_stop(commands);
        let reply = proxy.access(&access, &mut self.kicks, stopped).map_err(|error| match error {
            NoAnswer::Stopped => Ended::Stopped,
            other => Ended::Device { index: hit.target.device, reason: other.to_string() },
        })?;
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
}

/// A supervisor whose loop is gone has no use for this vCPU either.
fn told_to_stop(commands: &Receiver<Command>) -> bool {
    !matches!(commands.try_recv(), Err(crossbeam_channel::TryRecvError::Empty))
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
