//! What each vCPU has sent to a device's workers: how much of it was answered, and the last accesses for the black box.
//!
//! Written on the exit path, by one vCPU's thread alone, with plain stores; read by the loop thread when the worker is dead.
//! It is for people: an entry that is being written while it is read may be of two accesses.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use cellblock_ring::Access;
use cellblock_wire::slot::Op;

use crate::death::Exit;

/// Accesses kept for each vCPU and device.
const KEPT: usize = 8;

/// In the head of an entry: who sent it was answered.
const ANSWERED: u64 = 1 << 63;
/// It is a write.
const WRITE: u64 = 1 << 62;
/// The size's place; the region is below it.
const SIZE: u32 = 32;

/// The accesses of one vCPU to one device.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    sent: AtomicU64,
    answered: AtomicU64,
    entries: [Entry; KEPT],
}

#[derive(Debug, Default)]
struct Entry {
    /// In ns of `CLOCK_MONOTONIC`.
    sent: AtomicU64,
    head: AtomicU64,
    offset: AtomicU64,
    data: AtomicU64,
}

impl Exits {
    /// `access` is being sent, at `now` in ns of `CLOCK_MONOTONIC`.
    pub(crate) fn sent(&self, access: &Access, now: u64) {
        let number = self.sent.load(Relaxed);
        if let Some(entry) = self.entry(number) {
            let write = if access.op == Op::Write { WRITE } else { 0 };
            entry.sent.store(now, Relaxed);
            entry.head.store(write | u64::from(access.size) << SIZE | u64::from(access.region), Relaxed);
            entry.offset.store(access.offset, Relaxed);
            entry.data.store(access.data, Relaxed);
        }
        self.sent.store(number.wrapping_add(1), Relaxed);
    }

    /// What was sent last was answered; a read by `data`.
    pub(crate) fn answered(&self, data: u64) {
        self.answered.store(self.answered.load(Relaxed).wrapping_add(1), Relaxed);
        let Some(entry) = self.entry(self.sent.load(Relaxed).wrapping_sub(1)) else { return };
        let head = entry.head.load(Relaxed);
        if head & WRITE == 0 {
            entry.data.store(data, Relaxed);
        }
        entry.head.store(head | ANSWERED, Relaxed);
    }

    /// How many were answered.
    pub(crate) fn count(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(number as usize % KEPT)
    }

    /// What vCPU `vcpu` has sent last, as seen at `now`; in no order.
    pub(crate) fn look(&self, vcpu: u32, now: u64) -> impl Iterator<Item = Exit> {
        let kept = usize::try_from(self.sent.load(Relaxed)).unwrap_or(KEPT).min(KEPT);
        self.entries.iter().take(kept).map(move |entry| {
            let head = entry.head.load(Relaxed);
            Exit {
                before_us: now.saturating_sub(entry.sent.load(Relaxed)) / 1000,
                vcpu,
                write: head & WRITE != 0,
                size: (head >> SIZE) as u8,
                region: head as u32,
                offset: entry.offset.load(Relaxed),
                data: entry.data.load(Relaxed),
                answered: head & ANSWERED != 0,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_wire::slot::Space;

    #[test]
    fn the_last_ones_are_kept_with_their_answers() {
        let exits = Exits::default();
        assert_eq!(exits.look(0, 0).count(), 0);
        for offset in 0..20 {
            let op = if offset % 2 == 0 { Op::Read } else { Op::Write };
            exits.sent(&Access { space: Space::Pio, op, size: 4, region: 1, offset, data: offset }, 1000);
            if offset < 19 {
                exits.answered(100 + offset);
            }
        }
        assert_eq!(exits.count(), 19);
        let mut seen: Vec<Exit> = exits.look(3, 5000).collect();
        seen.sort_by_key(|exit| exit.offset);
        assert!(seen.iter().map(|exit| exit.offset).eq(12..20), "{seen:?}");
        assert!(seen.iter().all(|exit| (exit.vcpu, exit.size, exit.region, exit.before_us) == (3, 4, 1, 4)));
        assert_eq!((seen[0].data, seen[1].data), (112, 13), "a read's answer, a write's data");
        assert_eq!(
            seen.iter().filter(|exit| !exit.answered).map(|exit| exit.offset).collect::<Vec<_>>(),
            [19]
        );
    }
}
