//! The register thread of a worker that another VMM drives: its messages, and the supervisor's control socket.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_wire::control::{Counters, FromWorker, LogLevel, ToWorker};
use rustix::io::Errno;
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};

use super::backend::Backend;
use super::calls::Calls;
use super::early::Enable;
use super::watch::{Source, Watch};
use crate::host::Tally;
use crate::virtio::Interrupt;
use crate::virtio::engine::Engine;
use crate::virtio::transport::Bare;
use crate::worker::{End, Refusal, cut};

/// What a grant has for a front end.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    /// A connected `SOCK_STREAM` socket that blocks.
    pub(crate) stream: OwnedFd,
    pub(crate) calls: Calls,
    /// Memory for requests in flight, of all queues that a device may have.
    pub(crate) in_flight: Option<OwnedFd>,
    /// By which the queues' threads are heard.
    pub(crate) wake: Arc<OwnedFd>,
}

/// One front end's connection, and the device that it drives.
pub(crate) struct Session<E: Engine> {
    backend: Arc<Mutex<Backend<E>>>,
    handler: BackendReqHandler<Mutex<Backend<E>>>,
    /// The connection once more, until features are accepted.
    early: Option<OwnedFd>,
    watch: Watch,
    /// Open as long as it is watched.
    _wake: Arc<OwnedFd>,
    interrupt: Interrupt,
    tally: Arc<Tally>,
    served: u64,
}

impl<E: Engine> Session<E> {
    /// Of `device`, for that front end.
    pub(crate) fn new(
        device: Bare<E>,
        FrontEnd { stream, calls, in_flight, wake }: FrontEnd,
        tally: Arc<Tally>,
        control: &Control,
    ) -> Result<Self, Refusal> {
        let failed = |errno: Errno| Refusal::system("epoll", errno);
        let watch = Watch::new().map_err(failed)?;
        watch.add(control, Source::Control).map_err(failed)?;
        watch.add(&stream, Source::Message).map_err(failed)?;
        watch.add(&*wake, Source::Wake).map_err(failed)?;
        let interrupt = device.interrupt.clone();
        let copy = stream.try_clone();
        let early = Some(copy.map_err(|source| Refusal::system("a copy of the front end's socket", source))?);
        let backend = Arc::new(Mutex::new(Backend::new(device, calls, in_flight)));
        let handler = BackendReqHandler::from_stream(UnixStream::from(stream), Arc::clone(&backend));
        Ok(Session { backend, handler, early, watch, _wake: wake, interrupt, tally, served: 0 })
    }

    /// Serves until the end.
    pub(crate) fn serve(&mut self, control: &Control) -> End {
        let end = loop {
            if let Err(end) = self.turn(control) {
                break end;
            }
        };
        self.backend().finish();
        end
    }

    fn backend(&self) -> MutexGuard<'_, Backend<E>> {
        // One thread alone has it.
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&mut self, control: &Control) -> Result<(), End> {
        let ready = self.watch.wait();
        let ready = ready.map_err(|errno| End::Violation(format!("epoll_wait failed: {errno}")))?;
        for source in ready.into_iter().flatten() {
            match source {
                Source::Control => self.supervisor(control)?,
                Source::Message => self.message()?,
                Source::Wake => self.tell(control),
            }
        }
        Ok(())
    }

    /// A queue has ended its service; if because it makes no sense, the log is told why.
    fn tell(&self, control: &Control) {
        if let Some(text) = self.interrupt.complaint() {
            let _ = control.send_message(&FromWorker::Log { level: LogLevel::Warn, text: cut(&text) }, &[]);
        }
    }

    /// One message of the front end.
    fn message(&mut self) -> Result<(), End> {
        if self.enabled_early()? {
            return Ok(());
        }
        let error = match self.handler.handle_request() {
            Ok(()) => {
                self.served += 1;
                return Ok(());
            }
            Err(Error::Disconnected | Error::SocketBroken(_)) => return Err(End::Quit),
            Err(error) => error,
        };
        let reason = match self.backend().complaint() {
            "" => format!("the front end broke the protocol: {error}"),
            complaint => format!("the front end broke the protocol: {complaint}"),
        };
        Err(End::Violation(reason))
    }

    /// Whether the message was one that comes before the crate would take it ([`early`](super::early)).
    fn enabled_early(&mut self) -> Result<bool, End> {
        if self.backend().has_accepted() {
            self.early = None;
        }
        let Some(stream) = &self.early else { return Ok(false) };
        // A connection that is broken is the crate's to find.
        let Ok(Some(enable)) = Enable::take(stream) else { return Ok(false) };
        let done = self.backend().set_vring_enable(enable.queue, enable.enable);
        if done.is_err() || enable.reply(stream).is_err() {
            let queue = enable.queue;
            return Err(End::Violation(format!("the front end enables queue {queue}, which there is not")));
        }
        self.served += 1;
        Ok(true)
    }

    fn supervisor(&mut self, control: &Control) -> Result<(), End> {
        match control.try_recv_message(0) {
            Ok((ToWorker::Quit, _)) => Err(End::Quit),
            Ok((ToWorker::ReportCounters, _)) => {
                // A supervisor that does not read its socket gets no answer.
                let _ = control.send_message(&FromWorker::Counters(self.counters()), &[]);
                Ok(())
            }
            Ok(_) | Err(SocketError::NotReady) => Ok(()),
            Err(SocketError::Closed) => Err(End::Orphaned),
            Err(error) => Err(End::Violation(error.to_string())),
        }
    }

    fn counters(&self) -> Counters {
        self.tally.counters(self.served)
    }
}
