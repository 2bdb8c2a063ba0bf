//! What front, supervisor, spawner and loader say to each other: any bytes decode, or are refused; what decodes crosses again.

use std::fmt::Debug;

use cellblock_loader::Loaded;
use cellblock_spawner::protocol::{Event as SpawnerEvent, Offer, Request};
use cellblock_supervisor::link::{Command, Event, LoaderReport};
use cellblock_wire::control::{Checked, decode, encode};
use serde::{Deserialize, Serialize};

const RAM: u64 = 64 << 20;

fn crosses<T: Checked + Serialize + for<'de> Deserialize<'de> + Debug>(bytes: &[u8]) -> Option<T> {
    let message: T = decode(bytes).ok()?;
    // What was accepted in fewer bytes than it takes when written out may be too long to be sent on.
    if let Ok(again) = encode(&message) {
        assert_eq!(format!("{:?}", decode::<T>(&again).unwrap()), format!("{message:?}"));
    }
    Some(message)
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 6 {
        0 => drop(crosses::<Command>(bytes)),
        1 => drop(crosses::<Event>(bytes)),
        2 => drop(crosses::<Request>(bytes)),
        3 => drop(crosses::<SpawnerEvent>(bytes)),
        4 => drop(crosses::<Offer>(bytes)),
        _ => {
            let Some(LoaderReport::Loaded(loaded)) = crosses(bytes) else { return };
            let Loaded { kernel, entry, .. } = &loaded;
            if loaded.check(RAM).is_ok() {
                assert!(kernel.start < kernel.end && kernel.end <= RAM);
                assert!((kernel.start..kernel.end).contains(&entry.entry));
            }
        }
    }
}
