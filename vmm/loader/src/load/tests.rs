use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::samples::{body_offset, bzimage, elf, note, simple_elf};

const RAM: u64 = 64 << 20;

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn read(ram: &GuestMemoryMmap, address: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    ram.read_slice(&mut buffer, GuestAddress(address)).unwrap();
    buffer
}

fn try_load(kernel: &[u8], protocol: Protocol) -> Result<(Loaded, GuestMemoryMmap), LoadError> {
    load_with(kernel, None, "root=/dev/vda", protocol)
}

fn load_with(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    protocol: Protocol,
) -> Result<(Loaded, GuestMemoryMmap), LoadError> {
    let ram = ram();
    let mut initrd = initrd.map(Cursor::new);
    let request = LoadRequest {
        kernel: &mut Cursor::new(kernel),
        initrd: initrd.as_mut(),
        cmdline,
        protocol,
        rng_seed: [9; 32],
        acpi: AcpiConfig { cpus: 1, virtio_slots: vec![] },
    };
    let loaded = load(&ram, request)?;
    loaded.check(RAM).unwrap();
    Ok((loaded, ram))
}

fn pvh_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes())
}

fn message(kernel: &[u8]) -> String {
    try_load(kernel, Protocol::Auto).unwrap_err().to_string()
}

#[test]
fn an_elf_without_a_note_is_entered_in_long_mode_at_e_entry() {
    let (loaded, ram) = try_load(&simple_elf(b"code", &[]), Protocol::Auto).unwrap();
    let expected =
        BootEntry { protocol: BootProtocol::Linux64, entry: 0x10_0000, parameters: layout::ZERO_PAGE };
    assert_eq!((loaded.entry, loaded.kind, loaded.linux), (expected, ImageKind::Elf, false));
    assert_eq!(read(&ram, 0x10_0000, 6), b"code\0\0");
    assert_eq!(read(&ram, layout::CMDLINE, 14), b"root=/dev/vda\0");
    assert_eq!(read(&ram, layout::ZERO_PAGE + 0x202, 4), b"HdrS");
    assert_eq!(read(&ram, layout::SETUP_DATA + 16, 32), [9; 32]);
    assert_eq!(read(&ram, layout::ACPI, 8), b"RSD PTR ");
}

#[test]
fn a_pvh_note_is_used_unless_the_request_says_otherwise() {
    let kernel = simple_elf(b"code", &pvh_note(0x10_0002));
    let (loaded, ram) = try_load(&kernel, Protocol::Auto).unwrap();
    let expected =
        BootEntry { protocol: BootProtocol::Pvh, entry: 0x10_0002, parameters: layout::PVH_START_INFO };
    assert_eq!((loaded.entry, loaded.linux), (expected, false));
    assert_eq!(read(&ram, layout::PVH_START_INFO, 4), 0x336e_c578u32.to_le_bytes());
    assert_eq!(try_load(&kernel, Protocol::Pvh).unwrap().0, loaded);
    let (loaded, _) = try_load(&kernel, Protocol::Linux64).unwrap();
    assert_eq!((loaded.entry.protocol, loaded.entry.entry), (BootProtocol::Linux64, 0x10_0000));
}

#[test]
fn pvh_without_an_entry_is_refused() {
    let error = try_load(&simple_elf(b"code", &[]), Protocol::Pvh).unwrap_err();
    assert!(matches!(error, LoadError::Protocol { .. }), "{error}");
    let error = try_load(&bzimage(&[0; 0x400]), Protocol::Pvh).unwrap_err();
    assert!(matches!(error, LoadError::Protocol { .. }), "{error}");
}

#[test]
fn linux_is_told_from_other_kernels() {
    let is_linux = |kernel: &[u8]| try_load(kernel, Protocol::Auto).unwrap().0.linux;
    assert!(is_linux(&bzimage(&[0; 0x400])));
    assert!(is_linux(&simple_elf(b"xx Linux version 6.1 (gcc)", &[])));
    assert!(is_linux(&simple_elf(b"code", &note(b"Linux\0", 0x100, &[]))));
    assert!(!is_linux(&simple_elf(b"Linux guests beware", &pvh_note(0x10_0000))));
}

