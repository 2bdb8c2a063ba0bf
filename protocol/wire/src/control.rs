//! Messages on the control socket between supervisor and worker: one SEQPACKET datagram each, `bincode` inside, with
//! descriptors beside them where the message says so.
//!
//! Order: the worker begins with [`FromWorker::Hello`], the supervisor with [`ToWorker::Grant`] and all descriptors; the worker
//! maps, starts its threads, closes its sandbox and answers [`FromWorker::Ready`], or [`FromWorker::Refused`] and ends.
//! Afterwards either side may send the rest. A message of the wrong phase is a violation.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Version;
use crate::device::{self, DeviceConfig, DeviceKind, DriverRegisters, Role};

/// The largest control message, in bytes. Longer ones are refused unread.
pub const MAX_MESSAGE: usize = 4096;
/// The longest text that a worker may send in one message, in bytes; more is cut by the sender, refused by the receiver.
pub const MAX_TEXT: usize = 512;
/// Descriptors that precede the granted roles: requests, replies, state page, doorbell (read end), in this order.
pub const FIXED_DESCRIPTORS: usize = 4;
/// The most roles in one grant.
pub const MAX_ROLES: usize = 64;
/// The most lanes (one per vCPU) in one grant.
pub const MAX_LANES: u32 = 32;

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ToWorker {
    /// The first message, with `FIXED_DESCRIPTORS + roles.len()` descriptors.
    Grant(Grant),
    /// The host's power button was pressed (ACPI power only; others ignore it).
    PowerButton,
    /// Asks for [`FromWorker::Counters`].
    ReportCounters,
    /// End in an orderly way: flush output, then exit with status 0.
    Quit,
    /// The balloon shall have this size (balloon only; others ignore it).
    SetBalloon {
        /// In pages of 4 KiB.
        pages: u32,
    },
    /// Asks for [`FromWorker::Balloon`], with statistics that the guest tells now if it does in time (balloon only; others
    /// ignore it).
    ReportBalloon,
    /// A terminal's size has changed (console only; others ignore it).
    Resize {
        /// The console's port.
        port: u32,
        /// Width in characters.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
    /// Come to rest: finish the requests that are begun, begin none, commit the state, and say [`FromWorker::Quiesced`]. From then
    /// on no register access is answered and nothing of the state changes, until [`ToWorker::Resume`].
    Quiesce {
        /// Comes back with the answer.
        number: u32,
    },
    /// Go on; nothing that happened meanwhile is lost.
    Resume,
}

/// All that a worker gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The supervisor's protocol version.
    pub version: Version,
    /// This incarnation, from 1; requests of another are ignored.
    pub generation: u32,
    /// Lanes in the rings: the VM's vCPUs, 1 to [`MAX_LANES`].
    pub lanes: u32,
    /// The longest spin before sleeping, in µs; 0 = never spin.
    pub poll_max_us: u32,
    /// Another worker still serves, and rests: this one is to be ready without changing anything that both have, as at rest, and
    /// goes on from there with [`ToWorker::Resume`]. Until then it may be that the other one goes on.
    pub resting: bool,
    /// What the descriptors after the fixed ones are for, in order.
    pub roles: Vec<Role>,
    /// The device.
    pub config: DeviceConfig,
    /// What it begins with, if the state page has nothing to go on with.
    pub fallback: Fallback,
}

/// What a worker begins with if the state page is empty, or holds what no predecessor left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallback {
    /// Nothing: an empty page is a device's first start, any other that makes no sense is refused.
    #[default]
    Refuse,
    /// The device as it is when the machine is switched on.
    PowerOn,
    /// A virtio device whose driver has written these registers. They go before those in the state page.
    Registers(DriverRegisters),
}

