//! What the front end's messages do: memory, features, configuration, and a state machine for each queue.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cellblock_wire::control::MAX_TEXT;
use cellblock_wire::device::{IN_FLIGHT_BYTES, MAX_QUEUE_SIZE, MAX_QUEUES};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};
use vm_memory::{Bytes, GuestAddress};

use super::calls::Calls;
use super::memory::Memory;
use crate::device::Event;
use crate::virtio::engine::Engine;
use crate::virtio::inflight::Pages;
use crate::virtio::queue::{Layout, Position, QueueError, Virtqueue};
use crate::virtio::spec::feature;
use crate::virtio::transport::{Bare, Identity};

/// How long a queue's request in flight may take when the queue is to stop. The front end waits meanwhile; past it the session
/// ends.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of memory for requests in flight: for as many queues as a device may have.
const PAGES_BYTES: u64 = (IN_FLIGHT_BYTES * MAX_QUEUES as usize) as u64;
/// The feature bit by which a back end says that it has protocol features; it is no feature of the device.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// One queue, as the front end has described it so far.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    /// Descriptor table, available and used ring, in the front end's own addresses.
    rings: Option<[u64; 3]>,
    /// The available index to begin at.
    base: u16,
    kick: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// A device behind the protocol.
pub(super) struct Backend<E> {
    identity: Identity,
    engine: E,
    on_event: Option<Box<dyn FnMut(Event)>>,
    calls: Calls,
    memory: Memory,
    features: u64,
    accepted: bool,
    vrings: Vec<Vring>,
    /// Memory for requests in flight, for a front end that asks for some.
    own_pages: Option<OwnedFd>,
    /// Where requests in flight are recorded.
    pages: Option<Pages>,
    /// Why the last message failed, for people: the protocol has no words for it.
    complaint: String,
}

impl<E: Engine> Backend<E> {
    pub(super) fn new(
        Bare { identity, engine, on_event, .. }: Bare<E>,
        calls: Calls,
        own_pages: Option<OwnedFd>,
    ) -> Self {
        let vrings = (0..identity.queues).map(|_| Vring::default()).collect();
        let (memory, complaint) = (Memory::none(), String::with_capacity(MAX_TEXT));
        let (features, accepted, pages) = (0, false, None);
        Backend {
            identity,
            engine,
            on_event,
            calls,
            memory,
            features,
            accepted,
            vrings,
            own_pages,
            pages,
            complaint,
        }
    }

    /// Whether the front end has accepted features, or none, yet.
    pub(super) fn has_accepted(&self) -> bool {
        self.accepted
    }

    /// Why the last message failed, if there is more to say than the protocol's error.
    pub(super) fn complaint(&self) -> &str {
        &self.complaint
    }

    /// Has requests in flight done, and nothing after them.
    pub(super) fn finish(&mut self) {
        (0..self.vrings.len()).for_each(|index| self.engine.stop(index));
        (0..self.vrings.len()).all(|index| self.engine.settle(index, STOP_PATIENCE));
    }

