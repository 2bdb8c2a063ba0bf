//! The first message: received, checked, and made into a server.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cellblock_channel::doorbell::Bell;
use cellblock_channel::memory::{self, Mapping, MemoryError, Writable};
use cellblock_channel::process::fault;
use cellblock_channel::socket::{Control, SocketError};
use cellblock_channel::{Responder, StateWriter};
use cellblock_ring::layout;
use cellblock_ring::state_page::{Committed, MAX_DEVICE_BYTES, Shape};
use cellblock_wire::Version;
use cellblock_wire::control::{FIXED_DESCRIPTORS, Fallback, FromWorker, Grant, MAX_ROLES, ToWorker};
use cellblock_wire::device::{DeviceKind, Role};
use rustix::event::{EventfdFlags, eventfd};

use super::cut;
use super::parts::Parts;
use super::refusal::Refusal;
use super::serve::{Server, Wiring};
use crate::device::Device;
use crate::fail_point::{self, Step, reach};
use crate::host::Crew;
use crate::state::{self, StateError};
use crate::vhost_user::Session;
use crate::virtio::Transport;
use crate::virtio::engine::Engine;

/// The rooms for device bytes that a state page may have been made with.
const STATE_ROOMS: [usize; 2] = [state::CAPACITY, MAX_DEVICE_BYTES];

/// A grant that holds together, with its descriptors.
#[derive(Debug)]
pub(super) struct Granted {
    grant: Grant,
    requests: OwnedFd,
    replies: OwnedFd,
    page: OwnedFd,
    bell: Bell,
    roles: Vec<(Role, OwnedFd)>,
    crew: Crew,
}

/// Waits for the grant for a device of kind `own`, or of any.
pub(super) fn receive(control: &Control, own: Option<DeviceKind>) -> Result<Granted, Refusal> {
    let most = FIXED_DESCRIPTORS + MAX_ROLES;
    let mut crew = Crew::default();
    let (message, descriptors) = match control.try_recv_message(most) {
        // One that is to wait may well be ready when it is called.
        Err(SocketError::NotReady) => {
            crew = Crew::waiting(threads(own));
            control.recv_message(most)?
        }
        received => received?,
    };
    let ToWorker::Grant(grant) = message else { return Err(Refusal::NoGrant) };
    check(&grant, own)?;
    fail_point::arm(grant.generation);
    reach(Step::Granted);
    assign(grant, descriptors, crew)
}

/// The threads that each device of kind `own` has, whatever its grant.
fn threads(own: Option<DeviceKind>) -> &'static [&'static str] {
    match own {
        Some(DeviceKind::Serial) => &["host output", "host input"],
        Some(
            DeviceKind::Block
            | DeviceKind::Net
            | DeviceKind::Entropy
            | DeviceKind::Console
            | DeviceKind::Balloon
            | DeviceKind::Vsock,
        ) => &["queue 0"],
        _ => &[],
    }
}

fn check(grant: &Grant, own: Option<DeviceKind>) -> Result<(), Refusal> {
    let ours = Version::CURRENT;
    if !ours.accepts(grant.version) {
        return Err(Refusal::Version { theirs: grant.version, ours });
    }
    let wanted = grant.config.kind();
    if let Some(own) = own.filter(|own| *own != wanted) {
        return Err(Refusal::Kind { wanted, own });
    }
    let twice = grant
        .roles
        .iter()
        .enumerate()
        .find(|(index, role)| grant.roles.iter().take(*index).any(|r| r == *role));
    twice.map_or(Ok(()), |(_, role)| Err(Refusal::Twice(*role)))
}

fn assign(grant: Grant, descriptors: Vec<OwnedFd>, crew: Crew) -> Result<Granted, Refusal> {
    let (found, needed) = (descriptors.len(), FIXED_DESCRIPTORS + grant.roles.len());
    let mismatch = Refusal::Descriptors { found, needed };
    if found != needed {
        return Err(mismatch);
    }
    let mut rest = descriptors.into_iter();
    let (Some(requests), Some(replies), Some(page), Some(bell)) =
        (rest.next(), rest.next(), rest.next(), rest.next())
    else {
        return Err(mismatch);
    };
    let roles = grant.roles.iter().copied().zip(rest).collect();
    Ok(Granted { grant, requests, replies, page, bell: Bell::from_fd(bell), roles, crew })
}

impl Granted {
    /// From now on a fault or a refused system call is noted in the replies before the process dies of it.
    pub(super) fn note_faults(&self) -> Result<(), Refusal> {
        let replies = memory::open_write(&self.replies, memory::bytes(layout::reply_words(self.grant.lanes)))
            .map_err(|source| Refusal::Memory { part: "replies", source })?;
        fault::watch(replies).map_err(|source| Refusal::system("signal handlers", source))
    }

