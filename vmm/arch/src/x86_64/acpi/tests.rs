use std::process::Command;

use super::*;

fn tables(cpus: u32, slots: &[u32]) -> Vec<u8> {
    build(&AcpiConfig { cpus, virtio_slots: slots.to_vec() }).unwrap().bytes
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at a guest-physical address.
fn at(blob: &[u8], address: u64) -> &[u8] {
    let start = (address - layout::ACPI) as usize;
    &blob[start..start + u32_at(blob, start + 4) as usize]
}

/// All tables as an operating system finds them, from the RSDP on.
fn walk(blob: &[u8]) -> Vec<&[u8]> {
    assert_eq!(&blob[..8], b"RSD PTR ");
    assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0), "both RSDP checksums");
    let xsdt = at(blob, u64_at(blob, 24));
    let mut found = vec![xsdt];
    found.extend((36..xsdt.len()).step_by(8).map(|entry| at(blob, u64_at(xsdt, entry))));
    let fadt = *found.iter().find(|table| &table[..4] == b"FACP").unwrap();
    found.push(at(blob, u64_at(fadt, 140)));
    found
}

fn find<'a>(blob: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    walk(blob).into_iter().find(|table| &table[..4] == signature).unwrap()
}

#[test]
fn every_table_is_reachable_and_its_checksum_right() {
    for (cpus, slots) in [(1, vec![]), (32, (0..layout::VIRTIO_SLOTS).collect::<Vec<_>>())] {
        let blob = tables(cpus, &slots);
        let signatures: Vec<_> = walk(&blob).iter().map(|table| table[..4].to_vec()).collect();
        assert_eq!(signatures, [b"XSDT", b"FACP", b"APIC", b"DSDT"]);
        for table in walk(&blob) {
            assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        }
    }
}

/// Offsets from ACPI 6.5 table 5.9, written out.
#[test]
fn fadt_describes_a_hardware_reduced_machine_with_power_off_and_reset() {
    let blob = tables(1, &[]);
    let fadt = find(&blob, b"FACP");
    let flags = u32_at(fadt, 112);
    for bit in [0, 4, 5, 10, 20] {
        assert_ne!(flags & 1 << bit, 0, "flag {bit}");
    }
    let boot_arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(boot_arch & 0b10_0111, 0b101, "ISA devices, no i8042 to look for, no VGA, and a CMOS RTC");
    let register = |port: u16| {
        let mut gas = vec![1, 8, 0, 1];
        gas.extend(u64::from(port).to_le_bytes());
        gas
    };
    assert_eq!(fadt[116..128], register(0x602));
    assert_eq!(fadt[128], 1);
    assert_eq!(fadt[244..256], register(0x600));
    assert_eq!(fadt[256..268], register(0x601));
    assert_eq!(fadt.len(), 276);
}

#[test]
fn madt_lists_each_cpu_once_and_no_8259() {
    for cpus in [1, 2, 32] {
        let blob = tables(cpus, &[]);
        let madt = find(&blob, b"APIC");
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 0));
        let (mut at, mut ids, mut io_apics) = (44, vec![], 0);
        while at < madt.len() {
            match madt[at] {
                0 => {
                    assert_eq!((madt[at + 2], u32_at(madt, at + 4)), (madt[at + 3], 1));
                    ids.push(u32::from(madt[at + 3]));
                }
                1 => {
                    assert_eq!((u32_at(madt, at + 4), u32_at(madt, at + 8)), (0xfec0_0000, 0));
                    io_apics += 1;
                }
                4 => assert_eq!(madt[at + 2..at + 6], [0xff, 0, 0, 1]),
                other => panic!("unexpected structure {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!((ids, io_apics), ((0..cpus).collect(), 1));
    }
}

#[test]
fn wrong_values_are_named() {
    let error = |cpus, slots: &[u32]| build(&AcpiConfig { cpus, virtio_slots: slots.to_vec() }).unwrap_err();
    assert_eq!(error(0, &[]), Error::Cpus { value: 0 });
    assert_eq!(error(33, &[]), Error::Cpus { value: 33 });
    assert_eq!(error(1, &[99]), Error::VirtioSlot { slot: 99, last: layout::VIRTIO_SLOTS - 1 });
    assert_eq!(error(1, &[3, 3]), Error::VirtioSlot { slot: 3, last: layout::VIRTIO_SLOTS - 1 });
    assert!(error(1, &[u32::MAX]).to_string().contains("4294967295"));
}

/// The reference implementation reads the tables back, and finds in the DSDT what the board has.
#[test]
fn iasl_disassembles_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIP: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let blob = tables(2, &[0, 1]);
    for table in walk(&blob) {
        let name = String::from_utf8_lossy(&table[..4]).to_lowercase();
        let file = dir.path().join(format!("{name}.dat"));
        std::fs::write(&file, table).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {text}");
        for word in ["Warning", "Error", "Invalid", "incorrect"] {
            assert!(!text.contains(word), "{name}: {text}");
        }
        let source = std::fs::read_to_string(file.with_extension("dsl")).unwrap();
        if name == "dsdt" {
            check_dsdt_source(&source);
            let output = Command::new("iasl").arg(file.with_extension("dsl")).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("0 Errors, 0 Warnings"), "the DSDT compiles again: {text}");
        }
    }
}

fn check_dsdt_source(source: &str) {
    let flat: String = source.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [
        "Device (COM1)",
        "EisaId (\"PNP0501\")",
        "EisaId (\"PNP0B00\")",
        "EisaId (\"PNP0C0C\")",
        "\"ACPI0013\"",
        "Device (V000)",
        "Device (V001)",
        "\"LNRO0005\"",
        "Notify (\\_SB.PWRB, 0x80)",
        "OperationRegion (EREG, SystemIO, 0x0604, One)",
        "Name (_S5, Package (0x02)",
    ] {
        assert!(flat.contains(text), "{text} is not in {source}");
    }
    for absent in ["PNP0303", "PNP0F13"] {
        assert!(!flat.contains(absent), "an i8042 ({absent}) is in {source}");
    }
    assert_eq!(flat.matches("Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive").count(), 5);
}
