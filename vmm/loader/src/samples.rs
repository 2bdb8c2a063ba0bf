//! Small images for tests, built field by field.

/// One ELF note with 4-byte alignment.
pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for half in [name.len() as u32, desc.len() as u32, kind] {
        bytes.extend(half.to_le_bytes());
    }
    for part in [name, desc] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A program header: (type, file offset, physical address, bytes in file, bytes in memory).
pub(crate) type Program = (u32, u64, u64, u64, u64);

/// An ELF image with these program headers, and `body` right after them at [`body_offset`].
pub(crate) fn elf(entry: u64, programs: &[Program], body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64u16, 56, programs.len() as u16, 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (kind, offset, address, file_bytes, memory_bytes) in programs {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(5u32.to_le_bytes());
        for word in [*offset, *address, *address, *file_bytes, *memory_bytes, 4] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend(body);
    bytes
}

/// Where the body begins.
pub(crate) fn body_offset(programs: usize) -> u64 {
    64 + 56 * programs as u64
}

/// A kernel of one segment at 1 MiB with `code`, and `notes` if any.
pub(crate) fn simple_elf(code: &[u8], notes: &[u8]) -> Vec<u8> {
    let at = body_offset(2);
    let (code_bytes, note_bytes) = (code.len() as u64, notes.len() as u64);
    let programs =
        [(1, at, 0x10_0000, code_bytes, code_bytes + 0x100), (4, at + code_bytes, 0, note_bytes, note_bytes)];
    elf(0x10_0000, &programs, &[code, notes].concat())
}

/// A bzImage of two setup sectors and `code`.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 3 * 512];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
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
    bytes.extend(code);
    bytes
}
