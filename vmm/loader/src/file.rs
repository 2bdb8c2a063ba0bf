//! Reading image files: small headers into arrays, big parts straight into guest memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use cellblock_memory::{UNIT, back_with_huge_pages};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile,
};

use crate::error::LoadError;

/// Bytes copied at a time.
const COPY_CHUNK: usize = 256 * 1024;

/// What an image can be read from: a `File`, or a `Cursor` over bytes.
pub trait ImageFile: Read + Seek + ReadVolatile {}

impl<F: Read + Seek + ReadVolatile> ImageFile for F {}

/// An open image with the name that errors use and its length when it was opened.
pub(crate) struct Image<'a, F> {
    name: &'static str,
    file: &'a mut F,
    bytes: u64,
}

impl<'a, F: ImageFile> Image<'a, F> {
    /// Measures the file.
    pub(crate) fn open(name: &'static str, file: &'a mut F) -> Result<Self, LoadError> {
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| LoadError::Io {
            image: name,
            action: "finding its length",
            source,
        })?;
        Ok(Self { name, file, bytes })
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from `offset`, or as much of it as the file has; says how much.
    pub(crate) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, LoadError> {
        let image = self.name;
        let error = |action| move |source| LoadError::Io { image, action, source };
        self.file.seek(SeekFrom::Start(offset)).map_err(error("seeking"))?;
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(error("reading")(source)),
            }
        }
        Ok(filled)
    }

    /// Copies `bytes` from `offset` to a guest-physical address: big parts straight into the mapping, put on huge pages before; else
    /// by writing to the file behind guest memory, which takes no page fault for each page but another copy.
    pub(crate) fn copy_to(
        &mut self,
        ram: &GuestMemoryMmap,
        address: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<(), LoadError> {
        let image = self.name;
        let error = |reason: String| LoadError::Copy { image, offset, bytes, reason };
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| error(e.to_string()))?;
        let count = usize::try_from(bytes).map_err(|e| error(e.to_string()))?;
        let huge = bytes >= UNIT && back_with_huge_pages(ram, address, address.saturating_add(bytes));
        if let Some((memory, start)) = backing(ram, address, bytes).filter(|_| !huge) {
            return self.copy_to_file(memory, start, count).map_err(|e| error(e.to_string()));
        }
        ram.read_exact_volatile_from(GuestAddress(address), self.file, count)
            .map_err(|e| error(e.to_string()))
    }

    /// Copies the next `count` bytes to `start` of `memory`.
    fn copy_to_file(&mut self, memory: &File, mut start: u64, count: usize) -> std::io::Result<()> {
        let mut chunk = vec![0; count.min(COPY_CHUNK)];
        let mut left = count;
        while left > 0 {
            let part = chunk.get_mut(..left.min(COPY_CHUNK)).unwrap_or_default();
            self.file.read_exact(part)?;
            memory.write_all_at(part, start)?;
            start += part.len() as u64;
            left -= part.len();
        }
        Ok(())
    }
}

/// The file behind guest memory and the place of `address` in it, if one region holds all `bytes` and its file can be written.
fn backing(ram: &GuestMemoryMmap, address: u64, bytes: u64) -> Option<(&File, u64)> {
    let region = ram.find_region(GuestAddress(address))?;
    let within = address.checked_sub(region.start_addr().raw_value())?;
    let fits = within.checked_add(bytes)? <= region.len();
    let file = region.file_offset().filter(|_| fits && region.is_hugetlbfs() != Some(true))?;
    Some((file.file(), file.start().checked_add(within)?))
}
