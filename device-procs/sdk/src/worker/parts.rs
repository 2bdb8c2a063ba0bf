//! What a device is built of in a worker: the granted descriptors behind the traits of [`crate::device`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cellblock_channel::memory::{self, MemoryError};
use cellblock_channel::ram::{Piece, Ram};
use cellblock_channel::{RegisterPage, clock, register_page};
use cellblock_wire::control::Fallback;
use cellblock_wire::device::{DeviceConfig, DriverRegisters, Role, host_bytes};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::time::{ClockId, clock_gettime};

use super::refusal::Refusal;
use crate::device::{Clock, SECOND, Trigger};
use crate::host::{Crew, Pipes, Tally, WakeLine};
use crate::vhost_user::{Calls, FrontEnd};
use crate::virtio::inflight::Pages;
use crate::virtio::threads::{Post, Threads};
use crate::virtio::{Interrupt, Kept, OneByOne, Raise, Serve, Work};

/// The granted parts. Each role can be taken once; what is left in the end is refused.
#[derive(Debug)]
pub struct Parts {
    config: DeviceConfig,
    roles: Vec<(Role, OwnedFd)>,
    crew: Crew,
    wake: Arc<OwnedFd>,
    tally: Arc<Tally>,
    /// Another VMM is the front end: memory and kicks come from it, later.
    front_end: Option<Calls>,
    /// What the guest reads the registers from; until interrupt line 0 is taken.
    page: Option<RegisterPage>,
    driver: DriverRegisters,
}

impl Parts {
    pub(super) fn new(
        config: DeviceConfig,
        roles: Vec<(Role, OwnedFd)>,
        crew: Crew,
        wake: Arc<OwnedFd>,
    ) -> Self {
        Parts {
            config,
            roles,
            crew,
            wake,
            tally: Arc::default(),
            front_end: None,
            page: None,
            driver: DriverRegisters::default(),
        }
    }

    /// The guest reads the registers from the page that was granted, if one was.
    pub(super) fn with_page(mut self) -> Result<Self, MemoryError> {
        let page = self.take(Role::Registers).map(|fd| memory::open_write(fd, register_page::BYTES));
        self.page = page.transpose()?.map(RegisterPage::new);
        Ok(self)
    }

    /// The device has a driver already.
    pub(super) fn with_driver(mut self, fallback: &Fallback) -> Self {
        if let Fallback::Registers(driver) = fallback {
            self.driver = driver.clone();
        }
        self
    }

    /// What the driver of a virtio device has written so far.
    pub fn driver(&self) -> DriverRegisters {
        self.driver.clone()
    }

    /// For a worker that another VMM drives.
    pub(super) fn front_end(&mut self) -> Option<FrontEnd> {
        let stream = self.take(Role::VhostUser)?;
        let calls = Calls::new(self.tally());
        self.front_end = Some(calls.clone());
        let wake = Arc::clone(&self.wake);
        Some(FrontEnd { stream, calls, in_flight: self.take(Role::InFlight), wake })
    }

    /// What the worker counts.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Waits until the device's threads run.
    ///
    /// # Errors
    /// One has ended.
    pub(super) fn all_run(&mut self) -> Result<(), Refusal> {
        self.crew.run().map_err(|source| Refusal::system("threads", source))
    }

    /// # Errors
    /// A role was not taken.
    pub(super) fn all_taken(&self) -> Result<(), Refusal> {
        self.roles.first().map_or(Ok(()), |(role, _)| Err(Refusal::Unused(*role)))
    }

    /// The device's configuration; its kind is the worker's.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The host's clocks.
    pub fn clock(&self) -> SystemClock {
        SystemClock
    }

    /// Wakes the register thread: the device gets an [`Event::Host`](crate::device::Event::Host).
    pub fn wake_line(&self) -> WakeLine {
        WakeLine::new(Arc::clone(&self.wake))
    }

    /// Interrupt line `line`; one that was not granted is connected to nothing.
    pub fn interrupt(&mut self, line: u8) -> IrqLine {
        let front_end = self.front_end.clone();
        let page = if line == 0 { self.page.take() } else { None };
        IrqLine { eventfd: self.take(Role::Interrupt(line)), front_end, tally: self.tally(), page }
    }

    /// The far end of a byte device, with a thread for each of input and output that was granted. `buffer` bytes of output
    /// are kept for a slow sink, beyond the process if there is memory for it.
    ///
    /// # Errors
    /// A pipe's wrong end was granted, memory of another size, or a thread cannot be made.
    pub fn pipes(&mut self, buffer: u32) -> Result<Pipes, Refusal> {
        let input = self.take_open(Role::HostInput, OFlags::WRONLY, "read")?;
        let output = self.take_open(Role::HostOutput, OFlags::RDONLY, "written")?;
        let wake = self.wake_line();
        let kept = self.take(Role::HostBytes).map(|fd| memory::open_write(fd, host_bytes(buffer)));
        let kept = kept.transpose().map_err(|source| Refusal::Memory { part: "host bytes", source })?;
        let tally = self.tally();
        Pipes::start(&mut self.crew, (input, output), buffer as usize, kept, wake, tally)
            .map_err(|source| Refusal::system("host I/O threads", source))
    }

