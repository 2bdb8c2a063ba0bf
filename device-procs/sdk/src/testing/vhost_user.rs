//! A front end, as other VMMs have it: an [`Engine`] whose queues a back end serves over vhost-user. Behind our own
//! [`Transport`] it makes a [`Host`](super::Host), so that the probes of a device run on a worker that is a back end, too.
#![allow(clippy::expect_used, reason = "part of the tests: what goes wrong here fails the test")]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cellblock_channel::memory;
use cellblock_wire::device::{IN_FLIGHT_BYTES, MAX_QUEUES, Role};
use rustix::fs::fstat;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Harness;
use super::virtio::{Driver, Edges, RAM_BYTES};
use crate::virtio::engine::Engine;
use crate::virtio::queue::Virtqueue;
use crate::virtio::{Identity, Interrupt, Ram, Space, Transport};

/// Where the front end says that guest memory begins in its own address space.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
/// The device's own features (§2.2): what is above is the transport's.
const DEVICE_FEATURES: u64 = (1 << 24) - 1;

/// What a supervisor grants besides a connection: memory for requests in flight.
///
/// # Panics
/// No descriptors are left.
pub fn in_flight() -> (Role, OwnedFd) {
    let bytes = IN_FLIGHT_BYTES * usize::from(MAX_QUEUES);
    (Role::InFlight, memory::create_replies("in flight", bytes).expect("a memfd").fd)
}

/// A socket pair: the front end's end, and what the worker is granted.
///
/// # Panics
/// No descriptors are left.
pub fn connection() -> (UnixStream, Role, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    (ours, Role::VhostUser, theirs.into())
}

/// A front end's connection after the handshake.
pub struct Remote {
    frontend: Frontend,
    /// Each queue's kicks, signals and errors.
    events: Vec<[EventFd; 3]>,
    /// Hears the signals and errors.
    listener: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
    /// Held while nothing is to be heard.
    quiet: Arc<Mutex<()>>,
    features: u64,
    protocol_features: VhostUserProtocolFeatures,
    serving: Vec<bool>,
}

impl Remote {
    /// Shakes hands over `stream`, and lends `memory`.
    ///
    /// # Panics
    /// The back end does not.
    pub fn connect(stream: UnixStream, memory: &OwnedFd, interrupt: Interrupt) -> Remote {
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner().expect("set_owner");
        let features = frontend.get_features().expect("get_features");
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert!(features & protocol != 0, "no protocol features: {features:#x}");
        frontend.set_features(features).expect("set_features");
        let protocol_features = frontend.get_protocol_features().expect("get_protocol_features");
        frontend.set_protocol_features(protocol_features).expect("set_protocol_features");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let queues = frontend.get_queue_num().expect("get_queue_num") as usize;
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let events: Vec<_> = (0..queues).map(|_| [event(), event(), event()]).collect();
        let heard = events.iter().map(|[_, call, error]| {
            (call.try_clone().expect("a descriptor"), error.try_clone().expect("a descriptor"))
        });
        let (heard, over): (Vec<_>, _) = (heard.collect(), Arc::new(AtomicBool::new(false)));
        let quiet: Arc<Mutex<()>> = Arc::default();
        let (until, hush) = (Arc::clone(&over), Arc::clone(&quiet));
        let listener = Some(std::thread::spawn(move || listen(&heard, &interrupt, &until, &hush)));
        let serving = vec![false; queues];
        let mut remote =
            Remote { frontend, events, listener, over, quiet, features, protocol_features, serving };
        remote.lend(memory);
        remote
    }

    /// Lends `memory` as the whole of guest memory.
    ///
    /// # Panics
    /// The back end does not take it.
    pub fn lend(&mut self, memory: &OwnedFd) {
        let bytes = fstat(memory).expect("fstat").st_size as u64;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: bytes.min(RAM_BYTES),
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).expect("set_mem_table");
    }

    /// Asks for memory in which requests in flight are recorded, and has it used: what a later back end is to go on with.
    ///
    /// # Panics
    /// The back end has none.
    pub fn record(&mut self) -> (VhostUserInflight, File) {
        let wanted = VhostUserInflight::new(0, 0, self.events.len() as u16, 16);
        let (inflight, file) = self.frontend.get_inflight_fd(&wanted).expect("get_inflight_fd");
        self.go_on_with(&inflight, &file);
        (inflight, file)
    }

    /// Gives the back end what an earlier one has recorded.
    ///
    /// # Panics
    /// It does not take it.
    pub fn go_on_with(&mut self, inflight: &VhostUserInflight, file: &File) {
        self.frontend.set_inflight_fd(inflight, file.as_raw_fd()).expect("set_inflight_fd");
    }

    /// The configuration space's first `length` bytes.
    ///
    /// # Panics
    /// The back end does not tell.
    pub fn configuration(&mut self, length: usize) -> Vec<u8> {
        let wanted = vec![0; length];
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(0, length as u32, flags, &wanted).expect("get_config").1
    }

    /// Describes queue `index` to the back end, from available index `base` on, and lets it go.
    ///
    /// # Errors
    /// The back end refuses.
    pub fn describe(&mut self, index: usize, queue: &Virtqueue, base: u16) -> vhost::Result<()> {
        let layout = queue.layout();
        let [kick, call, error] = self.events.get(index).expect("a queue of the device");
        self.frontend.set_vring_num(index, layout.size)?;
        self.frontend.set_vring_base(index, base)?;
        let addresses = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: USER_BASE + layout.desc,
            used_ring_addr: USER_BASE + layout.device,
            avail_ring_addr: USER_BASE + layout.driver,
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &addresses)?;
        self.frontend.set_vring_err(index, error)?;
        {
            // A back end signals at once, in case it had not before: not what a driver waits for.
            let _quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            self.frontend.set_vring_call(index, call)?;
            let _ = call.read();
        }
        self.frontend.set_vring_kick(index, kick)?;
        self.frontend.set_vring_enable(index, true)
    }
}