/// From a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FromWorker {
    /// The first message, before the worker has got anything.
    Hello {
        /// The worker's protocol version.
        version: Version,
        /// What it runs; `None` = whatever it is granted.
        device: Option<DeviceKind>,
    },
    /// The worker is jailed and serves, or rests if it was to.
    Ready,
    /// The worker cannot serve this grant and ends.
    Refused {
        /// Why, for people; at most [`MAX_TEXT`] bytes.
        reason: String,
    },
    /// A line for the log.
    Log {
        /// How bad.
        level: LogLevel,
        /// The line; at most [`MAX_TEXT`] bytes.
        text: String,
    },
    /// The answer to [`ToWorker::ReportCounters`].
    Counters(Counters),
    /// The answer to [`ToWorker::ReportBalloon`].
    Balloon(BalloonReport),
    /// The answer to [`ToWorker::Quiesce`]: the worker rests, and its state page and record of requests in flight say where.
    Quiesced {
        /// [`ToWorker::Quiesce`]'s.
        number: u32,
    },
    /// The state page made no sense, and the device began with [`Grant::fallback`]. Before [`FromWorker::Ready`].
    StateLost {
        /// Why, for people; at most [`MAX_TEXT`] bytes.
        reason: String,
    },
}

/// What a balloon knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonReport {
    /// The size that it shall have, in pages of 4 KiB.
    pub target: u32,
    /// The size that it has, as the guest says, in pages of 4 KiB.
    pub actual: u32,
    /// The statistics were told because of the question; if not, they are the last ones, or none.
    pub fresh: bool,
    /// The guest's statistics by their tag (Virtio 1.3 §5.5.6.3), as far as it told them.
    pub statistics: [Option<u64>; BALLOON_STATISTICS],
}

/// Tags of balloon statistics: 0 to 15 (Linux has 16; Virtio 1.3 defines the first 10).
pub const BALLOON_STATISTICS: usize = 16;

/// A log line's level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Something is lost or refused.
    Warn,
    /// Worth knowing.
    Info,
    /// For developers.
    Debug,
}

/// What a worker counted since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Accesses answered.
    pub served: u64,
    /// Requests done: chains of virtqueues given back to the driver.
    pub requests: u64,
    /// Bytes that the guest was given, by the serial port or in virtqueues.
    pub host_in: u64,
    /// Bytes that the guest gave, in virtqueues with the headers of its requests.
    pub host_out: u64,
    /// Bytes dropped because the host's sink did not take them in time.
    pub dropped: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Requests that failed: with an I/O error, or for what they asked.
    pub failed: u64,
    /// How often a limit made the guest wait.
    pub limited: u64,
}

/// A control message that cannot be sent or understood.
#[derive(Debug, Error)]
pub enum CodecError {
    /// It does not decode.
    #[error("control message does not decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// It cannot be encoded within [`MAX_MESSAGE`].
    #[error("control message does not encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// It decodes, but a field breaks a bound.
    #[error("control message field {field} has the value {value}, allowed is {allowed}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it held.
        value: u64,
        /// What it may hold.
        allowed: &'static str,
    },
    /// Bytes follow the message.
    #[error("control message of {used} bytes is followed by {extra} more")]
    Trailing {
        /// The message's length.
        used: usize,
        /// The bytes after it.
        extra: usize,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_MESSAGE>()
}

/// `message` as bytes, at most [`MAX_MESSAGE`].
///
/// # Errors
/// The message is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = [0; MAX_MESSAGE];
    let length = bincode::serde::encode_into_slice(message, &mut bytes, config())?;
    Ok(bytes[..length].to_vec())
}

/// A message whose fields keep their bounds.
pub trait Checked {
    /// # Errors
    /// The first field out of bounds.
    fn check(&self) -> Result<(), CodecError>;
}

/// The message in `bytes`, with every bound checked. Allocates at most [`MAX_MESSAGE`] bytes.
///
/// # Errors
/// Bytes that are no message, or a field out of bounds.
pub fn decode<T: for<'de> Deserialize<'de> + Checked>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, used): (T, usize) = bincode::serde::decode_from_slice(bytes, config())?;
    if used != bytes.len() {
        return Err(CodecError::Trailing { used, extra: bytes.len() - used });
    }
    message.check()?;
    Ok(message)
}

