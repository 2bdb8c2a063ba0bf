//! A device in the test's own process, on a clock that stands until it is moved.

use cellblock_sdk::testing::virtio::{Driver, Edges, shared_ram};
use cellblock_sdk::testing::{Harness, ManualClock};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_vsock::{Host, Vsock, identity};

use super::{ALL, CONFIG, Guest, broker};

pub type InProcess = Guest<Harness<Transport<Inline<Vsock<ManualClock>>>>>;

/// A guest that has done nothing yet, and its clock.
pub fn in_process() -> (InProcess, ManualClock) {
    let (front, socket) = broker();
    let clock = ManualClock::at(0);
    let interrupt = Interrupt::new(Edges::default());
    let ram = shared_ram().0;
    let work = Vsock::new(&CONFIG, Host::new(socket).unwrap(), clock.clone());
    let engine = Inline::new(vec![(work, vec![0, 1, 2])], interrupt.clone());
    let device = Transport::new(identity(&CONFIG), engine, ram.clone(), interrupt);
    (Guest::new(Driver::new(Harness::new(device), ram), front), clock)
}

/// One whose device is set up.
pub fn ready_in_process() -> InProcess {
    let mut guest = in_process().0;
    guest.begin(ALL);
    guest
}
