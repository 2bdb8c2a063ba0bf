//! What crosses between the supervisor and its device workers, as plain values: the request and reply slots of the
//! exit ring ([`slot`]) and the control messages of the handshake and after ([`control`]).
//!
//! Nothing here touches memory that is shared or a file descriptor; that is `cellblock-ring` and `cellblock-channel`.
#![forbid(unsafe_code)]

pub mod control;
pub mod device;
pub mod slot;
pub mod vsock;

/// The protocol's version. Supervisor and worker must agree on `major`; a higher `minor` only adds messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// Incompatible revisions.
    pub major: u16,
    /// Compatible additions.
    pub minor: u16,
}

impl Version {
    /// What this build speaks.
    pub const CURRENT: Version = Version { major: 2, minor: 0 };

    /// Whether a peer of version `peer` can be talked to.
    pub const fn accepts(self, peer: Version) -> bool {
        self.major == peer.major
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
