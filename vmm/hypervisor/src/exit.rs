//! Why the guest stopped.

use smallvec::SmallVec;

/// The bytes of one access, in the guest's memory order (little-endian). Accesses of 1 to 8 bytes need no heap.
pub type ExitData = SmallVec<[u8; 8]>;

/// Why the guest stopped, and what it waits for.
///
/// | exit | the entry that answers it |
/// |---|---|
/// | `Mmio`, `Pio` with `write: false` | [`Reply`](crate::VmEntry::Reply) of exactly `data.len()` bytes |
/// | `Mmio`, `Pio` with `write: true` | [`Done`](crate::VmEntry::Done) |
/// | `Hypercall` | [`Reply`](crate::VmEntry::Reply) of 8 bytes: the return value |
/// | all others | [`Resume`](crate::VmEntry::Resume) |
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmExit {
    /// The guest accessed an address that no memory backs.
    Mmio {
        /// Guest-physical address.
        addr: u64,
        /// The guest writes `data`; otherwise it waits for `data.len()` bytes and `data` is zero.
        write: bool,
        /// 1 to 8 bytes.
        data: ExitData,
    },
    /// The guest accessed an I/O port (x86 only). A string instruction yields one exit per element.
    Pio {
        /// Port number.
        port: u16,
        /// The guest writes `data`; otherwise it waits for `data.len()` bytes and `data` is zero.
        write: bool,
        /// 1, 2 or 4 bytes.
        data: ExitData,
    },
    /// The guest called its hypervisor.
    Hypercall {
        /// Which function.
        func: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// Arm: the guest waits for an interrupt.
    Wfi,
    /// Arm: the guest waits for an event.
    Wfe,
    /// x86: the guest waits for an interrupt. Not seen when the interrupt controller is in the kernel, which waits itself.
    Hlt,
    /// The guest asked its firmware interface for a reset.
    Reset,
    /// The guest powered down.
    Shutdown,
    /// A breakpoint or a single step.
    Debug(DebugInfo),
    /// x86: a fault in the double-fault handler. The vCPU is in the shutdown state; the guest did not ask for this.
    TripleFault,
    /// Somebody used the kick handle. Nothing is pending; continue with [`VmEntry::Resume`](crate::VmEntry::Resume).
    Kicked,
    /// Fatal: the hypervisor could not go on. The text is for people only.
    InternalError(String),
}

/// Where a guest stopped for its debugger, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebugInfo {
    /// Address of the instruction.
    pub pc: u64,
    /// x86: DR6. aarch64: ESR_EL2.
    pub syndrome: u64,
}
