//! Debian's own kernel through the loader, in both of its formats. That it boots is shown in the emulated host (`tests/e2e`).

#![allow(clippy::unwrap_used, reason = "a helper outside #[test] functions is still a test")]

use std::fs::File;
use std::path::{Path, PathBuf};

use cellblock_arch::{AcpiConfig, BootProtocol, DEFAULT_CMDLINE, layout};
use cellblock_loader::{ImageKind, LoadError, LoadRequest, Loaded, Protocol, load};
use cellblock_memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;

/// A file that `scripts/images` makes.
fn image(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/images/x86_64").join(name);
    if !path.exists() {
        eprintln!("SKIP: {} is not there; run scripts/images x86_64", path.display());
        return None;
    }
    Some(path)
}

fn load_debian(
    name: &str,
    protocol: Protocol,
    memory: u64,
) -> Option<Result<(Loaded, GuestMemoryMmap), LoadError>> {
    let (kernel, initrd) = (image(name)?, image("initrd.cpio")?);
    let ram = GuestRam::create(memory, false).unwrap().map().unwrap();
    let request = LoadRequest {
        kernel: &mut File::open(kernel).unwrap(),
        initrd: Some(&mut File::open(initrd).unwrap()),
        cmdline: DEFAULT_CMDLINE,
        protocol,
        rng_seed: [0; 32],
        acpi: AcpiConfig { cpus: 2, virtio_slots: vec![] },
    };
    Some(load(&ram, request).map(|loaded| (loaded, ram)))
}

#[test]
fn vmlinux_is_linux_and_has_both_entries() {
    let Some(pvh) = load_debian("vmlinux", Protocol::Auto, 256 * MIB) else { return };
    let (loaded, ram) = pvh.unwrap();
    assert_eq!((loaded.kind, loaded.linux, loaded.entry.protocol), (ImageKind::Elf, true, BootProtocol::Pvh));
    loaded.check(256 * MIB).unwrap();
    // pvh_start_xen begins with `cld`.
    let mut first = [0];
    ram.read_slice(&mut first, GuestAddress(loaded.entry.entry)).unwrap();
    assert_eq!(first, [0xfc]);
    let (loaded, _) = load_debian("vmlinux", Protocol::Linux64, 256 * MIB).unwrap().unwrap();
    assert_eq!((loaded.entry.protocol, loaded.entry.entry), (BootProtocol::Linux64, 0x100_0000));
}

#[test]
fn a_bzimage_is_linux_and_entered_in_long_mode() {
    let Some(result) = load_debian("bzImage", Protocol::Auto, 256 * MIB) else { return };
    let (loaded, ram) = result.unwrap();
    assert_eq!((loaded.kind, loaded.linux), (ImageKind::BzImage, true));
    assert_eq!((loaded.entry.protocol, loaded.entry.entry), (BootProtocol::Linux64, 0x100_0200));
    loaded.check(256 * MIB).unwrap();
    let mut header = [0; 4];
    ram.read_slice(&mut header, GuestAddress(layout::ZERO_PAGE + 0x202)).unwrap();
    assert_eq!(&header, b"HdrS");
}

#[test]
fn the_initrd_stays_within_every_kernels_reach_when_memory_is_large() {
    let Some(result) = load_debian("bzImage", Protocol::Auto, 4096 * MIB) else { return };
    let initrd = result.unwrap().0.initrd.unwrap();
    assert!(initrd.end <= layout::INITRD_CEILING && initrd.end > layout::INITRD_CEILING - 0x1000);
}

#[test]
fn a_kernel_that_does_not_fit_says_so() {
    for (name, memory) in [("vmlinux", 32 * MIB), ("bzImage", 32 * MIB)] {
        let Some(result) = load_debian(name, Protocol::Auto, memory) else { return };
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with("memory is too small: the kernel needs"), "{text}");
    }
}