impl Remote {
    /// Takes queue `index` out of service and puts it back, as for a queue that is not used for a while.
    ///
    /// # Panics
    /// The back end refuses.
    pub fn pause(&mut self, index: usize) {
        self.frontend.set_vring_enable(index, false).expect("set_vring_enable");
        self.frontend.set_vring_enable(index, true).expect("set_vring_enable");
    }

    /// Resets the device (`VHOST_USER_RESET_DEVICE`): the position of queue `index` after it.
    ///
    /// # Panics
    /// The back end refuses.
    pub fn reset(&mut self, index: usize) -> u32 {
        self.frontend.reset_device().expect("reset_device");
        self.serving.fill(false);
        self.frontend.get_vring_base(index).expect("get_vring_base")
    }

    /// Stops queue `index` and has it go on where it was, as for a guest that is stopped and goes on: that position.
    ///
    /// # Panics
    /// The back end refuses.
    pub fn restart(&mut self, index: usize) -> u32 {
        let base = self.frontend.get_vring_base(index).expect("get_vring_base");
        self.frontend.set_vring_base(index, base as u16).expect("set_vring_base");
        let [kick, ..] = self.events.get(index).expect("a queue of the device");
        self.frontend.set_vring_kick(index, kick).expect("set_vring_kick");
        base
    }
}

/// Passes on what the back end signals.
fn listen(heard: &[(EventFd, EventFd)], interrupt: &Interrupt, over: &AtomicBool, quiet: &Mutex<()>) {
    while !over.load(Ordering::Relaxed) {
        let silence = quiet.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (call, error)) in heard.iter().enumerate() {
            for _ in 0..call.read().unwrap_or(0) {
                interrupt.used_buffer_of(index);
            }
            if error.read().is_ok() {
                interrupt.needs_reset();
            }
        }
        drop(silence);
        // The crate's eventfds cannot be polled with others.
        std::thread::sleep(Duration::from_micros(500));
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.listener.take().map(JoinHandle::join);
    }
}

impl Engine for Remote {
    fn start(&mut self, index: usize, queue: Virtqueue, features: u64) {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(features | protocol).expect("set_features");
        self.describe(index, &queue, 0).expect("the queue is taken");
        self.serving.iter_mut().skip(index).take(1).for_each(|serving| *serving = true);
        self.kick(index);
    }

    fn kick(&mut self, index: usize) {
        if let Some([kick, ..]) = self.events.get(index) {
            kick.write(1).expect("an eventfd");
        }
    }

    fn stop(&mut self, index: usize) {
        if self.serving.get_mut(index).is_some_and(std::mem::take) {
            self.frontend.get_vring_base(index).expect("get_vring_base");
        }
    }

    fn busy(&self, _index: usize) -> bool {
        false
    }

    fn settle(&self, _index: usize, _limit: Duration) -> bool {
        true
    }

    /// No front end asks for that.
    fn park(&mut self, _park: bool) {}

    fn is_parked(&self) -> bool {
        false
    }
}

/// A driver of the device (of kind `id`, with queues of at most `queue_size`) that a back end serves over `stream`, in guest
/// memory `ram` of the descriptor `memory`; and the interrupts that it has had.
///
/// # Panics
/// The back end does not shake hands.
pub fn driver(
    stream: UnixStream,
    id: u32,
    queue_size: u16,
    (ram, memory): (Ram, &OwnedFd),
) -> (Driver<Harness<Transport<Remote>>>, Edges) {
    let edges = Edges::default();
    let interrupt = Interrupt::new(edges.clone());
    let mut remote = Remote::connect(stream, memory, interrupt.clone());
    let has_config = remote.protocol_features.contains(VhostUserProtocolFeatures::CONFIG);
    let config = Space::fixed(if has_config { remote.configuration(64) } else { vec![] });
    let identity = Identity {
        id,
        features: remote.features & DEVICE_FEATURES,
        queues: remote.events.len() as u16,
        queue_size,
        config,
    };
    let transport = Transport::new(identity, remote, ram.clone(), interrupt);
    (Driver::new(Harness::new(transport), ram), edges)
}
