//! A balloon with every queue that it can have.

use cellblock_balloon::{Balloon, Desk, Front, Pages, identity, space};
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, Ticks, fresh};
use cellblock_sdk::virtio::{Inline, Interrupt, Kicker, Transport};
use cellblock_wire::device::BalloonConfig;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let how = script.u8();
    let config = BalloonConfig {
        pages: (how >> 4).into(),
        deflate_on_oom: how & 1 != 0,
        statistics: how & 2 == 0,
        reporting: how & 4 == 0,
        huge_pages: how & 8 != 0,
    };
    let memory = ram.clone();
    let make = || {
        let interrupt = Interrupt::new(Line);
        let pages = Pages::new(memory.clone(), if config.huge_pages { 2 << 20 } else { 4096 });
        let (space, desk) = (space(&config, &pages), Desk::default());
        let wake: fn() = || ();
        let balloon = Balloon::new(pages.clone(), desk.clone(), Ticks, wake);
        let engine = Inline::new(vec![(balloon, (0..config.queues()).collect())], interrupt.clone());
        let front = Front::new(space.clone(), interrupt.clone(), desk, Kicker::none(), &pages);
        let reporter = front.clone();
        Transport::new(identity(&config, space), engine, memory.clone(), interrupt)
            .on_event(move |event| front.event(event))
            .on_question(move || reporter.report())
    };
    let queues = config.queues();
    Guest::new(ram, queues, make).run(&mut script, |_| ());
}
