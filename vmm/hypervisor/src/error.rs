//! What can fail, in sentences.

use thiserror::Error as ThisError;

/// An operation on the hypervisor, a VM or a vCPU failed.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The entry does not answer the pending exit. The guest was not entered; the right entry may follow.
    #[error("vCPU {vcpu} waits for the entry `{pending}` and was given `{entry}`; the guest was not entered")]
    WrongEntry {
        /// Which vCPU.
        vcpu: u32,
        /// What it waits for.
        pending: String,
        /// What it was given.
        entry: String,
    },
    /// The back end or the host cannot do this.
    #[error("{what} is not supported by the {backend} back end: {why}")]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// The back end's name.
        backend: &'static str,
        /// The reason, and what to use instead.
        why: String,
    },
    /// The hypervisor's system call failed.
    #[error("{call} failed on {on}: {source}")]
    Call {
        /// Name of the system call or ioctl.
        call: &'static str,
        /// On what: the system, the VM, which vCPU, which field.
        on: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A value is out of the range that the operation takes.
    #[error("{field} is {value}, which {on} does not take: {allowed}")]
    BadValue {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// On what: the VM, which vCPU.
        on: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The kernel put something into the run page that makes no sense.
    #[error("vCPU {vcpu}'s run page is inconsistent after an exit: {field} is {value}")]
    BadRunPage {
        /// Which vCPU.
        vcpu: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}
