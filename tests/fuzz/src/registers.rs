//! A device of which a guest sees registers only.

use cellblock_sdk::device::{Action, Device, Event};
use cellblock_sdk::testing::{Harness, Host};

use crate::Script;
use crate::host::advance;

/// Does with the devices that `make` makes what the script says: accesses of any size anywhere, events, time, and successors that
/// are given what the device saved, or that with bytes changed, which they refuse or take. `host` is a step of the host's.
///
/// # Panics
/// The device does; or a successor that takes what its predecessor saved saves something else.
pub fn run<D: Device>(
    script: &mut Script<'_>,
    mut make: impl FnMut() -> D,
    mut host: impl FnMut(&mut Script<'_>),
) {
    let mut device = Harness::new(make());
    let mut steps = 0;
    while !script.is_over() && steps < 200 {
        steps += 1;
        let kind = script.u8();
        // The bus does not let accesses out of a region; a model must not rely on that.
        let (region, offset) = (u32::from(kind >> 4 & 1), u64::from(kind >> 5));
        match kind & 15 {
            0..=4 => drop(device.write(region, offset, 1, script.u8().into())),
            5..=8 => drop(device.read(region, offset, 1)),
            9 => drop(device.write(script.u8().into(), script.value(), script.size(), script.value())),
            10 => drop(device.read(script.u8().into(), script.value(), script.size())),
            11 => {
                host(script);
                device.event(Event::Host);
            }
            12 => {
                advance(script.value().saturating_mul(1 << (kind >> 4) * 2));
                for _ in 0..4 {
                    device.event(Event::Timer);
                }
            }
            13 => device.event(event(script)),
            14 => drop(device.replace(make()).expect("what it saved is taken")),
            _ => {
                let mut saved = device.saved();
                let place = usize::from(script.u8()) % (saved.len() + 1);
                match saved.get_mut(place) {
                    Some(byte) => *byte ^= script.u8(),
                    None => saved.truncate(script.u8().into()),
                }
                let mut successor = make();
                if successor.restore(&saved).is_ok() {
                    device = Harness::new(successor);
                }
            }
        }
    }
    device.device.quiesce();
    device.device.resume();
    assert!(matches!(device.write(0, 0, 1, 0), Action::None | Action::PowerOff | Action::Reset));
}

/// Any event.
pub fn event(script: &mut Script<'_>) -> Event {
    match script.u8() % 6 {
        0 => Event::PowerButton,
        1 => Event::Balloon { pages: script.value() as u32 },
        2 => Event::ReportBalloon,
        3 => Event::Resize { port: script.value() as u32, columns: script.u16(), rows: script.u16() },
        4 => Event::Timer,
        _ => Event::Host,
    }
}
