//! A device in the test's own process, on a clock that stands until it is moved.

use cellblock_channel::ram::Ram;
use cellblock_channel::socket::Control;
use cellblock_sdk::testing::virtio::{Driver, Edges, shared_ram};
use cellblock_sdk::testing::{Harness, ManualClock};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_vsock::{Host, Vsock, identity};

use super::{ALL, CONFIG, Guest, broker};

pub type InProcess = Guest<Harness<Device>>;

type Device = Transport<Inline<Vsock<ManualClock>>>;

fn device(ram: Ram, clock: &ManualClock) -> (Device, Control) {
    let (front, socket) = broker();
    let interrupt = Interrupt::new(Edges::default());
    let work = Vsock::new(&CONFIG, Host::new(socket).unwrap(), clock.clone());
    let engine = Inline::new(vec![(work, vec![0, 1, 2])], interrupt.clone());
    (Transport::new(identity(&CONFIG), engine, ram, interrupt), front)
}

/// A guest that has done nothing yet, and its clock.
pub fn in_process() -> (InProcess, ManualClock) {
    let (clock, ram) = (ManualClock::at(0), shared_ram().0);
    let (device, front) = device(ram.clone(), &clock);
    (Guest::new(Driver::new(Harness::new(device), ram), front), clock)
}

/// The guest's device is gone on with by another, with streams of its own. Its queues come one after the other, each with a turn.
pub fn succeed(guest: &mut InProcess, clock: &ManualClock) {
    let (device, front) = device(guest.driver.ram.clone(), clock);
    drop(guest.driver.host.replace(device).unwrap());
    guest.front = front;
}

/// One whose device is set up.
pub fn ready_in_process() -> InProcess {
    let mut guest = in_process().0;
    guest.begin(ALL);
    guest
}
