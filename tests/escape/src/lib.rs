//! What a compromised worker would try, one [`Case`] for each thing, and what must hold it.
//!
//! The program `escape` is put in the place of a device's worker. It greets, takes its grant, and closes the device's own sandbox as
//! every worker does; it then tries all cases and tells by its log, case by case, what became of each ([`Report`]). It handles the
//! signal that a refused call raises, and goes on: as bad a worker as there can be. `tests/e2e/tests/escape.rs` starts it under every
//! device's policy, with seccomp and without, and judges.
//!
//! With seccomp a case may be held by the policy, or by whatever holds it without: a policy does not look into memory. Without,
//! it must be held by one of the layers that the case names, alone.

pub mod attempt;
pub mod bait;
mod cases;
pub mod program;
pub mod report;

pub use attempt::{Attempt, Held};
pub use cases::all;
pub use report::Report;

use attempt::Own;

/// One thing to try.
#[derive(Clone, Copy)]
pub struct Case {
    /// What, in one word with underscores.
    pub name: &'static str,
    /// Tries it: `Ok` = it got through.
    pub attempt: fn(&Own) -> Attempt,
    /// What holds it without seccomp: error number, and the layer (or what else of the kernel's) that answers with it.
    pub second: &'static [(i32, &'static str)],
    /// The first kernel in which the second layer holds it; before, seccomp stands alone.
    pub since: (u32, u32),
    /// Why nobody is harmed if it gets through without seccomp, if nobody is.
    pub harmless: Option<&'static str>,
    /// Why nothing but seccomp may hold it, if so: it is among what the threat model (`vmm/jail/README.md`) does not promise without.
    pub unheld: Option<&'static str>,
}

impl Case {
    const fn new(
        name: &'static str,
        attempt: fn(&Own) -> Attempt,
        second: &'static [(i32, &'static str)],
    ) -> Case {
        Case { name, attempt, second, since: (0, 0), harmless: None, unheld: None }
    }

    const fn since(mut self, major: u32, minor: u32) -> Case {
        self.since = (major, minor);
        self
    }

    const fn harmless(mut self, why: &'static str) -> Case {
        self.harmless = Some(why);
        self
    }

    const fn unheld(mut self, why: &'static str) -> Case {
        self.unheld = Some(why);
        self
    }

    /// What held it, or why nothing had to, in a process with or without a seccomp program on a kernel of this version.
    ///
    /// # Errors
    /// It got out, or was held by something that nobody counts on.
    pub fn judge(&self, report: Report, seccomp: bool, kernel: (u32, u32)) -> Result<&'static str, String> {
        let name = self.name;
        match report {
            Report::Seccomp if seccomp => Ok("seccomp"),
            Report::Seccomp => Err(format!("{name}: held by a seccomp program where there should be none")),
            Report::Errno(errno) => self.second.iter().find(|(known, _)| *known == errno).map_or_else(
                || Err(format!("{name}: error {errno}, which no layer that it names answers with")),
                |(_, layer)| Ok(*layer),
            ),
            Report::Through if !seccomp && self.harmless.is_some() => Ok("nothing, and it harms nobody"),
            Report::Through if !seccomp && self.unheld.is_some() => Ok("nothing: seccomp alone holds it"),
            Report::Through if !seccomp && kernel < self.since => Ok("nothing on so old a kernel"),
            Report::Through => Err(format!("{name}: it got through")),
        }
    }
}
