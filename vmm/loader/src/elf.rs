//! ELF kernels (System V ABI, "Object Files" and "Program Loading"; x86-64 psABI).

use cellblock_arch::layout;
use vm_memory::GuestMemoryMmap;

use crate::MAX_HEADERS_BYTES;
use crate::error::{LoadError, kernel_field};
use crate::file::{Image, ImageFile};
use crate::linux_mark;
use crate::loaded::Range;
use crate::notes::Notes;

/// The first bytes of any ELF file.
pub(crate) const MAGIC: &[u8; 4] = b"\x7fELF";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Kernels have fewer than ten program headers.
const MAX_PROGRAM_HEADERS: u16 = 64;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// `e_entry`: the 64-bit entry.
    pub(crate) entry: u64,
    /// What its notes say.
    pub(crate) notes: Notes,
    /// From the lowest to the highest address of its segments.
    pub(crate) range: Range,
    /// It carries the marks of Linux.
    pub(crate) linux: bool,
}

/// A PT_LOAD segment whose ranges in file and memory are checked.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    /// Cannot overflow: checked when made.
    fn end(&self) -> u64 {
        self.address + self.memory_bytes
    }
}

/// Checks all headers, then copies the segments to their physical addresses. Memory must be zero before: the parts of
/// segments that the file does not have are left as they are.
pub(crate) fn load<F: ImageFile>(
    image: &mut Image<'_, F>,
    ram: &GuestMemoryMmap,
    low_ram_end: u64,
) -> Result<Kernel, LoadError> {
    let header = FileHeader::read(image)?;
    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for index in 0..u64::from(header.count) {
        let program = ProgramHeader::read(image, header.table + index * PROGRAM_HEADER_BYTES as u64)?;
        match program.kind {
            SEGMENT_LOAD if program.memory_bytes > 0 => {
                segments.push(program.segment(image.bytes(), low_ram_end)?)
            }
            SEGMENT_NOTE => read_notes(image, &program, &mut notes)?,
            _ => {}
        }
    }
    let range = whole_range(&mut segments)?;
    for segment in &segments {
        image.copy_to(ram, segment.address, segment.offset, segment.file_bytes)?;
    }
    let linux = notes.linux || segments.iter().any(|s| linux_mark::found(ram, s.address, s.file_bytes));
    Ok(Kernel { entry: header.entry, notes, range, linux })
}

/// The fields of the file header that matter.
struct FileHeader {
    entry: u64,
    table: u64,
    count: u16,
}

impl FileHeader {
    fn read<F: ImageFile>(image: &mut Image<'_, F>) -> Result<Self, LoadError> {
        let mut raw = [0; HEADER_BYTES];
        let bytes = image.read_at(0, &mut raw)?;
        if bytes < HEADER_BYTES {
            return Err(kernel_field("file length", bytes as u64, "an ELF header alone is 0x40 bytes"));
        }
        let fields = Fields(&raw);
        Self::check_kind(&fields)?;
        let header = Self { entry: fields.u64(24), table: fields.u64(32), count: fields.u16(56) };
        header.check_table(image.bytes())?;
        Ok(header)
    }

    fn check_kind(fields: &Fields<'_>) -> Result<(), LoadError> {
        let must = |name, value: u16, allowed: &[u16], text: &str| {
            if allowed.contains(&value) { Ok(()) } else { Err(kernel_field(name, u64::from(value), text)) }
        };
        must(
            "ELF class",
            u16::from(fields.0[4]),
            &[u16::from(CLASS_64)],
            "only 64-bit ELF (2) is supported",
        )?;
        must(
            "ELF data encoding",
            u16::from(fields.0[5]),
            &[u16::from(LITTLE_ENDIAN)],
            "only little-endian (1) is supported",
        )?;
        must("e_type", fields.u16(16), &[TYPE_EXECUTABLE, TYPE_SHARED], "it must be an executable (2 or 3)")?;
        must("e_machine", fields.u16(18), &[MACHINE_X86_64], "only x86-64 (0x3e) is supported")?;
        must("e_phentsize", fields.u16(54), &[PROGRAM_HEADER_BYTES as u16], "program headers have 0x38 bytes")
    }

