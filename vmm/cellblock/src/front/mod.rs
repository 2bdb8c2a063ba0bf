//! What the front process does while its VM runs.

pub(crate) mod control_socket;
pub(crate) mod exit_table;
pub(crate) mod files;
pub(crate) mod paths;
pub(crate) mod relay;
pub(crate) mod signals;
pub(crate) mod sink;
pub(crate) mod socket_path;
pub(crate) mod stream;
pub(crate) mod terminal;
pub(crate) mod vsock;
