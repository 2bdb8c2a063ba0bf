//! The steps into a jail, so that a failure can be told across a fork by two numbers.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Layer;

/// What was being done when entering a jail failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Step {
    /// clone3 of the process with its namespaces.
    Clone,
    /// Putting descriptors in place and closing the rest.
    Descriptors,
    /// A session of its own, signals.
    Session,
    /// Changing to the own uid and gid.
    Uid,
    /// unshare of the user namespace.
    UserNamespace,
    /// Writing or awaiting the id maps.
    IdMaps,
    /// unshare of the other namespaces.
    Namespaces,
    /// The host name.
    HostName,
    /// Mounting and entering the empty root.
    EmptyRoot,
    /// Resource limits.
    Limits,
    /// Dropping capabilities.
    Capabilities,
    /// `no_new_privs` and the dumpable flag.
    NoNewPrivs,
    /// Landlock.
    Landlock,
    /// The seccomp program.
    Seccomp,
    /// The exec of the worker's binary; with an errno, else the binary has taken over.
    Exec,
    /// Holding back speculation.
    Speculation,
}

impl Step {
    const ALL: [Step; 16] = [
        Step::Clone,
        Step::Descriptors,
        Step::Session,
        Step::Uid,
        Step::UserNamespace,
        Step::IdMaps,
        Step::Namespaces,
        Step::HostName,
        Step::EmptyRoot,
        Step::Limits,
        Step::Capabilities,
        Step::NoNewPrivs,
        Step::Landlock,
        Step::Seccomp,
        Step::Exec,
        Step::Speculation,
    ];

    /// The step of that number.
    pub(crate) fn numbered(number: u32) -> Step {
        Step::ALL.get(number as usize).copied().unwrap_or(Step::Clone)
    }

    /// The layer that is missing if this step fails, where it is one layer's.
    pub const fn layer(self) -> Option<Layer> {
        match self {
            Step::Uid => Some(Layer::Uid),
            Step::UserNamespace | Step::IdMaps => Some(Layer::User),
            Step::HostName => Some(Layer::Uts),
            Step::EmptyRoot => Some(Layer::Mount),
            Step::Limits => Some(Layer::Rlimits),
            Step::Capabilities => Some(Layer::Caps),
            Step::NoNewPrivs => Some(Layer::NoNewPrivs),
            Step::Landlock => Some(Layer::Landlock),
            Step::Seccomp => Some(Layer::Seccomp),
            Step::Speculation => Some(Layer::Speculation),
            Step::Clone | Step::Descriptors | Step::Session | Step::Namespaces | Step::Exec => None,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Step::Clone => "making the process with its namespaces",
            Step::Descriptors => "putting its descriptors in place",
            Step::Session => "starting a session of its own",
            Step::Uid => "changing to its own uid",
            Step::UserNamespace => "making its user namespace",
            Step::IdMaps => "mapping its ids",
            Step::Namespaces => "making its namespaces",
            Step::HostName => "hiding the host's name",
            Step::EmptyRoot => "entering an empty root",
            Step::Limits => "setting resource limits",
            Step::Capabilities => "dropping capabilities",
            Step::NoNewPrivs => "setting no_new_privs",
            Step::Landlock => "closing Landlock",
            Step::Seccomp => "installing its seccomp program",
            Step::Exec => "executing its binary",
            Step::Speculation => "holding back speculation",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())?;
        match self.layer() {
            Some(layer) => write!(f, " (layer {layer})"),
            None => Ok(()),
        }
    }
}

/// A jail that could not be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{step} failed: {}", io::Error::from_raw_os_error(*errno))]
pub struct JailError {
    /// At what.
    pub step: Step,
    /// Why.
    pub errno: i32,
}

/// Names the step that an operating system error belongs to.
pub(crate) trait During<T> {
    /// # Errors
    /// The error, with `step`.
    fn during(self, step: Step) -> Result<T, JailError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: Step) -> Result<T, JailError> {
        self.map_err(|error| JailError { step, errno: error.raw_os_error().unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words() {
        for (number, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, number);
            assert_eq!(Step::numbered(number as u32), step);
        }
        let error = JailError { step: Step::Landlock, errno: libc::ENOSYS };
        assert!(error.to_string().contains("layer landlock"), "{error}");
    }
}
