//! ELF notes: the PVH entry, and what marks a kernel as Linux (System V ABI, "Note Section"; Xen `public/elfnote.h`).

const XEN: &[u8] = b"Xen\0";
const LINUX: &[u8] = b"Linux\0";
/// Type of Xen's note with the PVH entry.
const XEN_PHYS32_ENTRY: u32 = 18;
/// Type of Xen's note with the name of the guest's operating system.
const XEN_GUEST_OS: u32 = 6;
/// Name size, descriptor size, type.
const HEADER: usize = 12;

/// What the notes of an image say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Physical address of the PVH entry.
    pub(crate) pvh_entry: Option<u64>,
    /// A note that only Linux has: one of its own, or Xen's with "linux" as the guest's system.
    pub(crate) linux: bool,
}

impl Notes {
    /// Adds what the notes in `segment` say; `align` is the segment's alignment. Stops at the first note that is cut off.
    pub(crate) fn read(&mut self, segment: &[u8], align: u64) {
        let align = if align == 8 { 8 } else { 4 };
        let mut rest = segment;
        while let Some((note, tail)) = split_note(rest, align) {
            self.take(&note);
            rest = tail;
        }
    }

    fn take(&mut self, note: &Note<'_>) {
        match (note.name, note.kind) {
            (LINUX, _) => self.linux = true,
            (XEN, XEN_GUEST_OS) => self.linux |= note.desc.starts_with(b"linux"),
            (XEN, XEN_PHYS32_ENTRY) => self.pvh_entry = self.pvh_entry.or(address(note.desc)),
            _ => {}
        }
    }
}

struct Note<'a> {
    name: &'a [u8],
    desc: &'a [u8],
    kind: u32,
}

/// The first note and what follows it.
fn split_note(bytes: &[u8], align: usize) -> Option<(Note<'_>, &[u8])> {
    let half = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..at + 4)?.first_chunk()?));
    let name_size = usize::try_from(half(0)?).ok()?;
    let desc_size = usize::try_from(half(4)?).ok()?;
    let kind = half(8)?;
    let name_end = HEADER.checked_add(name_size)?;
    let desc_start = name_end.checked_next_multiple_of(align)?;
    let desc_end = desc_start.checked_add(desc_size)?;
    let note = Note { name: bytes.get(HEADER..name_end)?, desc: bytes.get(desc_start..desc_end)?, kind };
    let next = desc_end.checked_next_multiple_of(align)?.min(bytes.len());
    Some((note, bytes.get(next..)?))
}

/// An address of four or eight bytes.
fn address(desc: &[u8]) -> Option<u64> {
    match desc.len() {
        4 => Some(u64::from(u32::from_le_bytes(desc.try_into().ok()?))),
        8 => Some(u64::from_le_bytes(desc.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::note;

    fn read(segment: &[u8]) -> Notes {
        let mut notes = Notes::default();
        notes.read(segment, 4);
        notes
    }

    #[test]
    fn a_pvh_note_alone_does_not_make_a_linux() {
        let notes = read(&note(b"Xen\0", 18, &0x10_0040u32.to_le_bytes()));
        assert_eq!(notes, Notes { pvh_entry: Some(0x10_0040), linux: false });
    }

    #[test]
    fn linux_is_known_by_its_own_note_or_by_xens() {
        assert!(read(&note(b"Linux\0", 0x100, &[])).linux);
        assert!(read(&note(b"Xen\0", 6, b"linux\0")).linux);
        assert!(!read(&note(b"Xen\0", 6, b"NetBSD\0")).linux);
        assert!(!read(&note(b"GNU\0", 3, b"linux\0")).linux);
    }

    #[test]
    fn notes_after_others_are_found_and_the_first_entry_counts() {
        let mut segment = note(b"GNU\0", 3, &[1, 2, 3, 4, 5]);
        segment.extend(note(b"Xen\0", 18, &0x123_4567u64.to_le_bytes()));
        segment.extend(note(b"Xen\0", 18, &1u64.to_le_bytes()));
        segment.extend(note(b"Linux\0", 0x101, &[0; 4]));
        assert_eq!(read(&segment), Notes { pvh_entry: Some(0x123_4567), linux: true });
    }

    #[test]
    fn an_entry_of_odd_size_is_none() {
        assert_eq!(read(&note(b"Xen\0", 18, &[1, 2, 3])).pvh_entry, None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..600), align in any::<u64>()) {
            let mut notes = Notes::default();
            notes.read(&bytes, align);
        }
    }
}
