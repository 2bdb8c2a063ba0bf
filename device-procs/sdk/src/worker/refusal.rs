//! Why a worker does not serve.

use std::io;

use cellblock_channel::memory::MemoryError;
use cellblock_channel::process::seal::SealError;
use cellblock_channel::ram::RamError;
use cellblock_channel::socket::SocketError;
use cellblock_ring::{TooSmall, state_page};
use cellblock_wire::Version;
use cellblock_wire::device::{DeviceKind, Role};
use thiserror::Error;

use crate::state::StateError;

/// The reason goes to the supervisor as text; it names the field and what was expected, and no address.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The hand-shake's first message did not come, or is none.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The first message is another.
    #[error("the first message is not the grant")]
    NoGrant,
    /// A supervisor of another time.
    #[error("the grant's protocol version is {theirs}, this worker speaks {ours}")]
    Version {
        /// The supervisor's.
        theirs: Version,
        /// This worker's.
        ours: Version,
    },
    /// The wrong binary.
    #[error("the grant is for the device {wanted}, this worker is {own}")]
    Kind {
        /// What the supervisor configures.
        wanted: DeviceKind,
        /// What this binary is.
        own: DeviceKind,
    },
    /// Roles and descriptors do not match.
    #[error("the grant brings {found} descriptors, its roles need {needed}")]
    Descriptors {
        /// How many came.
        found: usize,
        /// 4 and one for each role.
        needed: usize,
    },
    /// A role is granted twice.
    #[error("the grant has the role {0:?} twice")]
    Twice(Role),
    /// A role that the device has no use for: it gets no more than it needs.
    #[error("the grant has the role {0:?}, which this device does not use")]
    Unused(Role),
    /// The wrong end of a pipe, or no pipe.
    #[error("the descriptor of the role {role:?} cannot be {used}")]
    WrongEnd {
        /// The role.
        role: Role,
        /// `read` or `written`.
        used: &'static str,
    },
    /// A role that the device cannot do without.
    #[error("the grant lacks {0}")]
    Missing(&'static str),
    /// What was granted is not what the device was told of; in the device's words.
    #[error("{0}")]
    Device(String),
    /// Guest memory is not as it should be.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A ring or the state page is not as it should be.
    #[error("{part}: {source}")]
    Memory {
        /// Which.
        part: &'static str,
        /// What is wrong.
        source: MemoryError,
    },
    /// A ring is too small.
    #[error(transparent)]
    Ring(#[from] TooSmall),
    /// The state page does not validate.
    #[error(transparent)]
    Page(#[from] state_page::StateError),
    /// The device's saved state does not fit the page.
    #[error(transparent)]
    TooLong(#[from] state_page::TooLong),
    /// What a predecessor saved is not this device's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A thread, epoll or timer cannot be made.
    #[error("{what}: {source}")]
    System {
        /// What cannot be made.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The sandbox does not close.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Refusal {
    /// What the kernel refuses to a worker that sets itself up.
    pub fn system(what: &'static str, source: impl Into<io::Error>) -> Refusal {
        Refusal::System { what, source: source.into() }
    }
}
