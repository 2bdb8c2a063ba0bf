//! What every back end of the hypervisor interface must do.
//!
//! A case ([`cases`], [`kicks`]) is written once against the portable traits. It says what the guest shall do as a list of [`Op`]s; a
//! [`Platform`] turns that into a guest: the mock into a script, KVM into machine code. [`suite!`] makes a test of each case.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "all of this crate is test code")]

pub mod assembler;
pub mod cases;
pub mod kicks;
pub mod platforms;

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use cellblock_hypervisor::{ExitData, UnboundVcpu, Vm};

/// Which address space a guest accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Memory without memory behind it.
    Mmio(u64),
    /// A port.
    Pio(u16),
}

/// What a guest does. After its last operation it computes for ever.
#[derive(Debug, Clone)]
pub enum Op {
    /// Reads `bytes` bytes into RAX, the rest of it zero.
    Read(Space, usize),
    /// Writes these bytes with one instruction.
    Write(Space, Vec<u8>),
    /// Reads `count` elements of `bytes` bytes with one string instruction, then writes them all, one by one, to the same
    /// port.
    ReadString {
        /// Which port.
        port: u16,
        /// Bytes of an element.
        bytes: usize,
        /// How many elements.
        count: usize,
    },
    /// Writes elements with one string instruction.
    WriteString {
        /// Which port.
        port: u16,
        /// All of one size.
        elements: Vec<Vec<u8>>,
    },
    /// Reads a byte from this port for ever.
    ReadForEver(u16),
    /// Computes for ever.
    Compute,
    /// Halts with interrupts off.
    Halt,
    /// Faults without a handler for it, nor for the fault in handling that.
    TripleFault,
    /// Executes an instruction (returned by [`Platform::refused_instruction`]) that no hypervisor can emulate.
    Unknown,
    /// Enables its interrupt controllers, writes [`READY`] to the port, and from then on idles; each interrupt's handler writes its vector
    /// to the port. Line [`LINE`] has vector [`LINE_VECTOR`].
    Serve(u16),
}

/// Written by [`Op::Serve`] when interrupts may come.
pub const READY: u8 = 0xff;
/// The interrupt line that [`Op::Serve`] enables.
pub const LINE: u32 = 5;
/// Its vector.
pub const LINE_VECTOR: u8 = 0x45;

/// A back end with guests for it.
pub trait Platform {
    /// Its VM.
    type Vm: Vm;

    /// A VM whose vCPU 0 runs `program`, or why this host cannot. `bare`: without interrupt controllers, so that a HLT exits.
    fn vm(&self, program: &[Op], bare: bool) -> Result<Self::Vm, String>;

    /// Takes level-triggered interrupts; otherwise it must refuse them by type.
    fn delivers_levels(&self) -> bool;

    /// The bytes of [`Op::Unknown`]'s instruction as an internal error shows them.
    fn refused_instruction(&self) -> &'static str;
}

/// A vCPU before it is bound.
pub type Unbound<P> = <<P as Platform>::Vm as Vm>::Vcpu;
/// A vCPU on its thread.
pub type Bound<P> = <Unbound<P> as UnboundVcpu>::Bound;

/// Data of an exit or a reply.
pub fn bytes(data: &[u8]) -> ExitData {
    ExitData::from_slice(data)
}

/// Distinct non-zero bytes, so that a misplaced one shows.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| 0x11_u8.wrapping_mul(i as u8 + 1) ^ seed).collect()
}

/// Ends the test process by name if a case hangs, as one does that lost a kick on its own thread.
pub struct Watchdog(#[allow(dead_code, reason = "its drop is the message")] Sender<()>);

impl Watchdog {
    /// Watches until dropped, for at most a minute.
    pub fn of(case: &'static str) -> Self {
        let (alive, watched) = channel();
        thread::spawn(move || {
            if watched.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{case} hangs: a kick was lost, or an exit never came");
                std::process::abort();
            }
        });
        Self(alive)
    }
}

/// Makes a `#[test]` of every case, run on the platform that the expression makes (`Err`: why it is skipped).
#[macro_export]
macro_rules! suite {
    ($platform:expr) => {
        $crate::suite!(@ $platform;
            cases: reads_of_every_width writes_of_every_width string_reads string_writes a_halt_without_controllers a_triple_fault
                an_internal_error registers_round_trip wrong_entries_are_refused finish_completes_an_access
                finish_yields_what_an_instruction_still_owes an_injected_vector_reaches_its_handler
                a_level_is_delivered_or_refused_by_type impossible_vectors_are_refused;
            kicks: before_the_binding before_the_first_entry many_are_one a_kick_delivers_the_reply_first
                a_refused_entry_keeps_the_kick a_kick_leaves_a_string_whole finish_keeps_the_kick while_the_guest_computes
                while_the_guest_exits while_the_guest_halts on_the_way_in from_many_threads after_the_end;
        );
    };
    (@ $platform:expr; $($module:ident: $($case:ident)+;)+) => {
        $(mod $module {
            #[allow(unused_imports, reason = "the platform is an expression")]
            use super::*;
            $(
            #[test]
            fn $case() {
                let _watchdog = $crate::Watchdog::of(stringify!($case));
                match $platform {
                    Ok(platform) => $crate::$module::$case(&platform),
                    Err(why) => { let why: String = why; eprintln!("SKIP: {why}") }
                }
            }
        )+ })+
    };
}
