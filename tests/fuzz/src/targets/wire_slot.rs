//! Slots: any words decode, or a field is named; what decodes is what an honest sender would have written.

use cellblock_wire::slot::{Reply, Request};

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let Some(words) = crate::typed::<[u64; 8]>(bytes) else { return };
    if let Ok(request) = Request::decode(&words) {
        assert!(matches!(request.size, 1 | 2 | 4 | 8));
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    let words = [words[0], words[1], words[2], words[3]];
    match Reply::decode(&words) {
        Ok(reply) => assert_eq!(Reply::decode(&reply.encode()), Ok(reply)),
        Err(error) => assert_eq!((error.field, error.value), ("action", words[1])),
    }
}
