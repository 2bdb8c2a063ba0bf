//! What a device worker is made of: the [`device::Device`] trait, its state on the way to a successor ([`state`]), byte
//! streams to the host ([`host`]), virtio's transport and queues ([`virtio`]), and the process around it ([`worker`]).
//!
//! A device model is a plain state machine over the traits of [`device`]; it knows no process, descriptor or ring, and
//! runs as well in a test ([`testing`]) as in a jailed worker.
#![forbid(unsafe_code)]

pub mod device;
pub mod fail_point;
pub mod host;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
mod vhost_user;
pub mod virtio;
pub mod worker;