    fn refused<T>(&mut self, complaint: String) -> Result<T> {
        self.complaint = complaint;
        Err(Error::InvalidParam)
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Takes queue `index` out of service, if it is in; its next service begins where this ended.
    fn stop(&mut self, index: usize) -> Result<()> {
        let Some(vring) = self.vrings.get_mut(index).filter(|vring| vring.running) else { return Ok(()) };
        vring.running = false;
        self.engine.stop(index);
        if !self.engine.settle(index, STOP_PATIENCE) {
            let patience = STOP_PATIENCE.as_secs();
            self.complaint = format!("queue {index} still has a request in flight after {patience} s");
            return Err(Error::BackendInternalError);
        }
        // All devices use buffers in the order in which they were made available, so what is used is how far it got.
        if let Some(used) = self.used_index(index)
            && let Some(vring) = self.vrings.get_mut(index)
        {
            vring.base = used;
        }
        Ok(())
    }

    fn used_index(&self, index: usize) -> Option<u16> {
        let ring = self.layout(index)?.device;
        let used = self.memory.ram.memory().read_obj::<u16>(GuestAddress(ring.checked_add(2)?));
        used.ok().map(u16::from_le)
    }

    fn layout(&self, index: usize) -> Option<Layout> {
        let vring = self.vrings.get(index)?;
        let [desc, driver, device] = vring.rings?;
        let guest = |address| self.memory.guest_address(address);
        Some(Layout { size: vring.size, desc: guest(desc)?, driver: guest(driver)?, device: guest(device)? })
    }

    /// Queue `index`, where the record of requests in flight says that it was; else from available index `base` on.
    fn virtqueue(
        &self,
        index: usize,
        layout: &Layout,
        base: u16,
    ) -> std::result::Result<Virtqueue, QueueError> {
        let make = |from, record| {
            let (ram, most) = (self.memory.ram.clone(), self.identity.queue_size);
            Virtqueue::recorded(layout, most, ram, self.features, from, record)
        };
        let record = || self.pages.as_ref().and_then(|pages| pages.region(index));
        if record().is_some_and(|record| record.is_begun()) {
            match make(Position::Resume, record()) {
                // It is of another time of the queue, or a predecessor has broken it.
                Err(QueueError::InFlight { .. }) => {}
                made => return made,
            }
        }
        make(Position::At(base), record())
    }

    /// Puts queue `index` into service, if all is there that it needs.
    fn start(&mut self, index: usize) -> Result<()> {
        let Some(vring) = self.vrings.get(index) else { return Ok(()) };
        if vring.running || vring.kick.is_none() || !vring.enabled || vring.rings.is_none() {
            return Ok(());
        }
        if self.features & feature::VERSION_1 == 0 {
            return self.refused(format!(
                "queue {index} starts without VIRTIO_F_VERSION_1; legacy drivers are not served"
            ));
        }
        let base = vring.base;
        let Some(layout) = self.layout(index) else {
            return self
                .refused(format!("queue {index} starts, but its rings are not in the memory that was lent"));
        };
        match self.virtqueue(index, &layout, base) {
            Ok(queue) => self.engine.start(index, queue, self.features),
            Err(error) => return self.refused(format!("queue {index}: {error}")),
        }
        if let Some(vring) = self.vrings.get_mut(index) {
            vring.running = true;
        }
        Ok(())
    }

    /// Ends queue `index`'s service until it gets kicks again.
    fn silence(&mut self, index: usize) -> Result<()> {
        self.stop(index)?;
        if let Some(kick) = self.vrings.get_mut(index).and_then(|vring| vring.kick.take()) {
            self.engine.deafen(index, kick.as_fd());
        }
        Ok(())
    }

    /// Changes what is known of a queue, out of service.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        self.vring(index)?;
        self.stop(index as usize)?;
        change(self.vring(index)?);
        self.start(index as usize)
    }
}

