//! The loader's one job, step by step.

use cellblock_arch::{AcpiConfig, BootEntry, BootPlan, BootProtocol, Initrd, RamRange, boot_pieces, layout};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::LoadError;
use crate::file::{Image, ImageFile};
use crate::loaded::{ImageKind, Loaded, Range, parameters_address};
use crate::place::{self, Bounds};
use crate::{bzimage, elf};

/// Enough of a kernel file to tell its format.
const START_BYTES: usize = 0x210;

/// Which protocol the guest is to be entered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// PVH where the image has a PVH note, else Linux's 64-bit protocol; what Firecracker and Cloud Hypervisor do.
    #[default]
    Auto,
    /// Linux's 64-bit protocol: `e_entry` of an ELF image, offset 0x200 of a bzImage's protected-mode part.
    Linux64,
    /// PVH: ELF images with Xen's `PHYS32_ENTRY` note only.
    Pvh,
}

/// What to load. Kernel and initrd are read from their beginning, wherever their file offset is.
#[derive(Debug)]
pub struct LoadRequest<'a, F> {
    /// The kernel image: ELF or bzImage.
    pub kernel: &'a mut F,
    /// The initrd, given to the guest as it is.
    pub initrd: Option<&'a mut F>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// How to enter.
    pub protocol: Protocol,
    /// Fresh random bytes for the guest (used by Linux's 64-bit protocol).
    pub rng_seed: [u8; 32],
    /// vCPUs and virtio-mmio slots, for the ACPI tables.
    pub acpi: AcpiConfig,
}

/// Puts everything into `ram`, which must be all zero, and says where the boot vCPU starts.
///
/// RAM must begin at guest address 0 and be laid out as `cellblock-memory` does it: up to 3 GiB there, the rest from 4 GiB on.
///
/// # Errors
/// [`LoadError`] names the image, field and value at fault.
pub fn load<F: ImageFile>(ram: &GuestMemoryMmap, request: LoadRequest<'_, F>) -> Result<Loaded, LoadError> {
    let ranges: Vec<RamRange> =
        ram.iter().map(|r| RamRange { address: r.start_addr().raw_value(), bytes: r.len() }).collect();
    let low_ram_end = low_ram_end(&ranges)?;
    let mut image = Image::open("kernel", request.kernel)?;
    let kernel = Kernel::load(&mut image, ram, low_ram_end, request.protocol)?;
    check_cmdline(request.cmdline, kernel.cmdline_limit)?;
    let bounds = Bounds { kernel_end: kernel.range.end, kernel_ceiling: kernel.initrd_ceiling, low_ram_end };
    let initrd = match request.initrd {
        Some(file) => Some(place::initrd(&mut Image::open("initrd", file)?, ram, &bounds)?),
        None => None,
    };
    let pieces = boot_pieces(&BootPlan {
        protocol: kernel.entry.protocol,
        ram: &ranges,
        cmdline: request.cmdline,
        initrd,
        setup_header: kernel.setup_header.as_deref(),
        rng_seed: request.rng_seed,
        acpi: &request.acpi,
    })?;
    for piece in pieces {
        write(ram, piece.address, &piece.bytes)?;
    }
    if kernel.linux {
        place::early_memory(ram, &kernel.range);
    }
    Ok(kernel.loaded(initrd))
}

/// A kernel of either format in guest memory.
struct Kernel {
    entry: BootEntry,
    kind: ImageKind,
    linux: bool,
    range: Range,
    setup_header: Option<Vec<u8>>,
    cmdline_limit: usize,
    initrd_ceiling: u64,
}

impl Kernel {
    fn load<F: ImageFile>(
        image: &mut Image<'_, F>,
        ram: &GuestMemoryMmap,
        low_ram_end: u64,
        protocol: Protocol,
    ) -> Result<Self, LoadError> {
        let mut start = [0; START_BYTES];
        let bytes = image.read_at(0, &mut start)?;
        let start = &start[..bytes];
        if start.starts_with(elf::MAGIC) {
            Self::from_elf(elf::load(image, ram, low_ram_end)?, protocol)
        } else if bzimage::has_magic(start) {
            if protocol == Protocol::Pvh {
                let why =
                    "it is a bzImage, which has no PVH entry; use the 64-bit protocol, or give the vmlinux";
                return Err(LoadError::Protocol { protocol: "PVH", why });
            }
            Ok(Self::from_bzimage(bzimage::load(image, ram, low_ram_end)?))
        } else {
            Err(LoadError::UnknownFormat {
                bytes: image.bytes(),
                start: start.iter().take(8).copied().collect(),
            })
        }
    }

