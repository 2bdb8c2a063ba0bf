//! Fuzz targets, all in one program: a build for each of them would be most of the time that they get in CI.
//!
//! `CELLBLOCK_FUZZ_TARGET` names the one that this run is of. The rest of them stands idle, and costs an execution some µs for the
//! counters that stay zero.
#![no_main]

mod guest;
mod host;
mod memory;
mod registers;
mod script;

use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

pub(crate) use script::Script;

/// The modules with a function `run` each, and a table of them. `scripts/fuzz` reads the names here, one a line.
macro_rules! targets {
    ($($name:ident,)*) => {
        mod targets {
            $(pub(crate) mod $name;)*
        }

        const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), targets::$name::run)),*];
    };
}

targets! {
    acpi,
    config,
    device_acpi_power,
    device_balloon,
    device_block,
    device_console,
    device_entropy,
    device_i8042,
    device_net,
    device_rtc,
    device_serial,
    device_tombstone,
    device_vsock,
    image_qcow2,
    link,
    loader,
    reply_poll,
    reply_shift,
    state_page,
    state_shift,
    virtqueue,
    wire_control,
    wire_slot,
}

/// What `bytes` say as a `T`, if they are enough for one.
fn typed<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    let enough = bytes.len() >= T::size_hint(0).0;
    enough.then(|| T::arbitrary_take_rest(Unstructured::new(bytes)).ok()).flatten()
}

fn wanted() -> fn(&[u8]) {
    static WANTED: OnceLock<fn(&[u8])> = OnceLock::new();
    *WANTED.get_or_init(|| {
        let name = std::env::var("CELLBLOCK_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("CELLBLOCK_FUZZ_TARGET={name:?} is none of the targets")).1
    })
}

fuzz_target!(|bytes: &[u8]| wanted()(bytes));
