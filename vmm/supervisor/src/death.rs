//! What is known of the death of a device's worker: the black box's content, as the front gets it.

use cellblock_policy::call_name;
use serde::{Deserialize, Serialize};

/// Exits in one [`Death`], at most.
pub const EXITS: usize = 16;
/// Log lines in one [`Death`], at most.
pub const LINES: usize = 8;
/// Bytes of one of its lines, and of its cause; more is cut.
pub const LINE_BYTES: usize = 240;

/// Why a worker had to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A signal ended it that nobody in the VM had sent: a fault, or somebody's kill.
    Signal,
    /// It asked for a system call that its policy refuses.
    RefusedCall,
    /// It ended by itself.
    Exited,
    /// It did not answer in time.
    Hung,
    /// It broke the protocol, or said that it cannot go on.
    Violation,
    /// Its process could not be started, or did not serve in time.
    Unstarted,
    /// It was to be replaced.
    Asked,
}

impl Reason {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Signal => "ended by a signal",
            Reason::RefusedCall => "refused a system call",
            Reason::Exited => "ended by itself",
            Reason::Hung => "hung",
            Reason::Violation => "broke the protocol",
            Reason::Unstarted => "not started",
            Reason::Asked => "replaced on request",
        }
    }
}

/// How many workers of a device were lost for each reason; a count stops at its highest value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reasons {
    /// [`Reason::Signal`].
    pub signal: u16,
    /// [`Reason::RefusedCall`].
    pub refused_call: u16,
    /// [`Reason::Exited`].
    pub exited: u16,
    /// [`Reason::Hung`].
    pub hung: u16,
    /// [`Reason::Violation`].
    pub violation: u16,
    /// [`Reason::Unstarted`].
    pub unstarted: u16,
    /// [`Reason::Asked`].
    pub asked: u16,
}

impl Reasons {
    /// One more.
    pub(crate) fn count(&mut self, reason: Reason) {
        let count = match reason {
            Reason::Signal => &mut self.signal,
            Reason::RefusedCall => &mut self.refused_call,
            Reason::Exited => &mut self.exited,
            Reason::Hung => &mut self.hung,
            Reason::Violation => &mut self.violation,
            Reason::Unstarted => &mut self.unstarted,
            Reason::Asked => &mut self.asked,
        };
        *count = count.saturating_add(1);
    }

    /// Those that there were, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u16)> {
        let Reasons { signal, refused_call, exited, hung, violation, unstarted, asked } = *self;
        [
            (Reason::Signal, signal),
            (Reason::RefusedCall, refused_call),
            (Reason::Exited, exited),
            (Reason::Hung, hung),
            (Reason::Violation, violation),
            (Reason::Unstarted, unstarted),
            (Reason::Asked, asked),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
    }
}

/// One worker's death.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Which incarnation.
    pub generation: u32,
    /// Its process, in the front's pid namespace; 0 = it was never started.
    pub pid: i32,
    /// When it was reaped, in ms since 1970-01-01 00:00 UTC.
    pub at_ms: u64,
    /// Why it ended.
    pub reason: Reason,
    /// The same in a sentence.
    pub cause: String,
    /// What the kernel said of its end, if that came first or the VM had killed it meanwhile.
    pub ended: Option<String>,
    /// How long it had served, in ms; `None` = it never did.
    pub served_ms: Option<u64>,
    /// Exits that the device had answered in all.
    pub answered: u64,
    /// What the worker itself noted as it died, where the kernel's word agrees.
    pub last_words: Option<Fault>,
    /// The last exits that were sent to it, the oldest first.
    pub exits: Vec<Exit>,
    /// Its last log lines, the oldest first.
    pub log: Vec<String>,
}

/// A fault, as the process that dies of it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The signal's number.
    pub signal: u32,
    /// The signal's `si_code`.
    pub code: i32,
    /// The number of the system call that was refused.
    pub call: Option<u32>,
    /// What this machine's kernel calls it.
    pub call_name: Option<String>,
    /// The address at fault, or of the refused call.
    pub address: u64,
    /// The instruction, counted from where the binary's image begins: what `addr2line -e` takes.
    pub instruction: u64,
}

impl Fault {
    /// As the worker noted it.
    pub(crate) fn new(words: &cellblock_channel::last_words::LastWords) -> Self {
        Fault {
            signal: words.signal,
            code: words.code,
            call: words.call,
            call_name: words.call.and_then(call_name).map(str::to_owned),
            address: words.address,
            instruction: words.instruction,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.call, &self.call_name) {
            (Some(call), Some(name)) => write!(f, "{name} (system call {call})")?,
            (Some(call), None) => write!(f, "system call {call}")?,
            (None, _) if self.code <= 0 => return write!(f, "signal {} that somebody sent", self.signal),
            (None, _) => {
                write!(f, "signal {} (code {}) at address {:#x}", self.signal, self.code, self.address)?
            }
        }
        write!(f, ", by the instruction at {:#x} of its binary", self.instruction)
    }
}

/// One access that was sent to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How long before the death was known, in µs.
    pub before_us: u64,
    /// By which vCPU.
    pub vcpu: u32,
    /// Written or read.
    pub write: bool,
    /// Bytes.
    pub size: u8,
    /// Which region of the device.
    pub region: u32,
    /// Byte offset in the region.
    pub offset: u64,
    /// What was written, or the answer.
    pub data: u64,
    /// Whether it was answered.
    pub answered: bool,
}
