//! The structures that a guest reads at its boot, ACPI's tables among them: for any board each table has its length and its checksum,
//! and no two structures overlap.

use cellblock_arch::{AcpiConfig, BootPlan, BootProtocol, Initrd, RamRange, boot_pieces};
use crate::Script;

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let how = script.u8();
    let acpi = AcpiConfig {
        cpus: script.value() as u32,
        virtio_slots: (0..script.u8() % 40).map(|_| script.value() as u32).collect(),
    };
    let mut ram = vec![RamRange { address: 0, bytes: 64 << 20 }];
    if how & 2 != 0 {
        ram = (0..script.u8() % 4)
            .map(|_| RamRange { address: script.value(), bytes: script.value() })
            .collect();
    }
    let initrd = (how & 4 != 0).then(|| Initrd { address: script.value(), bytes: script.value() });
    let header = script.bytes(usize::from(script.clone().u8()));
    let cmdline = script.text();
    let plan = BootPlan {
        protocol: if how & 1 == 0 { BootProtocol::Pvh } else { BootProtocol::Linux64 },
        ram: &ram,
        cmdline: &cmdline,
        initrd,
        setup_header: (how & 8 != 0).then_some(header),
        rng_seed: [7; 32],
        acpi: &acpi,
    };
    let Ok(pieces) = boot_pieces(&plan) else { return };
    let mut ranges: Vec<_> =
        pieces.iter().map(|piece| (piece.address, piece.address + piece.bytes.len() as u64)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?} overlap");
    let tables = pieces.iter().find(|piece| piece.bytes.starts_with(b"RSD PTR ")).expect("there is an RSDP");
    check(tables.address, &tables.bytes);
}

/// All tables, from the RSDP on.
fn check(base: u64, blob: &[u8]) {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let word = |at: usize| u64::from_le_bytes(blob[at..at + 8].try_into().unwrap());
    let table = |address: u64| {
        let at = usize::try_from(address - base).unwrap();
        let length = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap()) as usize;
        assert_eq!(sum(&blob[at..at + length]), 0, "the table at {address:#x}");
        (at, length)
    };
    assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0), "the RSDP");
    let (xsdt, length) = table(word(24));
    for entry in (xsdt + 36..xsdt + length).step_by(8) {
        let (at, _) = table(word(entry));
        if blob[at..].starts_with(b"FACP") {
            assert!(blob[table(word(at + 140)).0..].starts_with(b"DSDT"));
        }
    }
}