    /// Guest memory, mapped.
    ///
    /// # Errors
    /// None was granted, or it cannot be mapped.
    pub fn guest_memory(&mut self) -> Result<Ram, Refusal> {
        if self.front_end.is_some() {
            return Ok(Ram::none());
        }
        let is_memory = |(role, _): &mut (Role, OwnedFd)| matches!(role, Role::GuestMemory { .. });
        let pieces = self.roles.extract_if(.., is_memory).filter_map(|(role, fd)| match role {
            Role::GuestMemory { address, bytes, offset } => Some((Piece { address, bytes, offset }, fd)),
            _ => None,
        });
        let pieces: Vec<_> = pieces.collect();
        if pieces.is_empty() {
            return Err(Refusal::Missing("guest memory"));
        }
        Ok(Ram::open(pieces)?)
    }

    /// The disk's image.
    ///
    /// # Errors
    /// None was granted, or one that cannot be written where `writable` is wanted.
    pub fn image(&mut self, writable: bool) -> Result<OwnedFd, Refusal> {
        let (wrong, used) = if writable { (OFlags::RDONLY, "written") } else { (OFlags::WRONLY, "read") };
        self.take_open(Role::Image, wrong, used)?.ok_or(Refusal::Missing("the disk's image"))
    }

    /// A word that survives the process, of which only the bits of `legal` are ever set.
    pub fn kept(&self, legal: u64) -> Kept {
        Kept::saved_by(legal, WakeLine::new(Arc::clone(&self.wake)))
    }

    /// The end of a pipe of a console port, with `input` the one that the worker reads. It must not block: its post has more
    /// to look after. `None` = none was granted.
    ///
    /// # Errors
    /// The wrong end was granted, or one that blocks.
    pub fn port_end(&mut self, role: Role, input: bool) -> Result<Option<Arc<OwnedFd>>, Refusal> {
        let (wrong, used) = if input { (OFlags::WRONLY, "read") } else { (OFlags::RDONLY, "written") };
        let Some(fd) = self.take_open(role, wrong, used)? else { return Ok(None) };
        match fcntl_getfl(&fd) {
            Ok(flags) if flags.contains(OFlags::NONBLOCK) => Ok(Some(Arc::new(fd))),
            _ => Err(Refusal::WrongEnd { role, used: "used without blocking" }),
        }
    }

    /// The files that the image is based on, in their order, for reading only.
    ///
    /// # Errors
    /// One of `count` was not granted, or one that can be written.
    pub fn backing(&mut self, count: u8) -> Result<Vec<OwnedFd>, Refusal> {
        let file = |number| {
            let role = Role::Backing(number);
            let fd = self.take(role).ok_or(Refusal::Missing("a backing file"))?;
            match fcntl_getfl(&fd) {
                Ok(flags) if flags & OFlags::RWMODE == OFlags::RDONLY => Ok(fd),
                _ => Err(Refusal::WrongEnd { role, used: "granted: it is not open for reading alone" }),
            }
        };
        (0..count).map(file).collect()
    }

    /// The socket to the front, which makes a vsock device's connections.
    ///
    /// # Errors
    /// None was granted.
    pub fn broker(&mut self) -> Result<OwnedFd, Refusal> {
        self.take(Role::Broker).ok_or(Refusal::Missing("the socket to the front"))
    }

    /// A tap's queue, for queue pair `pair`.
    ///
    /// # Errors
    /// None was granted, or one that blocks, or cannot be both read and written.
    pub fn tap(&mut self, pair: u8) -> Result<OwnedFd, Refusal> {
        let role = Role::Tap(pair);
        let tap = self.take(role).ok_or(Refusal::Missing("a queue of the tap"))?;
        let flags = fcntl_getfl(&tap).unwrap_or(OFlags::empty());
        if flags & OFlags::RWMODE != OFlags::RDWR || !flags.contains(OFlags::NONBLOCK) {
            return Err(Refusal::WrongEnd { role, used: "read and written without blocking" });
        }
        Ok(tap)
    }

    /// The stream socket that leads to a network, if that was granted in place of a tap.
    pub fn net_stream(&mut self) -> Option<OwnedFd> {
        self.take(Role::NetStream)
    }