#[test]
fn a_bzimage_goes_to_its_preferred_address_with_its_header_in_the_zero_page() {
    let code: Vec<u8> = (0..0x800u32).map(|n| n as u8).collect();
    let (loaded, ram) = try_load(&bzimage(&code), Protocol::Auto).unwrap();
    assert_eq!(loaded.entry.entry, 0x100_0200);
    assert_eq!(loaded.kernel, Range { start: 0x100_0000, end: 0x140_0000 });
    assert_eq!(read(&ram, 0x100_0000, code.len()), code);
    let zero_page = read(&ram, layout::ZERO_PAGE, 4096);
    assert_eq!(zero_page[0x214..0x218], 0x100_0000u32.to_le_bytes());
    assert_eq!(zero_page[0x238..0x23c], 255u32.to_le_bytes());
    assert_eq!((zero_page[0x210], zero_page[0x1f1]), (0xff, 2));
}

#[test]
fn the_initrd_lies_high_and_is_announced_in_either_protocol() {
    let initrd = vec![0xab; 0x1801];
    let start = RAM - 0x2000;
    for (kernel, field) in [
        (simple_elf(b"code", &[]), layout::ZERO_PAGE + 0x218),
        (bzimage(&[0; 0x400]), layout::ZERO_PAGE + 0x218),
        (simple_elf(b"code", &pvh_note(0x10_0000)), layout::PVH_MODULES),
    ] {
        let (loaded, ram) = load_with(&kernel, Some(&initrd), "", Protocol::Auto).unwrap();
        assert_eq!(loaded.initrd, Some(Range { start, end: start + 0x1801 }));
        assert_eq!(read(&ram, start, initrd.len()), initrd);
        assert_eq!(read(&ram, field, 4), (start as u32).to_le_bytes());
    }
}

#[test]
fn an_initrd_that_does_not_fit_or_is_empty_is_refused() {
    let error =
        |initrd: &[u8]| load_with(&simple_elf(b"c", &[]), Some(initrd), "", Protocol::Auto).unwrap_err();
    let text = error(&vec![0; RAM as usize]).to_string();
    assert!(text.contains("initrd") && text.contains("67108864") && text.contains("memory"), "{text}");
    assert!(error(&[]).to_string().contains("empty"));
}

#[test]
fn the_command_line_is_held_to_the_kernels_limit() {
    let result = |kernel: &[u8], bytes: usize| load_with(kernel, None, &"x".repeat(bytes), Protocol::Auto);
    for (kernel, limit) in [(simple_elf(b"c", &[]), 2047), (bzimage(&[0; 0x400]), 255)] {
        assert!(result(&kernel, limit).is_ok());
        let text = result(&kernel, limit + 1).unwrap_err().to_string();
        assert!(text.contains(&limit.to_string()) && text.contains(&(limit + 1).to_string()), "{text}");
    }
    let error = load_with(&simple_elf(b"c", &[]), None, "a\0b", Protocol::Auto).unwrap_err();
    assert!(matches!(error, LoadError::CmdlineZero { offset: 1 }));
}

#[test]
fn refusals_name_field_and_value() {
    let at = body_offset(1);
    let one = |program| elf(0x10_0000, &[program], b"code");
    for (kernel, words) in [
        (b"#!/bin/sh".to_vec(), &["neither an ELF", "bzImage", "23, 21"][..]),
        (vec![], &["neither an ELF", "0 bytes"]),
        (b"\x7fELF\x02".to_vec(), &["file length", "0x5"]),
        (one((1, at, 0xf_f000, 4, 4)), &["p_paddr", "0xff000", "0x100000"]),
        (one((1, at, 0x10_0000, 5, 5)), &["p_filesz", "0x5", "file ends"]),
        (one((1, u64::MAX, 0x10_0000, 4, 4)), &["p_offset", "0xffffffffffffffff"]),
        (one((1, at, 0x10_0000, 4, 3)), &["p_filesz", "p_memsz", "0x3"]),
        (one((1, at, 0x10_0000, 4, u64::MAX)), &["memory is too small", "kernel"]),
        (one((1, at, u64::MAX - 2, 4, 4)), &["memory is too small", "kernel"]),
        (one((2, at, 0x10_0000, 4, 4)), &["PT_LOAD", "0x0"]),
        (elf(0, &[(1, at, 0x10_0000, 4, 4)], b"code"), &["e_entry", "0x0", "0x100000"]),
        (elf(0x10_0000, &[], b""), &["e_phnum", "0x0"]),
        (simple_elf(b"code", &pvh_note(7)), &["PVH entry", "0x7"]),
    ] {
        let text = message(&kernel);
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} not all in: {text}");
    }
}

