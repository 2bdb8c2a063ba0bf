//! The configuration of a VM: read as data ([`RawConfig`]), validated once ([`VmConfig`]).
//!
//! The same names serve the command line and the file (TOML or JSON). Runtime code sees a [`VmConfig`] only, in which
//! every value is within its bounds.
#![forbid(unsafe_code)]

mod back_end;
mod devices;
mod disk;
mod options;
mod raw;
mod sink;
mod size;
mod vm;

pub use back_end::{BackEnd, BackEndDevice};
pub use devices::{Balloon, ConsolePort, Net, NetBackend, Serial, Vsock};
pub use disk::Disk;
pub use raw::{RawConfig, Rng};
pub use sink::StreamSink;
pub use size::ByteSize;
pub use vm::{BootProtocol, ExitStats, MAX_SPARES, OnReboot, VmConfig, VmId};

use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value out of bounds.
    #[error("{field} is {value:?}; allowed is {allowed}")]
    Value {
        /// The field, as named on the command line and in the file.
        field: &'static str,
        /// What it was given.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A value that must be given.
    #[error("{field} is missing; give it as --{field} or as `{field}` in the configuration file")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what its name says.
    #[error("the configuration file {path} is not valid {format}: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// TOML or JSON.
        format: &'static str,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// Neither `.toml` nor `.json`.
    #[error("the configuration file {path} must end in .toml or .json")]
    Format {
        /// The file.
        path: String,
    },
}

impl ConfigError {
    pub(crate) fn value(field: &'static str, value: impl ToString, allowed: &'static str) -> Self {
        ConfigError::Value { field, value: value.to_string(), allowed }
    }
}
