//! Reading image files: small headers into arrays, big parts straight into guest memory.

use std::io::{Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use crate::error::LoadError;

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

    /// Copies `bytes` from `offset` to a guest-physical address, without a buffer in between.
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
        ram.read_exact_volatile_from(GuestAddress(address), self.file, count)
            .map_err(|e| error(e.to_string()))
    }
}
