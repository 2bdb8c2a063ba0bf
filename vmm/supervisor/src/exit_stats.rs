//! How often a vCPU's guest accessed what, register by register, for `cellblock run --exit-stats`.
//!
//! Written on the exit path by one vCPU's thread alone, with plain loads and stores; read by the loop thread for people. What a
//! guest can have counted is bounded: it may access addresses without end, and those that find no place are counted together.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use cellblock_bus::Bus;
use cellblock_wire::slot::Space;

use crate::link::{ExitCount, MOST_EXIT_COUNTS};

/// Places of each vCPU, a power of two: a Debian boot needs some 60.
const PLACES: usize = 512;
/// Places that are looked at for one address.
const LOOKS: usize = 8;

/// In a key: the place is taken.
const TAKEN: u64 = 1 << 63;
/// It is a port.
const PIO: u64 = 1 << 62;

/// The accesses of one vCPU.
#[derive(Debug)]
pub(crate) struct ExitStats {
    places: Box<[Place]>,
    others: Place,
}

#[derive(Debug, Default)]
struct Place {
    /// 0 = free. Set once, by the vCPU's thread.
    key: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Default for ExitStats {
    fn default() -> Self {
        ExitStats { places: (0..PLACES).map(|_| Place::default()).collect(), others: Place::default() }
    }
}

impl Place {
    // SYNC POINT: none; counts for people, and each has one writer.
    fn count(&self, write: bool) {
        let counter = if write { &self.writes } else { &self.reads };
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }

    fn counts(&self) -> (u64, u64) {
        (self.reads.load(Relaxed), self.writes.load(Relaxed))
    }
}

impl ExitStats {
    /// The guest accesses `address`.
    pub(crate) fn count(&self, space: Space, address: u64, write: bool) {
        let key = TAKEN | if space == Space::Pio { PIO } else { 0 } | address & (PIO - 1);
        // Registers are neighbours: whichever bits of their addresses differ, they spread.
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        for look in 0..LOOKS {
            let Some(place) = self.places.get((first.wrapping_add(look)) % PLACES) else { break };
            match place.key.load(Relaxed) {
                0 => place.key.store(key, Relaxed),
                taken if taken != key => continue,
                _ => {}
            }
            return place.count(write);
        }
        self.others.count(write);
    }
}

/// What the guest of all `vcpus` accessed, most used first and at most [`MOST_EXIT_COUNTS`]; and reads and writes of everything else.
pub(crate) fn sum<'a>(
    vcpus: impl Iterator<Item = &'a ExitStats>,
    bus: &Bus,
    names: &[String],
) -> (Vec<ExitCount>, (u64, u64)) {
    let mut registers = BTreeMap::<u64, (u64, u64)>::new();
    let mut others = (0, 0);
    for stats in vcpus {
        let add = |sum: &mut (u64, u64), place: &Place| {
            let (reads, writes) = place.counts();
            *sum = (sum.0.wrapping_add(reads), sum.1.wrapping_add(writes));
        };
        for place in &stats.places {
            let key = place.key.load(Relaxed);
            if key != 0 {
                add(registers.entry(key).or_default(), place);
            }
        }
        add(&mut others, &stats.others);
    }
    let mut registers: Vec<_> = registers.into_iter().collect();
    registers.sort_by_key(|(_, (reads, writes))| Reverse(reads.wrapping_add(*writes)));
    for (_, (reads, writes)) in registers.drain(MOST_EXIT_COUNTS.min(registers.len())..) {
        others = (others.0.wrapping_add(reads), others.1.wrapping_add(writes));
    }
    let counts = registers.into_iter().map(|(key, (reads, writes))| {
        let space = if key & PIO != 0 { Space::Pio } else { Space::Mmio };
        let address = key & (PIO - 1);
        let hit = bus.find(space, address, 1);
        ExitCount {
            device: hit.and_then(|hit| names.get(hit.target.device).cloned()),
            region: hit.map_or(0, |hit| hit.target.region),
            offset: hit.map_or(0, |hit| hit.offset),
            port: space == Space::Pio,
            address,
            reads,
            writes,
        }
    });
    (counts.collect(), others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_bus::{Range, Target};

    #[test]
    fn each_register_is_counted_for_its_device() {
        let mut bus = Bus::default();
        let target = Target { device: 1, region: 1 };
        bus.insert(Range { space: Space::Pio, base: 0x60, length: 8 }, target).unwrap();
        let (one, other) = (ExitStats::default(), ExitStats::default());
        one.count(Space::Pio, 0x64, false);
        other.count(Space::Pio, 0x64, true);
        other.count(Space::Pio, 0x64, true);
        // The same number in the other space is another register, of nobody.
        one.count(Space::Mmio, 0x64, false);
        let (counts, others) = sum([&one, &other].into_iter(), &bus, &["serial", "i8042"].map(str::to_owned));
        let nobody =
            ExitCount { device: None, region: 0, offset: 0, port: false, address: 0x64, reads: 1, writes: 0 };
        let port = ExitCount {
            device: Some("i8042".to_owned()),
            region: 1,
            offset: 4,
            port: true,
            reads: 1,
            writes: 2,
            ..nobody.clone()
        };
        assert_eq!((counts, others), (vec![port, nobody], (0, 0)));
    }

    #[test]
    fn a_guest_that_accesses_everything_loses_no_count() {
        let stats = ExitStats::default();
        for address in 0..4096u64 {
            stats.count(Space::Mmio, address * 8, address % 2 == 0);
        }
        // Most used of all, though counted last; another vCPU has as many addresses of its own.
        let other = ExitStats::default();
        (0..4096u64).for_each(|address| other.count(Space::Pio, address, false));
        (0..9).for_each(|_| other.count(Space::Pio, 0, true));
        let (counts, (reads, writes)) = sum([&stats, &other].into_iter(), &Bus::default(), &[]);
        assert_eq!(counts.len(), MOST_EXIT_COUNTS);
        assert_eq!((counts[0].address, counts[0].port, counts[0].writes), (0, true, 9));
        let known = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.reads, sum.1 + one.writes));
        assert_eq!((known.0 + reads, known.1 + writes), (2048 + 4096, 2048 + 9));
    }
}