pub(crate) fn within(
    field: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<(), CodecError> {
    if range.contains(&value) { Ok(()) } else { Err(CodecError::Field { field, value, allowed }) }
}

impl Checked for ToWorker {
    fn check(&self) -> Result<(), CodecError> {
        let ToWorker::Grant(grant) = self else { return Ok(()) };
        within("grant.generation", grant.generation.into(), 1..=u32::MAX.into(), "1 and up")?;
        within("grant.lanes", grant.lanes.into(), 1..=MAX_LANES.into(), "1 to 32")?;
        within("grant.roles", grant.roles.len() as u64, 0..=MAX_ROLES as u64, "at most 64")?;
        device::check(&grant.config)?;
        device::check_fallback(&grant.fallback)
    }
}

impl Checked for FromWorker {
    fn check(&self) -> Result<(), CodecError> {
        match self {
            FromWorker::Refused { reason: text }
            | FromWorker::StateLost { reason: text }
            | FromWorker::Log { text, .. } => {
                within("text length", text.len() as u64, 0..=MAX_TEXT as u64, "at most 512")
            }
            FromWorker::Hello { .. }
            | FromWorker::Ready
            | FromWorker::Counters(_)
            | FromWorker::Balloon(_)
            | FromWorker::Quiesced { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grant() -> Grant {
        Grant {
            version: Version::CURRENT,
            generation: 1,
            lanes: 2,
            poll_max_us: 50,
            resting: false,
            roles: vec![Role::HostInput, Role::Interrupt(0)],
            config: DeviceConfig::Serial { buffer: 4096, limits: Default::default() },
            fallback: Fallback::PowerOn,
        }
    }

    #[test]
    fn a_grant_survives_the_crossing() {
        let message = ToWorker::Grant(grant());
        assert_eq!(decode::<ToWorker>(&encode(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn the_fullest_grant_fits_in_a_message() {
        use crate::device::{DriverQueue, KEPT_CONFIG_BYTES};
        let queue = DriverQueue { size: !0, desc: !0, driver: !0, device: !0, ready: true };
        let registers = DriverRegisters {
            status: !0,
            device_features_sel: !0,
            driver_features_sel: !0,
            driver_features: !0,
            queue_sel: !0,
            queues: vec![queue; device::MAX_QUEUES.into()],
            config: (0..KEPT_CONFIG_BYTES as u8).map(|offset| (offset, !0)).collect(),
        };
        let piece = Role::GuestMemory { address: !0, bytes: !0, offset: !0 };
        let grant =
            Grant { roles: vec![piece; MAX_ROLES], fallback: Fallback::Registers(registers), ..grant() };
        let message = ToWorker::Grant(grant);
        assert_eq!(decode::<ToWorker>(&encode(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn bounds_are_named() {
        let error = decode::<ToWorker>(&encode(&ToWorker::Grant(Grant { lanes: 33, ..grant() })).unwrap())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "control message field grant.lanes has the value 33, allowed is 1 to 32"
        );
    }

    #[test]
    fn a_long_text_is_refused() {
        let message = FromWorker::Log { level: LogLevel::Info, text: "x".repeat(MAX_TEXT + 1) };
        assert!(matches!(
            decode::<FromWorker>(&encode(&message).unwrap()),
            Err(CodecError::Field { value: 513, .. })
        ));
    }

    #[test]
    fn a_length_field_of_4_gib_allocates_nothing() {
        // Variant 2 (Refused), then a varint length of u32::MAX with no bytes behind it.
        assert!(matches!(decode::<FromWorker>(&[2, 252, 255, 255, 255, 255]), Err(CodecError::Decode(_))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&ToWorker::Quit).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<ToWorker>(&bytes), Err(CodecError::Trailing { extra: 1, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(message) = decode::<FromWorker>(&bytes) {
                prop_assert!(message.check().is_ok());
            }
            if let Ok(message) = decode::<ToWorker>(&bytes) {
                prop_assert!(message.check().is_ok());
            }
        }
    }
}
