//! The entropy device, over a source that runs dry.

use std::io;

use cellblock_entropy::{Random, Requests, identity};
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, Ticks, fresh};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_wire::device::{Bucket, Limits};

struct Source(u64);

impl Random for Source {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(into.len() as u64).ok_or_else(|| io::Error::other("dry"))?;
        into.fill(self.0 as u8);
        Ok(())
    }
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let (dry, limited) = (script.value() << 8, script.flag());
    let limits =
        Limits { bytes: limited.then_some(Bucket { per_second: 1000, burst: 100 }), operations: None };
    let memory = ram.clone();
    let make = || {
        let interrupt = Interrupt::new(Line);
        let engine = Inline::servers(vec![Requests::new(Source(dry), Ticks, &limits)], interrupt.clone());
        Transport::new(identity(), engine, memory.clone(), interrupt)
    };
    Guest::new(ram, 1, make).run(&mut script, |_| ());
}
