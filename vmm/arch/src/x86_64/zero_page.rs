//! `boot_params` of the Linux boot protocols (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::ByteValued;

use super::MemoryLine;
use super::layout::{ACPI, CMDLINE, SETUP_DATA, ZERO_PAGE};
use crate::boot::{BootPlan, Error, Piece};

/// Offset of the setup header in `boot_params`.
const SETUP_HEADER: usize = 0x1f1;
/// End of the longest setup header: `edd_mbr_sig_buffer` follows.
const SETUP_HEADER_END: usize = 0x290;
/// "An unknown boot loader": no number is assigned to us.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the protected-mode part is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol version that an ELF kernel, which has no setup header, is told: 2.15.
const PROTOCOL_VERSION: u16 = 0x020f;
/// `kernel_alignment` for an ELF kernel; not used once it runs.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
/// `setup_data` type 9: random bytes (Linux `arch/x86/include/uapi/asm/setup_data.h`).
const SETUP_RNG_SEED: u32 = 9;
/// The header of a `setup_data` record: next (8 bytes), type (4), length (4).
const SETUP_DATA_HEADER: usize = 16;

/// The page that RSI points to.
pub(super) fn build(plan: &BootPlan<'_>, map: &[MemoryLine]) -> Result<Piece, Error> {
    let mut params = boot_params::default();
    match plan.setup_header {
        Some(header) => copy_setup_header(&mut params, header),
        None => default_setup_header(&mut params),
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.setup_data = SETUP_DATA;
    params.acpi_rsdp_addr = ACPI;
    if let Some(initrd) = plan.initrd {
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.bytes as u32;
        params.ext_ramdisk_image = (initrd.address >> 32) as u32;
        params.ext_ramdisk_size = (initrd.bytes >> 32) as u32;
    }
    set_memory_map(&mut params, map)?;
    Ok(Piece { address: ZERO_PAGE, bytes: params.as_slice().to_vec() })
}

/// The `setup_data` record with the RNG seed. Linux wipes it after use.
pub(super) fn seed(seed: &[u8; 32]) -> Piece {
    let mut bytes = Vec::with_capacity(SETUP_DATA_HEADER + seed.len());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(SETUP_RNG_SEED.to_le_bytes());
    bytes.extend((seed.len() as u32).to_le_bytes());
    bytes.extend(seed);
    Piece { address: SETUP_DATA, bytes }
}

/// "Fill in the setup header at offset 0x01f1 of struct boot_params from the kernel image."
fn copy_setup_header(params: &mut boot_params, header: &[u8]) {
    let room = SETUP_HEADER_END - SETUP_HEADER;
    let bytes = header.len().min(room);
    params.as_mut_slice()[SETUP_HEADER..SETUP_HEADER + bytes].copy_from_slice(&header[..bytes]);
}

fn default_setup_header(params: &mut boot_params) {
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
}

fn set_memory_map(params: &mut boot_params, map: &[MemoryLine]) -> Result<(), Error> {
    let mut table = params.e820_table;
    if map.len() > table.len() {
        return Err(Error::RamRanges { ranges: map.len(), limit: table.len() });
    }
    for (slot, line) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: line.address, size: line.bytes, r#type: line.kind };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{AcpiConfig, BootProtocol, Initrd};

    fn page(header: Option<&[u8]>) -> Vec<u8> {
        let acpi = AcpiConfig { cpus: 1, virtio_slots: vec![] };
        let plan = BootPlan {
            protocol: BootProtocol::Linux64,
            ram: &[],
            cmdline: "",
            initrd: Some(Initrd { address: 0x1_2345_6000, bytes: 0x2_0000_0001 }),
            setup_header: header,
            rng_seed: [0; 32],
            acpi: &acpi,
        };
        let map = [MemoryLine { address: 0x1000, bytes: 0x2000, kind: 1 }];
        build(&plan, &map).unwrap().bytes
    }

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    /// Offsets from `zero-page.rst` and `boot.rst`, written out, so that a wrong struct shows.
    #[test]
    fn fields_lie_where_linux_reads_them() {
        let page = page(None);
        assert_eq!(page.len(), 4096);
        assert_eq!(u32_at(&page, 0x70), ACPI as u32);
        assert_eq!(u32_at(&page, 0xc0), 1);
        assert_eq!(u32_at(&page, 0xc4), 2);
        assert_eq!(page[0x1e8], 1);
        assert_eq!(&page[0x1fe..0x200], &[0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff);
        assert_eq!(u32_at(&page, 0x218), 0x2345_6000);
        assert_eq!(u32_at(&page, 0x21c), 1);
        assert_eq!(u32_at(&page, 0x228), CMDLINE as u32);
        assert_eq!(u32_at(&page, 0x250), SETUP_DATA as u32);
        assert_eq!(u32_at(&page, 0x2d0), 0x1000);
        assert_eq!(u32_at(&page, 0x2d8), 0x2000);
        assert_eq!(u32_at(&page, 0x2e0), 1);
    }

    #[test]
    fn a_kernels_header_is_kept_but_for_what_the_loader_owns() {
        let header = vec![0xa5; 4096];
        let page = page(Some(&header));
        assert_eq!(page[0x1f1], 0xa5);
        assert_eq!(page[0x28f], 0xa5, "the header may reach to 0x290");
        assert_eq!(page[0x290], 0, "and no further");
        assert_eq!(page[0x210], 0xff);
    }

    #[test]
    fn the_seed_record_is_one_setup_data_of_type_nine() {
        let piece = seed(&[0x42; 32]);
        assert_eq!(piece.bytes[..8], [0; 8]);
        assert_eq!(u32_at(&piece.bytes, 8), 9);
        assert_eq!(u32_at(&piece.bytes, 12), 32);
        assert_eq!(piece.bytes[16..], [0x42; 32]);
    }

    #[test]
    fn too_many_ranges_are_refused() {
        let map = vec![MemoryLine { address: 0, bytes: 1, kind: 1 }; 129];
        let error = set_memory_map(&mut boot_params::default(), &map).unwrap_err();
        assert_eq!(error, Error::RamRanges { ranges: 129, limit: 128 });
    }
}