    /// Builds the device, gives it its predecessor's state, and wires it up.
    pub(super) fn build<D: Device>(
        self,
        control: &Control,
        build: impl FnOnce(&mut Parts) -> Result<D, Refusal>,
    ) -> Result<Server<D>, Refusal> {
        let Grant { lanes, generation, poll_max_us, resting, config, fallback, .. } = self.grant;
        let part = |part| move |source| Refusal::Memory { part, source };
        let requests = memory::open_read(&self.requests, memory::bytes(layout::request_words(lanes)))
            .map_err(part("requests"))?;
        let replies = memory::open_write(&self.replies, memory::bytes(layout::reply_words(lanes)))
            .map_err(part("replies"))?;
        let (map, shape) = open_page(&self.page, lanes).map_err(part("state page"))?;
        let responder = Responder::new(requests, replies, lanes, generation)?;

        let wake = wake_line()?;
        let parts = Parts::new(config, self.roles, self.crew, Arc::clone(&wake)).with_driver(&fallback);
        let mut parts = parts.with_page().map_err(part("register page"))?;
        let mut device = build(&mut parts)?;
        parts.all_taken()?;
        reach(Step::Built);
        if resting {
            // Nothing that the restored state asks for is begun yet.
            device.quiesce();
        }
        device.begin(generation);
        let (page, predecessor) = match inherit(&mut device, &map, shape, generation, &fallback) {
            // At rest the state is still the predecessor's, which goes on with it then.
            Err(refusal) if fallback != Fallback::Refuse && !resting => {
                // A supervisor that does not read its socket is not told.
                let _ =
                    control.send_message(&FromWorker::StateLost { reason: cut(&refusal.to_string()) }, &[]);
                take_over(&mut device, None, &fallback)?;
                (StateWriter::format(map, shape, generation)?, None)
            }
            inherited => inherited?,
        };
        reach(Step::Restored);
        let wiring = Wiring { responder, page, bell: self.bell, wake, tally: parts.tally(), poll_max_us };
        let server = Server::new(device, wiring, predecessor, resting, control)?;
        // They had the time since.
        parts.all_run()?;
        Ok(server)
    }
}

/// Gives `device` what a predecessor left in the state page, if one did.
fn inherit<D: Device>(
    device: &mut D,
    map: &Mapping<Writable>,
    shape: Shape,
    generation: u32,
    fallback: &Fallback,
) -> Result<(StateWriter, Option<Committed>), Refusal> {
    let (page, predecessor) = StateWriter::open(map.clone(), shape, generation)?;
    reach(Step::PageOpened);
    take_over(device, predecessor.as_ref(), fallback)?;
    Ok((page, predecessor))
}

fn take_over<D: Device>(
    device: &mut D,
    predecessor: Option<&Committed>,
    fallback: &Fallback,
) -> Result<(), StateError> {
    match (fallback, predecessor.map(|committed| &*committed.device)) {
        (Fallback::Registers(registers), saved) => device.reconstruct(registers, saved),
        (Fallback::Refuse | Fallback::PowerOn, Some(saved)) => device.restore(saved),
        (Fallback::Refuse | Fallback::PowerOn, None) => {
            device.power_on();
            Ok(())
        }
    }
}

/// What a grant comes to.
pub(super) enum Service<D, E: Engine> {
    /// The guest's register accesses come through the supervisor's rings.
    Registers(Server<D>),
    /// Another VMM keeps the registers.
    FrontEnd(Session<E>),
}

impl Granted {
    /// As [`Granted::build`], of a virtio device; or a session for the front end of the grant, whose rings and state page are
    /// not used then.
    pub(super) fn build_virtio<E: Engine>(
        mut self,
        control: &Control,
        build: impl FnOnce(&mut Parts) -> Result<Transport<E>, Refusal>,
    ) -> Result<Service<Transport<E>, E>, Refusal> {
        if !self.grant.roles.contains(&Role::VhostUser) {
            return Ok(Service::Registers(self.build(control, build)?));
        }
        let roles = std::mem::take(&mut self.roles);
        let mut parts = Parts::new(self.grant.config, roles, self.crew, wake_line()?);
        let front_end = parts.front_end().ok_or(Refusal::Missing("the front end's socket"))?;
        let device = build(&mut parts)?.into_bare();
        parts.all_taken()?;
        let session = Session::new(device, front_end, parts.tally(), control)?;
        parts.all_run()?;
        Ok(Service::FrontEnd(session))
    }
}

/// By which other threads wake the register thread.
fn wake_line() -> Result<Arc<OwnedFd>, Refusal> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    wake.map(Arc::new).map_err(|errno| Refusal::system("eventfd", errno))
}

/// The page's shape is part of the protocol but for its room, which its size tells.
fn open_page(fd: &OwnedFd, lanes: u32) -> Result<(Mapping<Writable>, Shape), MemoryError> {
    let open = |room| {
        let shape = Shape::new(lanes, room);
        memory::open_write(fd, memory::bytes(shape.words())).map(|page| (page, shape))
    };
    let [usual, largest] = STATE_ROOMS;
    open(usual)
        .or_else(|error| if matches!(error, MemoryError::Size { .. }) { open(largest) } else { Err(error) })
}
