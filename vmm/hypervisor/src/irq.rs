//! Interrupts, named portably.

/// An interrupt for one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Irq {
    /// x86: vector, 0–255. aarch64: SPI, PPI or SGI number.
    pub id: u32,
    /// Level-triggered (x86); ignored on aarch64.
    pub level: bool,
}

impl Irq {
    /// An edge-triggered interrupt.
    pub const fn edge(id: u32) -> Self {
        Self { id, level: false }
    }

    /// A level-triggered interrupt.
    pub const fn level(id: u32) -> Self {
        Self { id, level: true }
    }
}