    fn check_table(&self, file_bytes: u64) -> Result<(), LoadError> {
        if self.count == 0 || self.count > MAX_PROGRAM_HEADERS {
            let allowed = format!("1 to {MAX_PROGRAM_HEADERS:#x} program headers are allowed");
            return Err(kernel_field("e_phnum", u64::from(self.count), allowed));
        }
        let table_bytes = u64::from(self.count) * PROGRAM_HEADER_BYTES as u64;
        match self.table.checked_add(table_bytes) {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(kernel_field("e_phoff", self.table, beyond_file(file_bytes))),
        }
    }
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

impl ProgramHeader {
    fn read<F: ImageFile>(image: &mut Image<'_, F>, offset: u64) -> Result<Self, LoadError> {
        let mut raw = [0; PROGRAM_HEADER_BYTES];
        if image.read_at(offset, &mut raw)? < raw.len() {
            return Err(kernel_field("program header offset", offset, beyond_file(image.bytes())));
        }
        let fields = Fields(&raw);
        Ok(Self {
            kind: fields.u32(0),
            offset: fields.u64(8),
            address: fields.u64(24),
            file_bytes: fields.u64(32),
            memory_bytes: fields.u64(40),
            align: fields.u64(48),
        })
    }

    fn check_file_range(&self, file_bytes: u64) -> Result<(), LoadError> {
        match self.offset.checked_add(self.file_bytes) {
            Some(end) if end <= file_bytes => Ok(()),
            Some(_) => Err(kernel_field("p_filesz", self.file_bytes, beyond_file(file_bytes))),
            None => Err(kernel_field("p_offset", self.offset, beyond_file(file_bytes))),
        }
    }

    fn segment(&self, file_bytes: u64, low_ram_end: u64) -> Result<Segment, LoadError> {
        self.check_file_range(file_bytes)?;
        if self.file_bytes > self.memory_bytes {
            let allowed = format!("it must not exceed p_memsz, which is {:#x}", self.memory_bytes);
            return Err(kernel_field("p_filesz", self.file_bytes, allowed));
        }
        if self.address < layout::KERNEL_FLOOR {
            let allowed = format!("segments must lie at or above {:#x}", layout::KERNEL_FLOOR);
            return Err(kernel_field("p_paddr", self.address, allowed));
        }
        if self.address.checked_add(self.memory_bytes).is_none_or(|end| end > low_ram_end) {
            return Err(LoadError::NoRoom {
                image: "kernel",
                needed: self.memory_bytes,
                from: self.address,
                to: low_ram_end,
            });
        }
        let Self { offset, address, file_bytes, memory_bytes, .. } = *self;
        Ok(Segment { offset, address, file_bytes, memory_bytes })
    }
}

/// Sorts the segments, sees that they are apart, and says what they span.
fn whole_range(segments: &mut [Segment]) -> Result<Range, LoadError> {
    segments.sort_unstable_by_key(|segment| segment.address);
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].address {
            return Err(LoadError::Overlap { first: pair[0].address, second: pair[1].address });
        }
    }
    match (segments.first(), segments.last()) {
        (Some(first), Some(last)) => Ok(Range { start: first.address, end: last.end() }),
        _ => Err(kernel_field("number of PT_LOAD segments", 0, "there must be one at least")),
    }
}

fn read_notes<F: ImageFile>(
    image: &mut Image<'_, F>,
    program: &ProgramHeader,
    notes: &mut Notes,
) -> Result<(), LoadError> {
    program.check_file_range(image.bytes())?;
    let bytes = usize::try_from(program.file_bytes).unwrap_or(usize::MAX).min(MAX_HEADERS_BYTES);
    let mut buffer = vec![0; bytes];
    let read = image.read_at(program.offset, &mut buffer)?;
    notes.read(&buffer[..read], program.align);
    Ok(())
}

fn beyond_file(file_bytes: u64) -> String {
    format!("the file ends at {file_bytes:#x}")
}

/// Little-endian fields at offsets that the caller knows to lie inside.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}
