//! What a device model is to the rest of the program, and what it is given: nothing of processes, descriptors or rings.

use std::time::Duration;

use cellblock_wire::control::BalloonReport;
use cellblock_wire::device::DriverRegisters;
pub use cellblock_wire::slot::{Action, mask};

use crate::state::{Encoder, StateError};

/// One guest access, as the bus resolved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Which of the device's regions, in the order of the machine description.
    pub region: u32,
    /// Byte offset in the region. The bus keeps it inside, but a model must not rely on that.
    pub offset: u64,
    /// Width in bytes: 1, 2, 4 or 8.
    pub size: u8,
}

impl Access {
    /// A read of a device whose registers are one byte wide, as the ISA bus does it: one cycle per byte, low first.
    pub fn read_bytes(&self, mut byte: impl FnMut(u64) -> u8) -> u64 {
        let each =
            (0..self.size.min(8)).map(|i| u64::from(byte(self.offset.wrapping_add(i.into()))) << (8 * i));
        each.fold(0, |whole, part| whole | part)
    }

    /// A write to a device whose registers are one byte wide: one cycle per byte, low first. The strongest action of
    /// all bytes is the access's.
    pub fn write_bytes(&self, data: u64, mut byte: impl FnMut(u64, u8) -> Action) -> Action {
        let cycles = data.to_le_bytes().into_iter().take(self.size.into());
        cycles.zip(0u64..).fold(Action::None, |strongest, (value, i)| {
            let action = byte(self.offset.wrapping_add(i), value);
            if action == Action::None { strongest } else { action }
        })
    }
}

/// Why a model is called without an access of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// [`Device::deadline`] has passed. It may come early or late; the model looks at its clock.
    Timer,
    /// The host may have given bytes, or taken some.
    Host,
    /// The host's power button was pressed.
    PowerButton,
    /// The balloon shall have this size.
    Balloon {
        /// In pages of 4 KiB.
        pages: u32,
    },
    /// The supervisor asks how the balloon stands: [`Device::answer`] is to say it, soon.
    ReportBalloon,
    /// The terminal behind a console port has another size.
    Resize {
        /// The port.
        port: u32,
        /// Width in characters.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
    /// The driver changed the device's configuration space.
    ConfigWritten,
}

/// A device model: a state machine that answers register accesses.
///
/// A call returns in bounded time, does no host I/O, allocates nothing and panics on nothing that the guest does.
pub trait Device {
    /// The answer to a read: the low `access.size` bytes count. Registers that are not there read as all ones.
    fn read(&mut self, access: Access) -> u64;

    /// Takes a write; `data` holds it in the low `access.size` bytes. Registers that are not there take nothing.
    fn write(&mut self, access: Access, data: u64) -> Action;

    /// Called right after each commit of the state, before the vCPU has its answer: for what must not be done before a
    /// successor would know of it. It stores into memory and nothing else, for the guest waits.
    fn committed(&mut self) {}

    /// Called after that, once the vCPU has its answer: the place for what costs time, such as waking an I/O thread.
    fn settle(&mut self) {}

    /// Something happened that was no access.
    fn event(&mut self, _event: Event) {}

    /// What went wrong and the log should have, once. Asked now and then.
    fn complaint(&mut self) -> Option<String> {
        None
    }

    /// What the supervisor asked for, once, when it is known. Called after each event.
    fn answer(&mut self) -> Option<BalloonReport> {
        None
    }

    /// The orderly end: waits at most `limit` for what is still on its way to the host. Whether all got there.
    fn finish(&mut self, _limit: Duration) -> bool {
        true
    }

    /// Begins to come to rest: what is begun is finished, nothing new is begun, and what waits for the host goes there if it takes
    /// it soon. Accesses are answered meanwhile.
    fn quiesce(&mut self) {}

    /// Whether it rests: nothing changes its state now but a call of this trait. Asked after [`quiesce`](Self::quiesce) and after
    /// each event.
    fn is_quiet(&self) -> bool {
        true
    }

    /// Goes on. [`Event::Host`] and [`Event::Timer`] follow.
    fn resume(&mut self) {}

    /// When [`Event::Timer`] is wanted next, as [`Clock::monotonic`]; `None` = not at all. Asked after each call.
    fn deadline(&self) -> Option<u64> {
        None
    }

    /// Appends all state that a successor needs; the same bytes for the same state.
    fn save(&self, out: &mut Encoder<'_>);

    /// Which of the device's processes this is, counted from 1. Called before the three that follow.
    fn begin(&mut self, _incarnation: u32) {}

    /// Begins as after power-on: there was no predecessor, or nothing of it can be taken over.
    fn power_on(&mut self) {}

    /// Takes over what a predecessor saved. The bytes are a stranger's: every field is checked, and on an error the
    /// device is as it was.
    ///
    /// # Errors
    /// The first field that no device of this kind and version saves.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError>;

    /// As [`restore`](Self::restore), for a virtio device whose driver has written `registers`. Those are the guest's own word,
    /// and go before what was saved. Without saved state they are all there is.
    ///
    /// # Errors
    /// As there; without saved state none.
    fn reconstruct(&mut self, _registers: &DriverRegisters, saved: Option<&[u8]>) -> Result<(), StateError> {
        saved.map_or(Ok(()), |saved| self.restore(saved))
    }
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn read(&mut self, access: Access) -> u64 {
        (**self).read(access)
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        (**self).write(access, data)
    }

    fn committed(&mut self) {
        (**self).committed();
    }

    fn settle(&mut self) {
        (**self).settle();
    }

    fn event(&mut self, event: Event) {
        (**self).event(event);
    }

    fn complaint(&mut self) -> Option<String> {
        (**self).complaint()
    }

    fn answer(&mut self) -> Option<BalloonReport> {
        (**self).answer()
    }

    fn finish(&mut self, limit: Duration) -> bool {
        (**self).finish(limit)
    }

    fn quiesce(&mut self) {
        (**self).quiesce();
    }

    fn is_quiet(&self) -> bool {
        (**self).is_quiet()
    }

    fn resume(&mut self) {
        (**self).resume();
    }

    fn deadline(&self) -> Option<u64> {
        (**self).deadline()
    }

    fn save(&self, out: &mut Encoder<'_>) {
        (**self).save(out);
    }

    fn begin(&mut self, incarnation: u32) {
        (**self).begin(incarnation);
    }

    fn power_on(&mut self) {
        (**self).power_on();
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        (**self).restore(saved)
    }

    fn reconstruct(&mut self, registers: &DriverRegisters, saved: Option<&[u8]>) -> Result<(), StateError> {
        (**self).reconstruct(registers, saved)
    }
}

/// An interrupt line, edge-triggered.
pub trait Trigger {
    /// Raises and drops the line. Never blocks; a pulse is delivered at least once.
    fn pulse(&mut self);
}

/// The two times there are.
pub trait Clock {
    /// Nanoseconds since some moment, never going back.
    fn monotonic(&self) -> u64;

    /// Nanoseconds since 1970-01-01 00:00 UTC. May jump either way.
    fn wall(&self) -> i64;
}

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_accesses_are_split_low_byte_first() {
        let access = Access { region: 0, offset: 3, size: 2 };
        assert_eq!(access.read_bytes(|offset| offset as u8 * 0x11), 0x4433);
        let mut seen = vec![];
        let action = access.write_bytes(0xaabb, |offset, value| {
            seen.push((offset, value));
            if offset == 3 { Action::Reset } else { Action::None }
        });
        assert_eq!((seen, action), (vec![(3, 0xbb), (4, 0xaa)], Action::Reset));
    }
}