    fn from_elf(kernel: elf::Kernel, protocol: Protocol) -> Result<Self, LoadError> {
        let (field, protocol, entry) = match (protocol, kernel.notes.pvh_entry) {
            (Protocol::Auto | Protocol::Pvh, Some(entry)) => ("PVH entry", BootProtocol::Pvh, entry),
            (Protocol::Pvh, None) => {
                let why = "it has no Xen PHYS32_ENTRY note (Linux: CONFIG_PVH); use the 64-bit protocol";
                return Err(LoadError::Protocol { protocol: "PVH", why });
            }
            (Protocol::Auto | Protocol::Linux64, _) => ("e_entry", BootProtocol::Linux64, kernel.entry),
        };
        if !(kernel.range.start..kernel.range.end).contains(&entry) {
            let allowed = format!(
                "it must lie in the kernel's segments, physical {:#x} to {:#x}",
                kernel.range.start, kernel.range.end
            );
            return Err(crate::error::kernel_field(field, entry, allowed));
        }
        Ok(Self {
            entry: BootEntry { protocol, entry, parameters: parameters_address(protocol) },
            kind: ImageKind::Elf,
            linux: kernel.linux,
            range: kernel.range,
            setup_header: None,
            cmdline_limit: layout::LINUX_CMDLINE_LIMIT,
            initrd_ceiling: layout::INITRD_CEILING,
        })
    }

    fn from_bzimage(kernel: bzimage::Kernel) -> Self {
        let protocol = BootProtocol::Linux64;
        Self {
            entry: BootEntry { protocol, entry: kernel.entry, parameters: parameters_address(protocol) },
            kind: ImageKind::BzImage,
            linux: true,
            range: kernel.range,
            setup_header: Some(kernel.setup_header),
            cmdline_limit: kernel.cmdline_limit.min(layout::CMDLINE_BYTES - 1),
            initrd_ceiling: kernel.initrd_ceiling,
        }
    }

    fn loaded(&self, initrd: Option<Initrd>) -> Loaded {
        Loaded {
            entry: self.entry,
            kind: self.kind,
            linux: self.linux,
            kernel: self.range,
            initrd: initrd.map(|initrd| Range { start: initrd.address, end: initrd.address + initrd.bytes }),
        }
    }
}

/// End of the range of RAM that begins at 0.
fn low_ram_end(ranges: &[RamRange]) -> Result<u64, LoadError> {
    let low = ranges.iter().find(|range| range.address == 0).map_or(0, |range| range.bytes);
    if low < layout::MIN_RAM {
        return Err(LoadError::NoRoom { image: "board", needed: layout::MIN_RAM, from: 0, to: low });
    }
    Ok(low.min(layout::LOW_RAM_END))
}

fn check_cmdline(cmdline: &str, limit: usize) -> Result<(), LoadError> {
    if cmdline.len() > limit {
        return Err(LoadError::CmdlineTooLong { bytes: cmdline.len(), limit });
    }
    match cmdline.bytes().position(|byte| byte == 0) {
        Some(offset) => Err(LoadError::CmdlineZero { offset }),
        None => Ok(()),
    }
}

fn write(ram: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), LoadError> {
    ram.write_slice(bytes, GuestAddress(address)).map_err(|error| LoadError::Write {
        address,
        bytes: bytes.len(),
        reason: error.to_string(),
    })
}

/// See the crate root.
#[allow(clippy::panic, reason = "a fuzzer learns of a broken promise by the panic")]
pub(crate) fn fuzz_image(bytes: &[u8]) {
    const RAM: usize = 32 << 20;
    // One for all: nothing of it is read.
    let Ok(ram) = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]) else { return };
    for protocol in [Protocol::Auto, Protocol::Linux64, Protocol::Pvh] {
        let request = LoadRequest {
            kernel: &mut std::io::Cursor::new(bytes),
            initrd: Some(&mut std::io::Cursor::new(bytes)),
            cmdline: "console=ttyS0",
            protocol,
            rng_seed: [1; 32],
            acpi: AcpiConfig { cpus: 1, virtio_slots: Vec::new() },
        };
        if let Ok(loaded) = load(&ram, request)
            && let Err(error) = loaded.check(RAM as u64)
        {
            panic!("the loader's own report does not pass: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
