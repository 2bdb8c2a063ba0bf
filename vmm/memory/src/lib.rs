//! Guest memory: one sealed memfd.
//!
//! Made in one process ([`GuestRam::create`]), passed as an fd or across a fork, mapped where it is needed
//! ([`GuestRam::from_fd`], [`GuestRam::map`]). Its size is sealed and so are its seals, so nobody who gets the fd can
//! truncate it under the VMM or add a seal that stops a successor from mapping it.
//!
//! Where it lies in the guest is decided here and only here ([`regions`]): from 0 up to 3 GiB, the rest from 4 GiB, with
//! the hole between them for devices.

mod huge;
mod layout;
mod ram;

pub use huge::back_with_huge_pages;
pub use layout::{HIGH_BASE, LOW_LIMIT, MAX_BYTES, Region, UNIT, regions};
pub use ram::GuestRam;

use thiserror::Error as ThisError;

/// Guest memory could not be made or mapped.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The size is not one that a guest can have.
    #[error(
        "guest memory of {bytes} bytes is refused: give a multiple of 2 MiB (2097152), at least 2 MiB and at most 4 TiB"
    )]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// A system call failed.
    #[error("guest memory of {bytes} bytes: {call} failed{hint}: {source}")]
    Call {
        /// Which call.
        call: &'static str,
        /// The memory's size.
        bytes: u64,
        /// What usually helps, or nothing.
        hint: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An fd that was passed as guest memory is not what [`GuestRam::create`] makes.
    #[error(
        "the fd passed as guest memory lacks the seals {missing}; pass the memfd that GuestRam::create made"
    )]
    NotSealed {
        /// Names of the seals.
        missing: String,
    },
    /// The mapping was refused.
    #[error("guest memory at {guest_addr:#x} ({bytes} bytes) cannot be mapped: {reason}")]
    Map {
        /// Where in the guest.
        guest_addr: u64,
        /// How much.
        bytes: u64,
        /// Why.
        reason: String,
    },
}

/// What this crate's operations return.
pub type Result<T> = std::result::Result<T, Error>;
