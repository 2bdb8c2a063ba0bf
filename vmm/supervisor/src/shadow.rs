//! What the guest's driver has written to a virtio device's registers (virtio-mmio, Virtio 1.3 §4.2.2), as the supervisor has
//! seen it pass. It outlives every worker and no worker writes it: a device whose state page was poisoned goes on from here.
//!
//! Nothing is judged here but what a later write may change: whether a queue or a feature makes sense is for the worker to say
//! when it is given all of it. A write is noted before it is sent, so one that was never answered is noted too; it is sent to
//! the successor again, and such a write does nothing the second time.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use cellblock_ring::Access;
use cellblock_wire::device::{DriverQueue, DriverRegisters, KEPT_CONFIG_BYTES};
use cellblock_wire::slot::Op;

/// Offsets of the registers that are noted.
mod register {
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Bits of `Status` (§2.1).
mod status {
    pub(super) const DRIVER_OK: u32 = 4;
    /// From then on features stay as they are.
    pub(super) const FEATURES_OK: u32 = 8;
    /// The device's to set.
    pub(super) const DEVICE_NEEDS_RESET: u32 = 64;
}

/// What a write has changed, after so many `resets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Before {
    resets: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The register at `offset`, of the queue or the half `select`, held `old` and was given `new`.
    Register { offset: u64, select: u32, old: u32, new: u32 },
    /// So with configuration space from `at` on, and of all of it the bytes of `written` had been written.
    Config { at: usize, size: u8, old: [u8; 8], new: [u8; 8], written: u64 },
}

/// The registers of one device, written by all vCPUs. No field hangs on another: two vCPUs that write at a time are in no order
/// on a real bus either.
#[derive(Debug)]
pub(crate) struct Shadow {
    status: AtomicU32,
    device_features_sel: AtomicU32,
    driver_features_sel: AtomicU32,
    driver_features: [AtomicU32; 2],
    queue_sel: AtomicU32,
    queues: Box<[Queue]>,
    config: [AtomicU8; KEPT_CONFIG_BYTES],
    /// A bit for each byte of `config` that was written.
    config_written: AtomicU64,
    resets: AtomicU32,
}

#[derive(Debug, Default)]
struct Queue {
    size: AtomicU32,
    /// Descriptor table, driver area, device area: low and high half of each.
    areas: [[AtomicU32; 2]; 3],
    /// 1 = it is.
    ready: AtomicU32,
}

impl Shadow {
    /// Of a device with so many queues, after a reset.
    pub(crate) fn new(queues: usize) -> Self {
        Shadow {
            status: AtomicU32::new(0),
            device_features_sel: AtomicU32::new(0),
            driver_features_sel: AtomicU32::new(0),
            driver_features: Default::default(),
            queue_sel: AtomicU32::new(0),
            queues: (0..queues).map(|_| Queue::default()).collect(),
            config: [const { AtomicU8::new(0) }; KEPT_CONFIG_BYTES],
            config_written: AtomicU64::new(0),
            resets: AtomicU32::new(0),
        }
    }

