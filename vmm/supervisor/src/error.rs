//! Why a VM cannot be built.

use std::io;

use cellblock_bus::BusError;
use cellblock_channel::memory::MemoryError;
use cellblock_hypervisor::Error as HypervisorError;
use cellblock_ring::TooSmall;
use cellblock_wire::device::DeviceKind;
use thiserror::Error;

/// What it means that a host emulates guest kernel code.
pub const EMULATED: &str =
    "this host emulates guest kernel code instead of running it, so a Linux kernel would not boot";

/// A step of building a VM that failed.
#[derive(Debug, Error)]
pub(crate) enum BuildError {
    #[error("device {device}: its {what} cannot be made: {source}")]
    Worker { device: DeviceKind, what: &'static str, source: io::Error },
    #[error("device {device}: its {memory} memory cannot be made: {source}")]
    Memory { device: DeviceKind, memory: &'static str, source: MemoryError },
    #[error("device {device}: {source}")]
    Ring { device: DeviceKind, source: TooSmall },
    #[error("device {device}: the grant cannot be sent: {reason}")]
    Grant { device: DeviceKind, reason: String },
    #[error("device {device}: its worker cannot be started: {reason}")]
    Start { device: DeviceKind, reason: String },
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    #[error("{0}")]
    Loader(String),
    #[error(
        "{EMULATED}; other guests run. Use a host with hardware virtualization, or --force to try (`cellblock doctor` \
         says more)"
    )]
    EmulatedHost,
    #[error("the thread for {what} panicked")]
    Thread { what: &'static str },
    #[error("the supervisor's sandbox cannot be closed: {0}")]
    Jail(String),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}