impl<E: Engine> VhostUserBackendReqHandlerMut for Backend<E> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        (0..self.vrings.len()).try_for_each(|index| self.silence(index))?;
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.identity.features | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let beyond = features & !(self.identity.features | PROTOCOL_FEATURES);
        if beyond != 0 {
            return self.refused(format!("features {beyond:#x} are accepted, but were not offered"));
        }
        // Without protocol features there is no message that enables a queue.
        let all_enabled = features & PROTOCOL_FEATURES == 0;
        for index in 0..self.vrings.len() {
            self.stop(index)?;
            if let Some(vring) = self.vrings.get_mut(index) {
                vring.enabled |= all_enabled;
            }
        }
        (self.features, self.accepted) = (features & !PROTOCOL_FEATURES, true);
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        (0..self.vrings.len()).try_for_each(|index| self.stop(index))?;
        self.memory = match Memory::map(regions, files) {
            Ok(memory) => memory,
            Err(error) => return self.refused(error.to_string()),
        };
        (0..self.vrings.len()).try_for_each(|index| self.start(index))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        // A size that does not fit is as wrong as zero: the queue does not start.
        self.change(index, |vring| vring.size = u16::try_from(num).unwrap_or(0))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.change(index, |vring| vring.rings = Some([descriptor, available, used]))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return self
                .refused(format!("queue {index} is to begin at {base}, which is no split ring's index"));
        };
        self.change(index, |vring| vring.base = base)
    }

    /// Ends the queue's service, too.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.silence(index as usize)?;
        let base = self.vring(index)?.base;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Some(fd) = fd else {
            return self.refused(format!("queue {index} comes without kicks; rings are not polled"));
        };
        self.vring(index.into())?;
        self.silence(index.into())?;
        if let Err(error) = self.engine.listen_to(index.into(), fd.as_fd()) {
            return self.refused(format!("queue {index}: its kicks cannot be waited for: {error}"));
        }
        self.vring(index.into())?.kick = Some(fd.into());
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?;
        self.calls.set_used(index.into(), fd.map(OwnedFd::from));
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?;
        self.calls.set_broken(index.into(), fd.map(OwnedFd::from));
        Ok(())
    }

    /// `REPLY_ACK` is added by the crate.
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let always = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::RESET_DEVICE;
        let config = if self.identity.config.is_empty() {
            VhostUserProtocolFeatures::empty()
        } else {
            VhostUserProtocolFeatures::CONFIG
        };
        let in_flight = if self.own_pages.is_some() {
            VhostUserProtocolFeatures::INFLIGHT_SHMFD
        } else {
            VhostUserProtocolFeatures::empty()
        };
        Ok(always | config | in_flight)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.identity.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.vring(index)?.enabled == enable {
            return Ok(());
        }
        self.change(index, |vring| vring.enabled = enable)
    }

    /// Past its end the configuration space reads as zeroes: front ends ask for as much as their own header says.
    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The crate has bounded it by a message's length.
        let mut bytes = vec![0; size as usize];
        self.identity.config.get(offset as usize, &mut bytes);
        Ok(bytes)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if !self.identity.config.allows(offset as usize, bytes.len()) {
            let length = bytes.len();
            return self
                .refused(format!("{length} bytes at {offset} of the configuration space are not writable"));
        }
        if self.identity.config.write(offset as usize, bytes)
            && let Some(handler) = &mut self.on_event
        {
            handler(Event::ConfigWritten);
            self.engine.nudge();
        }
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: vhost::vhost_user::GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }

    /// Fresh memory: nothing is in flight in it.
    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        if wanted.num_queues > MAX_QUEUES || wanted.queue_size > MAX_QUEUE_SIZE {
            let (queues, size) = (wanted.num_queues, wanted.queue_size);
            return self.refused(format!("{queues} queues of {size} are to be recorded; there is less room"));
        }
        (0..self.vrings.len()).try_for_each(|index| self.stop(index))?;
        let Some(own) = &self.own_pages else { return self.refused("nothing is recorded".to_owned()) };
        let made = Pages::open(own, MAX_QUEUES).map_err(|error| error.to_string()).and_then(|pages| {
            (0..MAX_QUEUES.into()).filter_map(|index| pages.region(index)).for_each(|region| region.forget());
            own.try_clone().map_err(|error| error.to_string())
        });
        match made {
            Ok(fd) => {
                let answer = VhostUserInflight { mmap_size: PAGES_BYTES, mmap_offset: 0, ..*wanted };
                Ok((answer, fd.into()))
            }
            Err(error) => self.refused(format!("memory of requests in flight: {error}")),
        }
    }

    /// What [`get_inflight_fd`](Self::get_inflight_fd) has given, now or to a front end that has lost its worker.
    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        if inflight.mmap_size != PAGES_BYTES || inflight.mmap_offset != 0 {
            let (bytes, offset) = (inflight.mmap_size, inflight.mmap_offset);
            return self.refused(format!(
                "memory of requests in flight has {bytes} bytes at {offset}; ours had not"
            ));
        }
        (0..self.vrings.len()).try_for_each(|index| self.stop(index))?;
        match Pages::open(&file.into(), MAX_QUEUES) {
            Ok(pages) => self.pages = Some(pages),
            Err(error) => return self.refused(format!("memory of requests in flight: {error}")),
        }
        (0..self.vrings.len()).try_for_each(|index| self.start(index))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidParam)
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        Err(Error::InvalidParam)
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidParam)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}