    /// Notes `access`, if it is a write to one of the registers. Returns what it has changed, as [`take_back`](Self::take_back)
    /// wants it, but for a reset: that leaves nothing that could harm anybody.
    pub(crate) fn note(&self, access: &Access) -> Option<Before> {
        let Access { op: Op::Write, region: 0, offset, size, data, .. } = *access else { return None };
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            return self.note_config(at, size, data);
        }
        // Registers are accessed whole (§4.2.2.2).
        if size != 4 {
            return None;
        }
        let (value, resets) = (data as u32, self.resets());
        // SYNC POINT: none; see `read`.
        if (offset, value) == (register::STATUS, 0) {
            self.reset();
            return None;
        }
        let select = match offset {
            register::DRIVER_FEATURES => self.driver_features_sel.load(Relaxed),
            _ => self.queue_sel.load(Relaxed),
        };
        let register = self.register(offset, select)?;
        let value = match offset {
            register::STATUS => self.advanced(value & 0xff & !status::DEVICE_NEEDS_RESET)?,
            register::DRIVER_FEATURES if self.status.load(Relaxed) & status::FEATURES_OK != 0 => return None,
            register::QUEUE_READY => value & 1,
            // A queue that is ready stays where it is.
            _ if self.is_placed(offset, select) => return None,
            _ => value,
        };
        let place = Place::Register { offset, select, old: register.swap(value, Relaxed), new: value };
        Some(Before { resets, place })
    }

    /// The register at `offset`, of the half or the queue `select`.
    fn register(&self, offset: u64, select: u32) -> Option<&AtomicU32> {
        let queue = || self.queues.get(select as usize);
        Some(match offset {
            register::STATUS => &self.status,
            register::DEVICE_FEATURES_SEL => &self.device_features_sel,
            register::DRIVER_FEATURES_SEL => &self.driver_features_sel,
            register::DRIVER_FEATURES => self.driver_features.get(select as usize)?,
            register::QUEUE_SEL => &self.queue_sel,
            register::QUEUE_READY => &queue()?.ready,
            register::QUEUE_SIZE => &queue()?.size,
            register::QUEUE_DESC_LOW => &queue()?.areas[0][0],
            register::QUEUE_DESC_HIGH => &queue()?.areas[0][1],
            register::QUEUE_DRIVER_LOW => &queue()?.areas[1][0],
            register::QUEUE_DRIVER_HIGH => &queue()?.areas[1][1],
            register::QUEUE_DEVICE_LOW => &queue()?.areas[2][0],
            register::QUEUE_DEVICE_HIGH => &queue()?.areas[2][1],
            _ => return None,
        })
    }

    /// Whether `offset` is where queue `select` lies, which is ready.
    fn is_placed(&self, offset: u64, select: u32) -> bool {
        let places = offset == register::QUEUE_SIZE || offset >= register::QUEUE_DESC_LOW;
        places && self.queues.get(select as usize).is_some_and(|queue| queue.ready.load(Relaxed) != 0)
    }

    /// Bits are set one after the other, and only a reset takes one back (§2.1.1): a device ignores other writes. But it may have
    /// refused FEATURES_OK, which a driver then tries again without.
    fn advanced(&self, value: u32) -> Option<u32> {
        let now = self.status.load(Relaxed);
        let taken = if now & status::DRIVER_OK != 0 { now } else { now & !status::FEATURES_OK };
        (value & taken == taken).then_some(value)
    }

    fn note_config(&self, offset: u64, size: u8, data: u64) -> Option<Before> {
        let at = usize::try_from(offset).ok().filter(|at| *at < KEPT_CONFIG_BYTES)?;
        let (mut old, new, resets) = ([0; 8], data.to_le_bytes(), self.resets());
        let written = self.config_written.load(Relaxed);
        let places = self.config.iter().zip(0u32..).skip(at).take(size.into());
        for ((kept, at), (byte, before)) in places.zip(new.into_iter().zip(&mut old)) {
            *before = kept.swap(byte, Relaxed);
            self.config_written.fetch_or(1 << at, Release);
        }
        Some(Before { resets, place: Place::Config { at, size, old, new, written } })
    }

    /// Takes a write back that no worker has survived, and that none is to be told of any more. What another vCPU has written there
    /// meanwhile stays.
    pub(crate) fn take_back(&self, before: &Before) {
        if before.resets != self.resets() {
            return;
        }
        match before.place {
            Place::Register { offset, select, old, new } => {
                if let Some(register) = self.register(offset, select) {
                    // It holds something else: that stays.
                    let _ = register.compare_exchange(new, old, Relaxed, Relaxed);
                }
            }
            Place::Config { at, size, old, new, written } => {
                let places = self.config.iter().zip(0u32..).skip(at).take(size.into());
                for ((kept, at), (old, new)) in places.zip(old.into_iter().zip(new)) {
                    let ours = kept.compare_exchange(new, old, Relaxed, Relaxed).is_ok();
                    if ours && written & 1 << at == 0 {
                        self.config_written.fetch_and(!(1 << at), Release);
                    }
                }
            }
        }
    }

    /// As after a reset.
    fn reset(&self) {
        self.status.store(0, Relaxed);
        let selectors = [&self.device_features_sel, &self.driver_features_sel, &self.queue_sel];
        selectors.into_iter().chain(&self.driver_features).for_each(|register| register.store(0, Relaxed));
        for queue in &self.queues {
            queue.ready.store(0, Relaxed);
            queue.size.store(0, Relaxed);
            queue.areas.iter().flatten().for_each(|half| half.store(0, Relaxed));
        }
        self.resets.fetch_add(1, Relaxed);
        self.config_written.store(0, Release);
    }

    /// How often the driver has reset the device.
    pub(crate) fn resets(&self) -> u32 {
        self.resets.load(Relaxed)
    }

    /// All of it, when no worker answers any more. A write that is not seen here yet has no answer, and is sent to the successor
    /// that is told of this.
    pub(crate) fn read(&self) -> DriverRegisters {
        let [low, high] = [0, 1].map(|half| u64::from(self.driver_features[half].load(Relaxed)));
        let written = self.config_written.load(Relaxed);
        let config = (0u8..).zip(&self.config).filter(|(at, _)| written & 1 << at != 0);
        DriverRegisters {
            status: self.status.load(Relaxed) as u8,
            device_features_sel: self.device_features_sel.load(Relaxed),
            driver_features_sel: self.driver_features_sel.load(Relaxed),
            driver_features: low | high << 32,
            queue_sel: self.queue_sel.load(Relaxed),
            queues: self.queues.iter().map(Queue::read).collect(),
            config: config.map(|(at, byte)| (at, byte.load(Relaxed))).collect(),
        }
    }
}

