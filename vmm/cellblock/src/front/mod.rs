//! What the front process does while its VM runs.

pub mod control_socket;
pub mod relay;
pub mod signals;
pub mod sink;
pub mod terminal;