    /// A thread for each of `servers`, which serve queues 0 and up.
    ///
    /// # Errors
    /// As [`posts`](Self::posts).
    pub fn queue_threads<S: Serve + Send + 'static>(
        &mut self,
        servers: Vec<S>,
        interrupt: &Interrupt,
    ) -> Result<Threads, Refusal> {
        let post = |(server, number)| Post { work: OneByOne(server), queues: vec![number], sources: vec![] };
        self.posts(servers.into_iter().zip(0..).map(post).collect(), interrupt)
    }

    /// A thread for each of `posts`. Requests in flight are recorded, if there is memory for it.
    ///
    /// # Errors
    /// The kicks of a queue were not granted, the memory for requests in flight is not as large as it should be, or a thread
    /// cannot be made.
    pub fn posts<W: Work + Send + 'static>(
        &mut self,
        posts: Vec<Post<W>>,
        interrupt: &Interrupt,
    ) -> Result<Threads, Refusal> {
        let mut staffed = Vec::with_capacity(posts.len());
        for post in posts {
            let kick = |number: &u16| self.kick(*number);
            let kicks: Result<Vec<_>, _> = post.queues.iter().map(kick).collect();
            staffed.push((post, kicks?));
        }
        // Before the memory, whose size goes by them.
        let is_kick = |(role, _): &&(Role, OwnedFd)| matches!(role, Role::QueueKick(_));
        self.roles.iter().find(is_kick).map_or(Ok(()), |(role, _)| Err(Refusal::Unused(*role)))?;
        let queues = staffed.iter().flat_map(|(post, _)| &post.queues).max().map_or(0, |last| last + 1);
        let pages = self.take(Role::InFlight).map(|fd| Pages::open(&fd, queues)).transpose();
        let pages = pages.map_err(|source| Refusal::Memory { part: "requests in flight", source })?;
        let wake = self.wake_line();
        let threads = Threads::start(&mut self.crew, staffed, interrupt, &wake);
        let threads = threads.map_err(|source| Refusal::system("queue threads", source))?;
        threads.traffic().for_each(|traffic| self.tally.add_traffic(traffic));
        Ok(threads.with_pages(pages))
    }

    /// The eventfd by which a queue's thread is kicked; another VMM's come later, beside it.
    fn kick(&mut self, number: u16) -> Result<OwnedFd, Refusal> {
        if self.front_end.is_some() {
            return eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| Refusal::system("eventfd", errno));
        }
        self.take(Role::QueueKick(number)).ok_or(Refusal::Missing("the kicks of a queue"))
    }

    fn take(&mut self, role: Role) -> Option<OwnedFd> {
        let index = self.roles.iter().position(|(granted, _)| *granted == role)?;
        Some(self.roles.swap_remove(index).1)
    }

    /// Takes a role's descriptor, whose access mode must not be `wrong`.
    fn take_open(
        &mut self,
        role: Role,
        wrong: OFlags,
        used: &'static str,
    ) -> Result<Option<OwnedFd>, Refusal> {
        let Some(fd) = self.take(role) else { return Ok(None) };
        match fcntl_getfl(&fd) {
            Ok(flags) if flags & OFlags::RWMODE != wrong => Ok(Some(fd)),
            _ => Err(Refusal::WrongEnd { role, used }),
        }
    }
}

/// An interrupt line that ends in an irqfd.
#[derive(Debug)]
pub struct IrqLine {
    eventfd: Option<OwnedFd>,
    front_end: Option<Calls>,
    tally: Arc<Tally>,
    page: Option<RegisterPage>,
}

impl Trigger for IrqLine {
    fn pulse(&mut self) {
        self.raise();
    }
}

impl Raise for IrqLine {
    fn raise(&self) {
        if let Some(eventfd) = &self.eventfd {
            // An eventfd that cannot take one more has a pulse pending already.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
            self.tally.interrupts.add(1);
        }
        self.front_end.iter().for_each(Raise::raise);
    }

    fn page(&self) -> Option<&RegisterPage> {
        self.page.as_ref()
    }

    fn raise_queue(&self, index: usize) {
        match &self.front_end {
            Some(calls) => calls.raise_queue(index),
            None => self.raise(),
        }
    }

    fn raise_queues(&self, numbers: &[u16]) {
        match &self.front_end {
            Some(calls) => numbers.iter().for_each(|number| calls.raise_queue(usize::from(*number))),
            None => self.raise(),
        }
    }

    fn raise_broken(&self) {
        match &self.front_end {
            Some(calls) => calls.raise_broken(),
            None => self.raise(),
        }
    }
}

/// `CLOCK_MONOTONIC` and `CLOCK_REALTIME`.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic(&self) -> u64 {
        clock::now()
    }

    fn wall(&self) -> i64 {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec.saturating_mul(SECOND as i64).saturating_add(now.tv_nsec)
    }
}
