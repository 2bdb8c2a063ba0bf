//! Control messages, as either side receives them: any bytes decode to a message within its bounds, or are refused; what
//! decodes survives another crossing.

use cellblock_wire::control::{Checked, FromWorker, ToWorker, decode, encode};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(message) = decode::<FromWorker>(bytes) {
        assert!(message.check().is_ok());
        assert_eq!(decode::<FromWorker>(&encode(&message).unwrap()).unwrap(), message);
    }
    if let Ok(message) = decode::<ToWorker>(bytes) {
        assert!(message.check().is_ok());
        assert_eq!(decode::<ToWorker>(&encode(&message).unwrap()).unwrap(), message);
    }
}
