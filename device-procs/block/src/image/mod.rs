//! What a disk's bytes are kept in: a [`raw`] file or block device, or a [`qcow2`] image with its backing files.

use std::io;
use std::os::fd::BorrowedFd;

use cellblock_sdk::worker::{Parts, Refusal};
use cellblock_wire::device::{BlockConfig, Format, SECTOR};

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

    /// The file in which all bytes lie as the disk has them, if there is one: the kernel then moves them between there and
    /// the guest's buffers.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The images that a worker is granted.
#[derive(Debug, Clone)]
pub enum Stored {
    /// See [`raw`].
    Raw(RawImage),
    /// See [`qcow2`].
    Qcow2(Qcow2Image),
}

impl Stored {
    /// The image of the disk that `config` describes, as it was granted.
    ///
    /// # Errors
    /// A descriptor is missing, or the image is not as it was announced.
    pub fn granted(parts: &mut Parts, config: &BlockConfig) -> Result<Self, Refusal> {
        let image = parts.image(!config.read_only)?;
        let backing = parts.backing(config.backing)?;
        match config.format {
            Format::Raw if backing.is_empty() => Ok(Stored::Raw(RawImage::new(image))),
            Format::Raw => Err(Refusal::Device("a raw image has no backing files".into())),
            Format::Qcow2 => {
                let bytes = config.sectors.saturating_mul(SECTOR);
                let opened = Qcow2Image::open(image, backing, !config.read_only, bytes);
                opened.map(Stored::Qcow2).map_err(|error| Refusal::Device(error.to_string()))
            }
        }
    }
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

    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Stored::Raw(image) => image.file(),
            Stored::Qcow2(image) => image.file(),
        }
    }
}
