//! General-purpose registers, portably.

/// The registers that every back end can read and write.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Regs {
    /// x86-64.
    X86_64 {
        /// Instruction pointer.
        rip: u64,
        /// Stack pointer.
        rsp: u64,
        /// RAX RBX RCX RDX RSI RDI RBP R8 … R15 FLAGS; see [`X86Gpr`].
        gprs: [u64; 16],
    },
    /// Armv8-A, 64-bit state.
    Aarch64 {
        /// Program counter.
        pc: u64,
        /// Stack pointer of EL1.
        sp_el1: u64,
        /// X0 … X30.
        gprs: [u64; 31],
        /// Processor state.
        pstate: u64,
    },
}

/// Index of an x86-64 register in [`Regs::X86_64`]'s `gprs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
#[repr(usize)]
pub enum X86Gpr {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Flags,
}
