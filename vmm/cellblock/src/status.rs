//! How `cellblock run` ends: one line for people, one exit status for scripts.

use cellblock_supervisor::link::End;

/// The exit statuses, as `cellblock --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest powered off or rebooted.
    Success = 0,
    /// Something else failed.
    Failure = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The VM was refused a start.
    Refused = 3,
    /// The guest triple-faulted.
    TripleFault = 4,
    /// The hypervisor could not go on.
    Internal = 5,
    /// A device failed.
    Device = 6,
    /// Ended from outside.
    Stopped = 7,
}

impl From<Status> for std::process::ExitCode {
    fn from(status: Status) -> Self {
        std::process::ExitCode::from(status as u8)
    }
}

/// The status and the line for `end`.
pub(crate) fn of_end(end: &End) -> (Status, String) {
    match end {
        End::PowerOff => (Status::Success, "guest powered off".into()),
        End::Reset => (Status::Success, "guest rebooted".into()),
        End::TripleFault { vcpu } => (Status::TripleFault, format!("guest triple-faulted on vCPU {vcpu}")),
        End::Internal { vcpu, text } => {
            (Status::Internal, format!("the hypervisor cannot run vCPU {vcpu} any further: {text}"))
        }
        End::Device { device, reason } => (Status::Device, format!("device {device} failed: {reason}")),
        End::Refused { reason } => (Status::Refused, format!("the VM was refused a start: {reason}")),
        End::Lost { reason } => (Status::Failure, reason.clone()),
        End::Stopped => (Status::Stopped, "the VM was stopped".into()),
    }
}
