//! bzImage kernels, entered by the 64-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`).

use cellblock_arch::layout;
use vm_memory::GuestMemoryMmap;

use crate::error::{LoadError, kernel_field};
use crate::file::{Image, ImageFile};
use crate::loaded::Range;

/// Start of the setup header, and the end of the longest one.
const HEADER: usize = 0x1f1;
const HEADER_LIMIT: usize = 0x290;
/// The setup header ends at 0x202 plus the byte at 0x201.
const HEADER_END_BASE: usize = 0x202;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";
/// 2.12 (Linux 3.8): the first version that tells whether there is a 64-bit entry.
const MIN_VERSION: u16 = 0x020c;
/// `loadflags`: loaded at 1 MiB or above; a zImage is not.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: has the 64-bit entry.
const KERNEL_64: u16 = 1;
const SECTOR: u64 = 512;
/// The 64-bit entry's offset in the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The 64-bit entry.
    pub(crate) entry: u64,
    /// The memory it needs until it reads the memory map, its own place included.
    pub(crate) range: Range,
    /// The setup header from 0x1f1 on, with `code32_start` set.
    pub(crate) setup_header: Vec<u8>,
    /// The longest command line, without its zero byte.
    pub(crate) cmdline_limit: usize,
    /// Initrds must end at or below this.
    pub(crate) initrd_ceiling: u64,
}

/// Whether a file with these first bytes claims to be one.
pub(crate) fn has_magic(start: &[u8]) -> bool {
    start.get(MAGIC_AT..MAGIC_AT + MAGIC.len()).is_some_and(|magic| magic == MAGIC)
}

/// Checks the setup header, then copies the protected-mode part to where the kernel prefers to run.
pub(crate) fn load<F: ImageFile>(
    image: &mut Image<'_, F>,
    ram: &GuestMemoryMmap,
    low_ram_end: u64,
) -> Result<Kernel, LoadError> {
    let mut raw = [0; HEADER_LIMIT];
    image.read_at(0, &mut raw)?;
    let header = SetupHeader(raw);
    header.check()?;
    let offset = header.setup_bytes();
    let code = image.bytes().saturating_sub(offset);
    if code <= ENTRY_64 {
        let allowed = format!("the file must go on after its setup part, but ends at {:#x}", image.bytes());
        return Err(kernel_field("setup_sects", u64::from(header.setup_sects()), allowed));
    }
    let range = header.place(code, low_ram_end)?;
    image.copy_to(ram, range.start, offset, code)?;
    Ok(Kernel {
        entry: range.start + ENTRY_64,
        range,
        setup_header: header.for_boot_params(range.start),
        cmdline_limit: header.cmdline_size() as usize,
        initrd_ceiling: u64::from(header.initrd_addr_max()) + 1,
    })
}

/// The first bytes of the file; accessors carry the names of `boot.rst`.
struct SetupHeader([u8; HEADER_LIMIT]);

impl SetupHeader {
    fn check(&self) -> Result<(), LoadError> {
        if self.version() < MIN_VERSION {
            let allowed = format!("boot protocol {MIN_VERSION:#x} (Linux 3.8) or later is needed");
            return Err(kernel_field("boot protocol version", u64::from(self.version()), allowed));
        }
        if self.loadflags() & LOADED_HIGH == 0 {
            return Err(kernel_field(
                "loadflags",
                u64::from(self.loadflags()),
                "bit 0 must be set (a bzImage, no zImage)",
            ));
        }
        if self.xloadflags() & KERNEL_64 == 0 {
            return Err(kernel_field(
                "xloadflags",
                u64::from(self.xloadflags()),
                "bit 0 must be set (a 64-bit kernel)",
            ));
        }
        Ok(())
    }

    /// Where the kernel goes: at `pref_address`, with `init_size` bytes for it to unpack itself in.
    fn place(&self, code: u64, low_ram_end: u64) -> Result<Range, LoadError> {
        let start = self.pref_address();
        if !(layout::KERNEL_FLOOR..layout::LOW_RAM_END).contains(&start) {
            let allowed =
                format!("it must lie from {:#x} to below {:#x}", layout::KERNEL_FLOOR, layout::LOW_RAM_END);
            return Err(kernel_field("pref_address", start, allowed));
        }
        let needed = code.max(u64::from(self.init_size()));
        match start.checked_add(needed) {
            Some(end) if end <= low_ram_end => Ok(Range { start, end }),
            _ => Err(LoadError::NoRoom { image: "kernel", needed, from: start, to: low_ram_end }),
        }
    }

    fn for_boot_params(&self, start: u64) -> Vec<u8> {
        let end = (HEADER_END_BASE + usize::from(self.0[0x201])).min(HEADER_LIMIT);
        let mut header = self.0[HEADER..end].to_vec();
        if let Some(code32_start) = header.get_mut(0x214 - HEADER..0x218 - HEADER) {
            code32_start.copy_from_slice(&(start as u32).to_le_bytes());
        }
        header
    }

    /// Bytes before the protected-mode part: the boot sector and `setup_sects` more, where 0 means 4.
    fn setup_bytes(&self) -> u64 {
        let sectors = match self.setup_sects() {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR
    }

    fn setup_sects(&self) -> u8 {
        self.0[0x1f1]
    }

    fn version(&self) -> u16 {
        u16::from_le_bytes([self.0[0x206], self.0[0x207]])
    }

    fn loadflags(&self) -> u8 {
        self.0[0x211]
    }

    fn initrd_addr_max(&self) -> u32 {
        self.u32(0x22c)
    }

    fn xloadflags(&self) -> u16 {
        u16::from_le_bytes([self.0[0x236], self.0[0x237]])
    }

    fn cmdline_size(&self) -> u32 {
        self.u32(0x238)
    }

    fn pref_address(&self) -> u64 {
        u64::from(self.u32(0x258)) | u64::from(self.u32(0x25c)) << 32
    }

    fn init_size(&self) -> u32 {
        self.u32(0x260)
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}
