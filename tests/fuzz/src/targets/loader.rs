//! Kernel images: any bytes, and files that look like an ELF executable or a bzImage but for what the input changes.

use crate::Script;
use cellblock_loader::fuzz_image;

/// Where `arch/x86/include/uapi/asm/bootparam.h` has the fields of a bzImage that count.
const FIELDS: [usize; 12] =
    [0x1f1, 0x201, 0x206, 0x211, 0x214, 0x22c, 0x230, 0x234, 0x236, 0x238, 0x258, 0x260];

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    match script.u8() % 4 {
        0 => fuzz_image(script.rest()),
        1 => fuzz_image(&bzimage(&mut script)),
        _ => fuzz_image(&elf(&mut script)),
    }
}

/// An executable of up to three segments, the last of them perhaps notes.
fn elf(script: &mut Script<'_>) -> Vec<u8> {
    let count = script.u8() % 4;
    let odd = script.flag();
    let body = 64 + 56 * u64::from(count);
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend(0x10_0000u64.wrapping_add(script.value()).to_le_bytes());
    image.extend((if odd { script.value() } else { 64 }).to_le_bytes());
    image.extend([0; 12]);
    for half in [64u16, 56, count.into(), 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    for segment in 0..u64::from(count) {
        let kind = [1u32, 1, 4, 2][usize::from(script.u8() % 4)];
        let (offset, length) = (script.value(), script.value());
        let offset = if odd { offset } else { body + offset % 64 };
        let address = if odd { script.value() } else { 0x10_0000 + segment * 0x1000 };
        image.extend(kind.to_le_bytes());
        image.extend([5, 0, 0, 0]);
        let larger = length.wrapping_add(script.value());
        for word in [offset, address, address, length, larger, if odd { script.value() } else { 4 }] {
            image.extend(word.to_le_bytes());
        }
    }
    if script.flag() {
        // Xen's PHYS32_ENTRY, or another note.
        for word in [4, script.value() as u32, 18 + u32::from(script.flag())] {
            image.extend(word.to_le_bytes());
        }
        image.extend(b"Xen\0");
    }
    image.extend(script.rest());
    image
}

/// Two setup sectors and some code, with fields changed.
fn bzimage(script: &mut Script<'_>) -> Vec<u8> {
    let mut image = vec![0; 3 * 512 + usize::from(script.u8())];
    let mut set = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    set(0x1f1, &[2]);
    set(0x1fe, &[0x55, 0xaa]);
    set(0x201, &[0x6a]);
    set(0x202, b"HdrS");
    set(0x206, &0x020fu16.to_le_bytes());
    set(0x211, &[1]);
    set(0x214, &0x10_0000u32.to_le_bytes());
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x230, &0x20_0000u32.to_le_bytes());
    set(0x234, &[1]);
    set(0x236, &1u16.to_le_bytes());
    set(0x238, &255u32.to_le_bytes());
    set(0x258, &0x100_0000u64.to_le_bytes());
    set(0x260, &0x40_0000u32.to_le_bytes());
    for _ in 0..script.u8() % 4 {
        let (at, count) = (script.pick(&FIELDS), usize::from(script.u8() % 9));
        set(at, script.bytes(count));
    }
    image
}
