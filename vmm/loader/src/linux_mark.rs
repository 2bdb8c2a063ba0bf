//! Is this ELF image a Linux kernel? Its notes say so for all of the last years; older ones have the banner at least.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The start of `linux_banner` (Linux `init/version.c`).
const BANNER: &[u8] = b"Linux version ";
/// How far a segment is searched. Linux has the banner in the first half of its read-only data.
const MOST: u64 = 64 << 20;
const CHUNK: usize = 64 * 1024;

/// Whether the banner is in the first [`MOST`] bytes of these.
pub(crate) fn found(ram: &GuestMemoryMmap, address: u64, bytes: u64) -> bool {
    let mut buffer = vec![0; CHUNK];
    let end = bytes.min(MOST);
    let step = (CHUNK - BANNER.len()) as u64;
    let mut at = 0;
    while at < end {
        let part = (end - at).min(CHUNK as u64) as usize;
        if ram.read_slice(&mut buffer[..part], GuestAddress(address + at)).is_err() {
            return false;
        }
        if contains_banner(&buffer[..part]) {
            return true;
        }
        at += step;
    }
    false
}

fn contains_banner(bytes: &[u8]) -> bool {
    bytes.windows(BANNER.len()).any(|window| window == BANNER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_found_wherever_it_lies_even_across_chunks() {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        assert!(!found(&ram, 0x1000, 0x4_0000));
        for at in [0, 1, CHUNK - 20, CHUNK - 14, CHUNK - 13, CHUNK - 1, CHUNK, 2 * CHUNK - 30] {
            let address = GuestAddress(0x1000 + at as u64);
            ram.write_slice(BANNER, address).unwrap();
            assert!(found(&ram, 0x1000, 0x4_0000), "at {at}");
            ram.write_slice(&[0; 14], address).unwrap();
        }
        ram.write_slice(BANNER, GuestAddress(0x1000 + 100)).unwrap();
        assert!(!found(&ram, 0x1000, 113), "cut off");
        assert!(found(&ram, 0x1000, 114));
    }
}
