//! The aarch64 board: the same names as on x86_64, and nothing behind them yet.

use cellblock_hypervisor::x86_64::BootState;

use crate::boot::{BootEntry, BootPlan, Error, Piece};

const ARCH: &str = "aarch64";

/// Always [`Error::Unsupported`].
///
/// # Errors
/// Always.
pub fn boot_pieces(_plan: &BootPlan<'_>) -> Result<Vec<Piece>, Error> {
    Err(Error::Unsupported { what: "booting a kernel", arch: ARCH })
}

/// Always [`Error::Unsupported`].
///
/// # Errors
/// Always.
pub fn boot_state(_entry: &BootEntry) -> Result<BootState, Error> {
    Err(Error::Unsupported { what: "the boot vCPU's register state", arch: ARCH })
}

pub mod acpi {
    //! No ACPI tables yet.
    use crate::boot::{AcpiConfig, Error, Piece};

    /// Always [`Error::Unsupported`].
    ///
    /// # Errors
    /// Always.
    pub fn build(_config: &AcpiConfig) -> Result<Piece, Error> {
        Err(Error::Unsupported { what: "ACPI", arch: super::ARCH })
    }
}

pub mod cpuid {
    //! The architecture has no CPUID.
    use cellblock_hypervisor::x86_64::CpuidLeaf;

    /// No leaves.
    #[must_use]
    pub fn for_vcpu(_supported: &[CpuidLeaf], _id: u32, _cpus: u32) -> Vec<CpuidLeaf> {
        Vec::new()
    }
}

#[path = "x86_64/layout.rs"]
pub mod layout;

pub mod msrs {
    //! The architecture has no MSRs of this kind.

    /// No registers.
    #[must_use]
    pub fn at_reset() -> Vec<(u32, u64)> {
        Vec::new()
    }
}
