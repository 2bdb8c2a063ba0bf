//! The register thread of a worker that another VMM drives: its messages, and the supervisor's control socket.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_wire::control::{Counters, FromWorker, ToWorker};
use rustix::io::Errno;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::backend::Backend;
use super::calls::Calls;
use super::watch::{Source, Watch};
use crate::host::Tally;
use crate::virtio::engine::Engine;
use crate::virtio::transport::Bare;
use crate::worker::{End, Refusal};

/// One front end's connection, and the device that it drives.
pub(crate) struct Session<E: Engine> {
    backend: Arc<Mutex<Backend<E>>>,
    handler: BackendReqHandler<Mutex<Backend<E>>>,
    watch: Watch,
    tally: Arc<Tally>,
    served: u64,
}

impl<E: Engine> Session<E> {
    /// Over `stream`, a connected `SOCK_STREAM` socket that blocks.
    pub(crate) fn new(
        stream: OwnedFd,
        device: Bare<E>,
        calls: Calls,
        tally: Arc<Tally>,
        control: &Control,
    ) -> Result<Self, Refusal> {
        let failed = |errno: Errno| Refusal::system("epoll", errno);
        let watch = Watch::new().map_err(failed)?;
        watch.add(control, Source::Control).map_err(failed)?;
        watch.add(&stream, Source::Message).map_err(failed)?;
        let backend = Arc::new(Mutex::new(Backend::new(device, calls)));
        let handler = BackendReqHandler::from_stream(UnixStream::from(stream), Arc::clone(&backend));
        Ok(Session { backend, handler, watch, tally, served: 0 })
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
            }
        }
        Ok(())
    }

    /// One message of the front end.
    fn message(&mut self) -> Result<(), End> {
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
