//! What a worker is given.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cellblock_channel::memory::{self, ReadOnly, Sealed};
use cellblock_channel::register_page;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_hypervisor_kvm::RegisterPage;
use cellblock_memory::GuestRam;
use cellblock_wire::Version;
use cellblock_wire::control::{FIXED_DESCRIPTORS, Fallback, Grant, ToWorker};
use cellblock_wire::device::{DeviceConfig, IN_FLIGHT_BYTES, Role, host_bytes};

use super::Worker;
use crate::error::BuildError;
use crate::plan::{DevicePlan, Kick};
use crate::proxy::CauseAnswers;

/// A device's events that go between KVM and its worker, past the supervisor.
#[derive(Default)]
pub(crate) struct Wires {
    /// The descriptors to raise the device's interrupts with, and their lines.
    pub interrupts: Vec<(OwnedFd, u32)>,
    /// The descriptors that count the guest's kicks, and what is one.
    pub kicks: Vec<(OwnedFd, Kick)>,
    /// Writes that nobody needs to know of.
    pub forgotten: Vec<Kick>,
    /// The pages from which the guest reads registers.
    pub pages: Vec<RegisterPage>,
}

impl Wires {
    pub(crate) fn append(&mut self, more: Wires) {
        self.interrupts.extend(more.interrupts);
        self.kicks.extend(more.kicks);
        self.forgotten.extend(more.forgotten);
        self.pages.extend(more.pages);
    }
}

impl Worker {
    /// What it begins with, if the state page has nothing to go on with.
    fn fallback(&self) -> Fallback {
        self.shadow.as_ref().map_or(Fallback::PowerOn, |shadow| Fallback::Registers(shadow.read()))
    }

    /// Sends the grant; the process may not exist yet, the socket keeps it.
    pub(crate) fn grant(&self) -> Result<(), BuildError> {
        self.send_grant(&self.control, &self.replies, self.generation, false)
    }

    /// Sends by `control` the grant of incarnation `generation`, which answers by `replies`, and begins at rest or not.
    pub(super) fn send_grant(
        &self,
        control: &Control,
        replies: &Sealed<ReadOnly>,
        generation: u32,
        resting: bool,
    ) -> Result<(), BuildError> {
        let roles = || self.roles.iter().filter(|(role, _)| self.grants(*role));
        let message = ToWorker::Grant(Grant {
            version: Version::CURRENT,
            generation,
            lanes: self.lanes,
            poll_max_us: u32::try_from(self.means.longest.as_micros()).unwrap_or(u32::MAX),
            resting,
            roles: roles().map(|(role, _)| *role).collect(),
            config: self.config.clone(),
            // One that is to relieve another has to be able to go on where that is, or leave it.
            fallback: if resting { Fallback::Refuse } else { self.fallback() },
        });
        let fixed: [BorrowedFd<'_>; FIXED_DESCRIPTORS] =
            [self.requests.fd.as_fd(), replies.fd.as_fd(), self.state_page.fd.as_fd(), self.bell.as_fd()];
        let descriptors: Vec<BorrowedFd<'_>> =
            fixed.into_iter().chain(roles().map(|(_, fd)| fd.as_fd())).collect();
        match control.send_message(&message, &descriptors) {
            // A spare that has just ended is reported by the spawner, as any other end.
            Ok(()) | Err(SocketError::Closed) => Ok(()),
            Err(source) => Err(BuildError::Grant { device: self.kind(), reason: source.to_string() }),
        }
    }
}

/// What belongs to a device, whichever worker it has.
pub(super) struct Resources {
    pub roles: Vec<(Role, OwnedFd)>,
    pub wires: Wires,
    pub causes: Option<CauseAnswers>,
}

/// What every incarnation of the planned device is granted beside its rings, and what of it KVM needs.
pub(super) fn resources(plan: &mut DevicePlan, ram: Option<&GuestRam>) -> Result<Resources, BuildError> {
    let kind = plan.config.kind();
    let failed = |what| move |source| BuildError::Worker { device: kind, what, source };
    let mut roles = std::mem::take(&mut plan.resources);
    if let Some(ram) = ram.filter(|_| plan.memory) {
        roles.extend(memory_roles(ram).map_err(failed("descriptor of guest memory"))?);
    }
    let mut wires = Wires::default();
    for (number, gsi) in plan.gsis.iter().enumerate() {
        let raise = interrupt_eventfd().map_err(failed("interrupt eventfd"))?;
        let own = raise.try_clone().map_err(failed("interrupt eventfd"))?;
        roles.push((Role::Interrupt(number as u8), raise));
        wires.interrupts.push((own, *gsi));
    }
    for (number, kick) in (0..).zip(&plan.kicks) {
        let count = kick_eventfd().map_err(failed("kick eventfd"))?;
        let own = count.try_clone().map_err(failed("kick eventfd"))?;
        roles.push((Role::QueueKick(number), count));
        wires.kicks.push((own, *kick));
    }
    if let DeviceConfig::Serial { buffer, .. } = plan.config
        && roles.iter().any(|(role, _)| matches!(role, Role::HostInput | Role::HostOutput))
    {
        let bytes = memory::create_replies(kind.name(), host_bytes(buffer));
        let memory = "memory of bytes from and to the host";
        let bytes = bytes.map_err(|source| BuildError::Memory { device: kind, memory, source })?;
        roles.push((Role::HostBytes, bytes.fd));
    }
    let mut causes = None;
    if let (Some(registers), Some(region)) = (plan.causes, plan.regions.first()) {
        let memory = memory::create_shared(kind.name(), register_page::BYTES);
        let memory =
            memory.map_err(|source| BuildError::Memory { device: kind, memory: "register page", source })?;
        let own = memory.fd.try_clone().map_err(failed("register page"))?;
        wires.pages.push(RegisterPage { address: region.base, memory: own });
        wires.forgotten.push(Kick { address: region.base + registers.acknowledge, value: registers.lasting });
        roles.push((Role::Registers, memory.fd));
        causes = Some(CauseAnswers { registers, page: register_page::RegisterPage::new(memory.map) });
    }
    if !plan.kicks.is_empty() {
        let bytes = plan.kicks.len() * IN_FLIGHT_BYTES;
        let pages = memory::create_replies(kind.name(), bytes).map_err(|source| BuildError::Memory {
            device: kind,
            memory: "memory of requests in flight",
            source,
        })?;
        roles.push((Role::InFlight, pages.fd));
    }
    Ok(Resources { roles, wires, causes })
}

/// Guest memory, piece by piece.
fn memory_roles(ram: &GuestRam) -> std::io::Result<Vec<(Role, OwnedFd)>> {
    let regions = cellblock_memory::regions(ram.bytes()).map_err(std::io::Error::other)?;
    let role = |region: cellblock_memory::Region| {
        let (address, bytes, offset) = (region.guest_addr, region.len, region.file_offset);
        Ok((Role::GuestMemory { address, bytes, offset }, ram.fd().try_clone_to_owned()?))
    };
    regions.into_iter().map(role).collect()
}

/// KVM counts it up, a thread of the worker waits in it: it blocks. The supervisor neither reads nor writes it.
fn kick_eventfd() -> std::io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// The worker writes it, KVM takes it.
fn interrupt_eventfd() -> std::io::Result<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}
