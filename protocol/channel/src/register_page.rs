//! The page that a guest reads a device's registers from: guest-physical memory, read-only to the guest, so that a read is no
//! exit. Writes still are, but for kicks and acknowledgements of used buffers.
//!
//! The worker keeps in it what a read of each register would give, and is done with that before it answers the write that
//! changed it. The supervisor clears the bits that the guest has dealt with (an interrupt's causes, as far as it hears of that); it has no other use for the page, and
//! what a worker puts there its own guest alone sees.

use crate::memory::{Mapping, Writable};

/// Bytes of a page.
pub const BYTES: usize = 4096;
/// Bytes of one word, which holds two registers.
pub const WORD: u64 = 8;

/// A device's page; clones are the same.
#[derive(Debug, Clone)]
pub struct RegisterPage(Mapping<Writable>);

impl RegisterPage {
    /// Over memory of [`BYTES`] bytes.
    pub fn new(map: Mapping<Writable>) -> Self {
        RegisterPage(map)
    }

    /// Sets the two registers from `offset` on, a multiple of [`WORD`]. Nothing happens past the end, here and below.
    pub fn set(&self, offset: u64, value: u64) {
        self.0.store_if_changed(index(offset), value);
    }

    /// Sets `bits` of the 32-bit register at `offset`, whatever others do to it meanwhile.
    pub fn set_bits(&self, offset: u64, bits: u32) {
        self.0.set_bits(index(offset), u64::from(bits) << shift(offset));
    }

    /// Clears `bits` of the 32-bit register at `offset`, whatever others do to it meanwhile.
    pub fn clear_bits(&self, offset: u64, bits: u32) {
        self.0.clear_bits(index(offset), u64::from(bits) << shift(offset));
    }

    /// Sets all registers to all ones, as of an address where nobody is.
    pub fn float(&self) {
        (0..BYTES as u64).step_by(WORD as usize).for_each(|offset| self.set(offset, u64::MAX));
    }

    /// The 32-bit register at `offset`.
    pub fn get(&self, offset: u64) -> u32 {
        (self.0.get(index(offset)) >> shift(offset)) as u32
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / WORD).unwrap_or(usize::MAX)
}

/// A little-endian guest finds the register at the lower address in the lower bits.
fn shift(offset: u64) -> u32 {
    if offset % WORD < WORD / 2 { 0 } else { 32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn both_sides_change_bits_of_the_same_register() {
        let supervisor = memory::create_shared("registers", BYTES).unwrap();
        let worker = RegisterPage::new(memory::open_write(&supervisor.fd, BYTES).unwrap());
        let supervisor = RegisterPage::new(supervisor.map);
        worker.set(0x60, u64::MAX << 32);
        worker.set_bits(0x60, 3);
        supervisor.clear_bits(0x60, 2);
        assert_eq!((worker.get(0x60), worker.get(0x64)), (1, u32::MAX));
        worker.clear_bits(0x64, 0xffff);
        assert_eq!((supervisor.get(0x60), supervisor.get(0x64)), (1, 0xffff_0000));
        supervisor.float();
        assert_eq!((worker.get(0), worker.get(BYTES as u64 - 4)), (u32::MAX, u32::MAX));
        // Past the end.
        worker.set(BYTES as u64, 1);
        worker.set_bits(u64::MAX, 1);
        assert_eq!((worker.get(BYTES as u64), worker.get(u64::MAX)), (0, 0));
    }
}
