//! The VM's control socket: where `cellblock ps` asks.
//!
//! It is an abstract Unix socket, `cellblock/<uid>/<id>`: the kernel removes it with the front, however that ends, so
//! nothing is left behind; binding it is also what makes an id unique. Abstract names have no permissions, so every
//! peer is checked by its credentials: the VM's own user or root.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use cellblock_supervisor::link::Status;
use serde::{Deserialize, Serialize};

/// Requests that may wait at once; more are closed unanswered.
const MAX_WAITING: usize = 8;
/// How long one client may hold up the front.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a VM says of itself, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The VM's name.
    pub id: String,
    /// The front process: `cellblock run`.
    pub front: u32,
    /// The supervisor process.
    pub supervisor: i32,
    /// The spawner process.
    pub spawner: i32,
    /// Devices and vCPUs.
    #[serde(flatten)]
    pub status: Status,
}

/// The abstract name's prefix for all VMs of all users.
pub(crate) const PREFIX: &str = "cellblock/";

/// The socket's address for VM `id` of user `uid`.
///
/// # Errors
/// The name is too long.
pub(crate) fn address(uid: u32, id: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{PREFIX}{uid}/{id}"))
}

/// The server's end.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    uid: u32,
    waiting: Vec<UnixStream>,
}

impl ControlSocket {
    /// Takes the name `id` for this user.
    ///
    /// # Errors
    /// A VM of this name runs already, or the socket cannot be made.
    pub(crate) fn bind(id: &str) -> io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let listener = UnixListener::bind_addr(&address(uid, id)?)?;
        listener.set_nonblocking(true)?;
        Ok(ControlSocket { listener, uid, waiting: Vec::new() })
    }

    /// Takes one request.
    pub(crate) fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let peer = rustix::net::sockopt::socket_peercred(&stream).map(|peer| peer.uid.as_raw());
        if !peer.is_ok_and(|uid| uid == 0 || uid == self.uid) || self.waiting.len() >= MAX_WAITING {
            return;
        }
        if stream.set_write_timeout(Some(PATIENCE)).is_ok() {
            self.waiting.push(stream);
        }
    }

    /// Whether somebody waits for an answer.
    pub(crate) fn waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers everybody who waits.
    pub(crate) fn answer(&mut self, id: &str, supervisor: i32, spawner: i32, status: &Status) {
        let report =
            Report { id: id.into(), front: std::process::id(), supervisor, spawner, status: status.clone() };
        let Ok(text) = serde_json::to_vec(&report) else { return self.refuse() };
        for mut stream in self.waiting.drain(..) {
            // A client that does not read loses its answer, nothing else.
            let _ = stream.write_all(&text);
        }
    }

    /// Closes everybody who waits.
    pub(crate) fn refuse(&mut self) {
        self.waiting.clear();
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