impl Queue {
    fn read(&self) -> DriverQueue {
        let whole =
            |[low, high]: &[AtomicU32; 2]| u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let [desc, driver, device] = &self.areas;
        DriverQueue {
            size: self.size.load(Relaxed),
            desc: whole(desc),
            driver: whole(driver),
            device: whole(device),
            ready: self.ready.load(Relaxed) != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_wire::slot::Space;
    use proptest::prelude::*;

    fn write(shadow: &Shadow, offset: u64, size: u8, data: u64) {
        let _ = shadow.note(&Access { space: Space::Mmio, op: Op::Write, size, region: 0, offset, data });
    }

    #[test]
    fn what_another_vcpu_wrote_meanwhile_is_not_taken_back() {
        let shadow = Shadow::new(2);
        let note = |offset, size, data| {
            shadow.note(&Access { space: Space::Mmio, op: Op::Write, size, region: 0, offset, data }).unwrap()
        };
        let (status, config) = (note(0x70, 4, 1), note(0x100, 2, 0x0201));
        write(&shadow, 0x70, 4, 3);
        write(&shadow, 0x101, 2, 0x0403);
        shadow.take_back(&status);
        shadow.take_back(&config);
        assert_eq!(shadow.read().status, 3);
        assert_eq!(shadow.read().config, [(1, 3), (2, 4)]);
        // Nor does one from before a reset bring anything back.
        write(&shadow, 0x30, 4, 1);
        let before = note(0x30, 4, 0);
        write(&shadow, 0x70, 4, 0);
        shadow.take_back(&before);
        assert_eq!(shadow.read().queue_sel, 0);
    }

    /// A driver that sets up queue 1 of two.
    fn driven() -> Shadow {
        let shadow = Shadow::new(2);
        let steps = [
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, 0xf),
            (0x24, 1),
            (0x20, 1),
            (0x24, 2),
            (0x20, 7),
            (0x70, 11),
            (0x20, 0xbad),
            (0x30, 1),
            (0x38, 64),
            (0x80, 0x1000),
            (0x84, 2),
            (0x90, 0x2000),
            (0xa0, 0x3000),
            (0xa4, 1),
            (0x44, 1),
            (0x80, 0xbad),
            (0x70, 15),
            (0x70, 3),
            (0x70, 0x4f),
            (0x50, 1),
            (0x64, 3),
        ];
        steps.into_iter().for_each(|(offset, value)| write(&shadow, offset, 4, value));
        write(&shadow, 0x120, 1, 0x1ff);
        shadow
    }

    #[test]
    fn a_driver_s_writes_are_kept_as_the_device_took_them() {
        let queue =
            DriverQueue { size: 64, desc: 0x2_0000_1000, driver: 0x2000, device: 0x1_0000_3000, ready: true };
        let wanted = DriverRegisters {
            status: 15,
            device_features_sel: 0,
            driver_features_sel: 2,
            driver_features: 0x1_0000_000f,
            queue_sel: 1,
            queues: vec![DriverQueue::default(), queue],
            config: vec![(0x20, 0xff)],
        };
        assert_eq!(driven().read(), wanted);
    }

    #[test]
    fn a_write_is_taken_back_without_a_trace() {
        let shadow = driven();
        let writes = [
            (0x14, 4, 1),
            (0x24, 4, 0),
            (0x30, 4, 0),
            (0x44, 4, 0),
            (0x38, 4, 8),
            (0x90, 4, 5),
            (0x120, 8, !0),
            (0x10c, 2, 3),
        ];
        for (offset, size, data) in writes {
            let (then, access) =
                (shadow.read(), Access { space: Space::Mmio, op: Op::Write, size, region: 0, offset, data });
            // A queue that is ready takes no other place.
            match shadow.note(&access) {
                Some(before) => {
                    assert!(offset == 0x120 || shadow.read() != then, "{offset:#x}");
                    shadow.take_back(&before);
                }
                None => assert!(matches!(offset, 0x38 | 0x90), "{offset:#x}"),
            }
            assert_eq!(shadow.read(), then, "{offset:#x}");
        }
        let fresh = Shadow::new(1);
        for (offset, data) in [(0x70, 1), (0x20, 9), (0x38, 8), (0xa4, 7), (0x44, 1)] {
            let (then, access) = (
                fresh.read(),
                Access { space: Space::Mmio, op: Op::Write, size: 4, region: 0, offset, data },
            );
            let before = fresh.note(&access).unwrap();
            assert_ne!(fresh.read(), then, "{offset:#x}");
            fresh.take_back(&before);
            assert_eq!(fresh.read(), then, "{offset:#x}");
        }
    }

    #[test]
    fn features_that_were_refused_may_be_chosen_anew() {
        let shadow = Shadow::new(1);
        for (offset, value) in [(0x70, 3), (0x20, 9), (0x70, 11), (0x20, 8), (0x70, 3), (0x20, 1), (0x70, 11)]
        {
            write(&shadow, offset, 4, value);
        }
        assert_eq!((shadow.read().driver_features, shadow.read().status), (1, 11));
    }

    #[test]
    fn a_reset_leaves_nothing() {
        let shadow = driven();
        write(&shadow, 0x70, 4, 0);
        let empty = DriverRegisters { queues: vec![DriverQueue::default(); 2], ..DriverRegisters::default() };
        assert_eq!(shadow.read(), empty);
        // What was written to the configuration space before is not there again with what is written now.
        write(&shadow, 0x101, 1, 5);
        assert_eq!(shadow.read().config, [(1, 5)]);
    }

    #[test]
    fn what_is_no_write_to_a_register_is_not_noted() {
        let (shadow, before) = (driven(), driven().read());
        let access = Access { space: Space::Mmio, op: Op::Write, size: 4, region: 0, offset: 0x70, data: 0 };
        assert_eq!(shadow.note(&Access { op: Op::Read, ..access }), None);
        assert_eq!(shadow.note(&Access { region: 1, ..access }), None);
        for size in [1, 2, 8] {
            assert_eq!(shadow.note(&Access { size, ..access }), None);
        }
        write(&shadow, 0x140, 8, !0);
        write(&shadow, u64::MAX, 8, !0);
        assert_eq!(shadow.read(), before);
    }

    proptest! {
        #[test]
        fn any_write_is_taken(writes in proptest::collection::vec((0u64..0x150, 0u8..9, any::<u64>()), 0..100)) {
            let shadow = Shadow::new(3);
            writes.into_iter().for_each(|(offset, size, data)| write(&shadow, offset, size, data));
            prop_assert_eq!(shadow.read().queues.len(), 3);
        }
    }
}