#[test]
fn overlapping_segments_are_refused() {
    let at = body_offset(2);
    let kernel = elf(0x10_0000, &[(1, at, 0x10_1000, 4, 4), (1, at, 0x10_0000, 4, 0x1001)], b"code");
    assert!(matches!(
        try_load(&kernel, Protocol::Auto).unwrap_err(),
        LoadError::Overlap { first: 0x10_0000, second: 0x10_1000 }
    ));
}

#[test]
fn bzimage_refusals_name_field_and_value() {
    let with = |at: usize, value: &[u8]| {
        let mut image = bzimage(&[0; 0x400]);
        image[at..at + value.len()].copy_from_slice(value);
        image
    };
    for (kernel, words) in [
        (with(0x206, &[0x0b, 2]), &["version", "0x20b", "0x20c"][..]),
        (with(0x211, &[0]), &["loadflags", "0x0"]),
        (with(0x236, &[0]), &["xloadflags", "64-bit"]),
        (with(0x1f1, &[200]), &["setup_sects", "0xc8"]),
        (with(0x258, &[0, 0, 0, 0]), &["pref_address", "0x0"]),
        (with(0x25c, &[1]), &["pref_address", "0x101000000"]),
        (with(0x260, &[0xff; 4]), &["memory is too small", "4294967295"]),
    ] {
        let text = message(&kernel);
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} not all in: {text}");
    }
}

#[test]
fn too_little_memory_for_the_board_is_said() {
    let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let request = LoadRequest {
        kernel: &mut Cursor::new(simple_elf(b"c", &[])),
        initrd: None,
        cmdline: "",
        protocol: Protocol::Auto,
        rng_seed: [0; 32],
        acpi: AcpiConfig { cpus: 1, virtio_slots: vec![] },
    };
    assert!(load(&small, request).unwrap_err().to_string().contains("memory is too small"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One or more damaged bytes anywhere in the headers.
    #[test]
    fn damaged_images_are_loaded_soundly_or_refused(
        which in 0..3usize, damage in prop::collection::vec((0..0x290usize, any::<u8>()), 1..6),
    ) {
        let mut image = match which {
            0 => simple_elf(b"Linux version 6", &pvh_note(0x10_0000)),
            1 => elf(0x10_0000, &[(1, body_offset(1), 0x10_0000, 4, 4)], b"code"),
            _ => bzimage(&[0; 0x400]),
        };
        for (at, value) in damage {
            let at = at % image.len();
            image[at] = value;
        }
        crate::fuzz_image(&image);
    }

    #[test]
    fn program_headers_of_any_values_are_loaded_soundly_or_refused(
        entry in any::<u64>(),
        programs in prop::collection::vec((prop::sample::select(vec![0u32, 1, 2, 4]), edge(), edge(), edge(), edge()), 0..5),
    ) {
        crate::fuzz_image(&elf(entry, &programs, &[0x90; 256]));
    }

    #[test]
    fn any_bytes_are_survived(start in 0..3usize, bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let prefix: &[u8] = [&b""[..], b"\x7fELF\x02\x01", b"\x7fELF"][start];
        crate::fuzz_image(&[prefix, &bytes].concat());
    }
}

/// Values near the limits that code forgets.
fn edge() -> impl Strategy<Value = u64> {
    let near = |value: u64| {
        (0u64..4, any::<bool>())
            .prop_map(move |(by, up)| if up { value.wrapping_add(by) } else { value.wrapping_sub(by) })
    };
    prop_oneof![
        near(0),
        near(64),
        near(0x10_0000),
        near(32 << 20),
        near(1 << 32),
        near(u64::MAX),
        any::<u64>()
    ]
}

/// The memory crate lays RAM out, this crate describes it to the guest: they must mean the same hole.
#[test]
fn ram_is_split_where_the_board_says() {
    let regions = cellblock_memory::regions(4 << 30).unwrap();
    let found: Vec<_> = regions.iter().map(|region| (region.guest_addr, region.len)).collect();
    let high = (4 << 30) - layout::LOW_RAM_END;
    assert_eq!(found, [(0, layout::LOW_RAM_END), (layout::HIGH_RAM_START, high)]);
}
