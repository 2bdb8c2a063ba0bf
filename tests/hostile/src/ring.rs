//! What can be done to the rings, their memories, the doorbell and the interrupt.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use cellblock_channel::memory::{Mapping, Writable};
use cellblock_ring::words::{Wake, Words, WordsMut};
use cellblock_ring::{LaneId, layout};
use cellblock_wire::slot::{Request, stamp};
use rustix::fs::{FallocateFlags, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_setfl, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::{Noise, Worker, pause, rest};

/// What says that something was possible that must not be.
const POSSIBLE: u64 = 0xee;

impl Worker {
    /// `None` = the case is of another kind.
    pub(crate) fn break_ring(&mut self, case: &str, lane: LaneId, request: &Request) -> Option<bool> {
        let Request { sequence, generation, .. } = *request;
        let mut reply = |sequence: u32, generation: u32, action: u64, data: u64| {
            self.reply_raw(lane, stamp(sequence, generation), action, data);
            false
        };
        Some(match case {
            "twice" => {
                self.answer(lane, request);
                true
            }
            "early" => {
                self.answer(lane, request);
                self.reply_raw(lane, stamp(sequence.wrapping_add(1), generation), 0, 0);
                false
            }
            "late" => {
                pause(Duration::from_secs(60));
                true
            }
            "never-asleep" => rest(),
            "never-busy" => loop {
                std::hint::spin_loop();
            },
            "previous-again" => reply(sequence.wrapping_sub(1), generation, 0, 0),
            "sequence-next" => reply(sequence.wrapping_add(1), generation, 0, 0),
            "sequence-far" => reply(sequence.wrapping_add(0x1000), generation, 0, 0),
            "generation-old" => reply(sequence, generation.wrapping_sub(1), 0, 0),
            "generation-new" => reply(sequence, generation.wrapping_add(1), 0, 0),
            "action-unknown" => reply(sequence, generation, 3, 0),
            "action-wide" => reply(sequence, generation, 1 << 40, 0),
            "action-off" => reply(sequence, generation, 1, 0),
            "action-reset" => reply(sequence, generation, 2, 0),
            "wide-data" => reply(sequence, generation, 0, u64::MAX << 8 | crate::HONEST),
            "scribble" => loop {
                self.scribble(layout::reply_slot(0)..self.replies.len());
            },
            "scribble-header" => {
                // The flag that it is asleep is among it: so it must not be.
                self.noise = Noise::Header;
                true
            }
            "last-words" => {
                layout::LAST_WORDS.for_each(|word| self.replies.store(word, u64::MAX - word as u64));
                self.replies.store(layout::TAKEN, u64::MAX);
                std::process::exit(7)
            }
            "exit" => std::process::exit(7),
            "fault" => std::process::abort(),
            "doorbell-full" => {
                // The smallest pipe, never emptied, and a worker that always says that it sleeps.
                let bell = self.bell.as_ref().unwrap();
                let _ = rustix::pipe::fcntl_setpipe_size(bell, 4096);
                fcntl_setfl(bell, OFlags::empty()).unwrap();
                self.always_asleep();
                true
            }
            "doorbell-closed" => {
                self.bell = None;
                self.always_asleep();
                true
            }
            "interrupt-flood" => {
                let line = self.interrupt.as_ref().unwrap();
                let _ = fcntl_setfl(line, OFlags::NONBLOCK);
                for number in 0..20_000u64 {
                    let count = if number % 2 == 0 { 1 } else { u64::MAX - 1 };
                    let _ = rustix::io::write(line, &count.to_le_bytes());
                }
                true
            }
            "holes" => {
                let bytes = self.replies.bytes() as u64;
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                for _ in 0..1000 {
                    let _ = fallocate(&self.replies_fd, hole, 0, bytes);
                    let _ = fallocate(&self.page, hole, 0, 4096);
                }
                false
            }
            "reseal" => {
                let data = if self.changes_what_is_fixed() { POSSIBLE } else { crate::HONEST };
                reply_data(self, lane, request, data);
                false
            }
            _ => return None,
        })
    }

    /// Publishes a reply that is not made by the rules.
    fn reply_raw(&mut self, lane: LaneId, stamp: u64, action: u64, data: u64) {
        let base = layout::reply_slot(lane.index());
        self.replies.store(base + 1, action);
        self.replies.store(base + 2, data);
        self.replies.publish(base, stamp);
        <Mapping<Writable> as Words>::fence(SeqCst);
        self.replies.wake(base);
    }

    /// Writes other random numbers into these words of the replies.
    pub(crate) fn scribble(&mut self, words: std::ops::Range<usize>) {
        for word in words {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.replies.publish(word, self.random);
            self.replies.wake(word);
        }
    }

    /// Says that it sleeps, all the time, and never does.
    fn always_asleep(&mut self) {
        self.noise = Noise::Silent;
        self.replies.store(layout::SLEEPING, 1);
    }

    /// Whether one of the seals can be got around, or one more be set.
    fn changes_what_is_fixed(&self) -> bool {
        let memories = [&self.requests, &self.replies_fd, &self.page];
        let resized = memories.iter().any(|fd| ftruncate(fd, 0).is_ok() || ftruncate(fd, 1 << 20).is_ok());
        let sealed = memories.iter().any(|fd| fcntl_add_seals(fd, SealFlags::FUTURE_WRITE).is_ok());
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, if it is granted at all.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), 4096, both, MapFlags::SHARED, &self.requests, 0) }.is_ok();
        let written = rustix::io::pwrite(&self.requests, &[1; 8], 0).is_ok();
        resized || sealed || mapped || written
    }
}

fn reply_data(worker: &mut Worker, lane: LaneId, request: &Request, data: u64) {
    worker.reply_raw(lane, stamp(request.sequence, request.generation), 0, data);
}
