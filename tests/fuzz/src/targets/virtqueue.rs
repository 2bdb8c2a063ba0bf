//! A split queue whose driver writes what it likes into descriptors, rings, registers and the record of requests in flight, and
//! whose device keeps requests for as long as the driver says. The device works again after a reset, and a
//! successor takes over whatever it finds: it goes on, or needs a reset, after which it works.

use cellblock_channel::memory;
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, fresh};
use cellblock_sdk::testing::holder::{self, Holder};
use cellblock_sdk::virtio::inflight::Pages;
use cellblock_sdk::virtio::{Inline, Interrupt};
use cellblock_wire::device::IN_FLIGHT_BYTES;
use std::os::fd::OwnedFd;

/// What of each queue's record is as new for each input: its head, and the entries of the queues that there are.
const RECORD: usize = 16 + 16 * crate::guest::SIZE as usize;

thread_local! {
    static RECORDS: OwnedFd = memory::create_replies("in flight", 2 * IN_FLIGHT_BYTES).unwrap().fd;
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    RECORDS.with(|record| {
        for queue in 0..2 {
            let _ = rustix::io::pwrite(record, &[0; RECORD], queue * IN_FLIGHT_BYTES as u64);
        }
        let pages = Pages::open(record, 2).unwrap();
        let memory = ram.clone();
        let make = || {
            let interrupt = Interrupt::new(Line);
            let engine = Inline::new(vec![(Holder::default(), vec![0, 1])], interrupt.clone());
            holder::device(engine.with_pages(pages.clone()), memory.clone(), interrupt)
        };
        Guest::new(ram, 2, make).run(&mut script, |script| {
            let at = u64::from(script.u8() & 1) * IN_FLIGHT_BYTES as u64 + u64::from(script.u8());
            let count = script.u8().min(32).into();
            let _ = rustix::io::pwrite(record, script.bytes(count), at);
        });
    });
}
