//! What a disk's bytes are kept in: a [`raw`] file or block device, or a [`qcow2`] image with its backing files.

use std::io;

pub mod qcow2;
pub mod raw;

pub use qcow2::Qcow2Image;
pub use raw::RawImage;

/// A disk's bytes. Offsets and lengths lie within the disk, and several queues use it at a time.
pub trait Image {
    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`; with `stable` it is on stable storage on return.
    ///
    /// # Errors
    /// The host's.
    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()>;

    /// Brings to stable storage what was written before.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// Deallocates a range, which then reads as zeroes or as before. A host that cannot leaves it as it is.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeroes, deallocated if `unmap`. `Ok(false)` = this host cannot but by writing them.
    ///
    /// # Errors
    /// The host's.
    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool>;
}

/// The images that a worker is granted.
#[derive(Debug, Clone)]
pub enum Stored {
    /// See [`raw`].
    Raw(RawImage),
    /// See [`qcow2`].
    Qcow2(Qcow2Image),
}

impl Image for Stored {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Stored::Raw(image) => image.read(offset, into),
            Stored::Qcow2(image) => image.read(offset, into),
        }
    }

    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()> {
        match self {
            Stored::Raw(image) => image.write(offset, from, stable),
            Stored::Qcow2(image) => image.write(offset, from, stable),
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Stored::Raw(image) => image.flush(),
            Stored::Qcow2(image) => image.flush(),
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self {
            Stored::Raw(image) => image.discard(offset, length),
            Stored::Qcow2(image) => image.discard(offset, length),
        }
    }

    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool> {
        match self {
            Stored::Raw(image) => image.zero(offset, length, unmap),
            Stored::Qcow2(image) => image.zero(offset, length, unmap),
        }
    }
}
