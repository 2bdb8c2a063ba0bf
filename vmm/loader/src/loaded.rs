//! What the loader reports, and the check that those who do not trust it make.

use cellblock_arch::{BootEntry, BootProtocol, layout};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What kind of kernel image it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    /// An ELF executable.
    Elf,
    /// A bzImage.
    BzImage,
}

/// A range of guest-physical addresses; `end` is the first address after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

impl Range {
    fn is_within(&self, from: u64, to: u64) -> bool {
        from <= self.start && self.start < self.end && self.end <= to
    }
}

/// A guest that is ready to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Where and how the boot vCPU starts.
    pub entry: BootEntry,
    /// The image's format.
    pub kind: ImageKind,
    /// The kernel is Linux: a bzImage, or an ELF image with Linux's notes or banner.
    pub linux: bool,
    /// The memory that the kernel needs at its start.
    pub kernel: Range,
    /// The initrd.
    pub initrd: Option<Range>,
}

/// A report that no honest loader makes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the loader reported {field} = {value:#x}; it must be {allowed}")]
pub struct LoadedError {
    /// The field of [`Loaded`].
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What is allowed.
    pub allowed: String,
}

impl Loaded {
    /// Checks the report of a loader that may have been taken over by the image, against the size of guest RAM.
    ///
    /// Nothing in it can harm the host in any case (it is guest state); the check keeps later code free of surprises.
    ///
    /// # Errors
    /// [`LoadedError`] names the first field that is wrong.
    pub fn check(&self, ram_bytes: u64) -> Result<(), LoadedError> {
        let low_ram_end = ram_bytes.min(layout::LOW_RAM_END);
        let inside = |field, value, range: &Range, from| {
            if range.is_within(from, low_ram_end) {
                return Ok(());
            }
            Err(LoadedError {
                field,
                value,
                allowed: format!("a range from {from:#x} on that ends by {low_ram_end:#x}"),
            })
        };
        inside("kernel.start", self.kernel.start, &self.kernel, layout::KERNEL_FLOOR)?;
        if let Some(initrd) = &self.initrd {
            inside("initrd.start", initrd.start, initrd, self.kernel.end)?;
        }
        let BootEntry { protocol, entry, parameters } = self.entry;
        if !(self.kernel.start..self.kernel.end).contains(&entry) {
            let allowed = format!("inside the kernel, {:#x} to {:#x}", self.kernel.start, self.kernel.end);
            return Err(LoadedError { field: "entry", value: entry, allowed });
        }
        let expected = parameters_address(protocol);
        if parameters != expected {
            return Err(LoadedError {
                field: "parameters",
                value: parameters,
                allowed: format!("{expected:#x}"),
            });
        }
        Ok(())
    }
}

/// Where the structure that the entry register points to lies.
pub(crate) fn parameters_address(protocol: BootProtocol) -> u64 {
    match protocol {
        BootProtocol::Linux64 => layout::ZERO_PAGE,
        BootProtocol::Pvh => layout::PVH_START_INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 64 << 20;

    fn good() -> Loaded {
        Loaded {
            entry: BootEntry {
                protocol: BootProtocol::Pvh,
                entry: 0x10_0040,
                parameters: layout::PVH_START_INFO,
            },
            kind: ImageKind::Elf,
            linux: false,
            kernel: Range { start: 0x10_0000, end: 0x20_0000 },
            initrd: Some(Range { start: 0x20_0000, end: RAM }),
        }
    }

    #[test]
    fn an_honest_report_passes_and_survives_the_socket() {
        assert_eq!(good().check(RAM), Ok(()));
        let config = bincode::config::standard().with_limit::<4096>();
        let bytes = bincode::serde::encode_to_vec(good(), config).unwrap();
        let (back, used): (Loaded, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
        assert_eq!((back, used), (good(), bytes.len()));
    }

    #[test]
    fn each_lie_is_named() {
        let lie = |field: &str, change: &dyn Fn(&mut Loaded)| {
            let mut loaded = good();
            change(&mut loaded);
            assert_eq!(loaded.check(RAM).unwrap_err().field, field);
        };
        lie("kernel.start", &|l| l.kernel.start = 0x1000);
        lie("kernel.start", &|l| l.kernel.end = RAM + 1);
        lie("kernel.start", &|l| l.kernel.end = l.kernel.start);
        lie("initrd.start", &|l| l.initrd = Some(Range { start: 0x1f_f000, end: RAM }));
        lie("initrd.start", &|l| l.initrd = Some(Range { start: RAM, end: u64::MAX }));
        lie("entry", &|l| l.entry.entry = 0x20_0000);
        lie("parameters", &|l| l.entry.protocol = BootProtocol::Linux64);
    }
}
