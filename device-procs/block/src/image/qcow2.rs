//! A disk in a qcow2 image and the images that it is backed by, read and written by `imago`.
//!
//! - An image is only ever opened from a descriptor. The names in its header, of a backing file or of a data file, are never
//!   followed: whoever made the image may have written there what they like. A backing file is a descriptor that was granted;
//!   of it the image only says in which format it is.
//! - What a completed request changed of the image's own tables is in the host's page cache, too: a worker that is killed
//!   loses nothing, and leaves at worst clusters that nobody uses (`qemu-img check` calls them leaks).
//! - Reads and writes of several queues go on beside each other; a discard waits for them and they for it, because it gives
//!   away clusters that they may have looked up.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageExt};
use thiserror::Error;

use super::Image;

/// Why an image cannot be used. `layer` is 0 for the image and N for its Nth backing file.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Broken, or with features that are not known.
    #[error("layer {layer} of the disk image cannot be read as {format}: {source}")]
    Layer {
        /// Which.
        layer: usize,
        /// `qcow2` or `raw`.
        format: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Its data are in another file.
    #[error("layer {layer} of the disk image keeps its data in another file, which is not supported")]
    DataFile {
        /// Which.
        layer: usize,
    },
    /// Its data are encrypted, which imago does not look at.
    #[error("layer {layer} of the disk image is encrypted, which is not supported")]
    Encrypted {
        /// Which.
        layer: usize,
    },
    /// A backing file was not granted.
    #[error(
        "layer {layer} of the disk image is backed by {name:?}; names in images are never followed, so it must be given \
         (backing=PATH)"
    )]
    NotGranted {
        /// Which.
        layer: usize,
        /// As its header says.
        name: String,
    },
    /// A backing file too many.
    #[error("{count} backing files are given, but layer {layer} of the disk image is not backed by another")]
    NotBacked {
        /// Which.
        layer: usize,
        /// Given.
        count: usize,
    },
    /// It does not say in which format its backing file is, or in one that is not known.
    #[error(
        "layer {layer} of the disk image says that its backing file is in the format {format:?}; it must be raw or qcow2 \
         (qemu-img rebase -u -F)"
    )]
    Format {
        /// Which.
        layer: usize,
        /// As its header says; nothing if it does not.
        format: String,
    },
    /// Not as large as was said.
    #[error("the disk image has {found} bytes, announced were {announced}")]
    Capacity {
        /// As its header says.
        found: u64,
        /// As the configuration says.
        announced: u64,
    },
}

/// An open qcow2 image; clones share it.
#[derive(Debug, Clone)]
pub struct Qcow2Image(Arc<RwLock<FormatAccess<File>>>);

impl Qcow2Image {
    /// Opens `image`, which is backed by the first of `backing`, and so on. It holds a disk of `bytes` bytes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        image: OwnedFd,
        backing: Vec<OwnedFd>,
        writable: bool,
        bytes: u64,
    ) -> Result<Self, OpenError> {
        let mut rest = backing.into_iter();
        let access = open_layer(0, image, &mut rest, writable)?;
        if access.size() != bytes {
            return Err(OpenError::Capacity { found: access.size(), announced: bytes });
        }
        Ok(Qcow2Image(Arc::new(RwLock::new(access))))
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        // Nothing panics while it holds the lock, or the process ends.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// imago 0.2.6 counts below zero when it zeroes a part of such a disk.
    fn is_less_than_a_cluster(&self) -> bool {
        let image = self.shared();
        image.inner().zero_granularity().is_some_and(|cluster| cluster > image.size())
    }

    /// Nobody else reads or writes.
    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<File>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens layer number `layer` and all below it, which are in `backing`.
fn open_layer(
    layer: usize,
    file: OwnedFd,
    backing: &mut impl ExactSizeIterator<Item = OwnedFd>,
    writable: bool,
) -> Result<FormatAccess<File>, OpenError> {
    let failed = |format| move |source| OpenError::Layer { layer, format, source };
    let file = File::try_from(fs::File::from(file)).map_err(failed("qcow2"))?;
    // docs/interop/qcow2.txt: crypt_method.
    let mut encryption = [0; 4];
    file.read(&mut encryption[..], 32).map_err(failed("qcow2"))?;
    check_feature_names(&file).map_err(failed("qcow2"))?;
    if writable {
        check_header_counted(&file).map_err(failed("qcow2"))?;
    }
    let mut image: Qcow2<File> = Qcow2::open_image(file, writable).map_err(failed("qcow2"))?;
    if encryption != [0; 4] {
        return Err(OpenError::Encrypted { layer });
    }
    if image.requires_external_data_file() {
        return Err(OpenError::DataFile { layer });
    }
    image.set_data_file(None);
    let below = match (image.implicit_backing_file(), backing.next()) {
        (None, None) => None,
        (None, Some(_)) => return Err(OpenError::NotBacked { layer, count: layer + 1 + backing.len() }),
        (Some(name), None) => return Err(OpenError::NotGranted { layer, name: name.clone() }),
        (Some(_), Some(fd)) => {
            let format = image.implicit_backing_format().map_or("", String::as_str);
            match format {
                "qcow2" => Some(open_layer(layer + 1, fd, backing, false)?),
                "raw" => Some(open_raw(layer + 1, fd, backing)?),
                other => return Err(OpenError::Format { layer, format: other.to_owned() }),
            }
        }
    };
    image.set_backing(below);
    Ok(FormatAccess::new(image))
}

/// Refuses a table of feature names that does not end with an entry: imago 0.2.6 panics at an entry of one byte.
///
/// Offsets are those of docs/interop/qcow2.txt. Whatever else is wrong with the header is for imago to say.
fn check_feature_names(file: &File) -> io::Result<()> {
    const NAMES: u32 = 0x6803_f857;
    const ENTRY: u32 = 48;
    let word = |offset| {
        let mut bytes = [0; 4];
        file.read(&mut bytes[..], offset).map(|()| u32::from_be_bytes(bytes))
    };
    let (version, cluster_bits) = (word(4)?, word(20)?);
    if version != 3 || cluster_bits > 21 {
        return Ok(());
    }
    let mut offset = u64::from(word(100)?);
    while offset + 8 <= 1 << cluster_bits {
        let (kind, length) = (word(offset)?, word(offset + 4)?);
        match kind {
            0 => break,
            NAMES if length % ENTRY != 0 => {
                let error = format!("its table of feature names has {length} bytes, not {ENTRY} for each");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            _ => offset += 8 + u64::from(length).next_multiple_of(8),
        }
    }
    Ok(())
}

/// Refuses an image whose reference counts say that nobody uses its first cluster, which is the header's. Who allocates by them
/// writes over the header; and where no block of counts covers that cluster, imago 0.2.6 puts a new block there, takes its
/// offset of 0 for none, and recurses to make another until its stack is full.
///
/// Offsets are those of docs/interop/qcow2.txt. Whatever else is wrong with the header is for imago to say.
fn check_header_counted(file: &File) -> io::Result<()> {
    const OFFSET: u64 = !0x1ff;
    // What is past the file's end is zero.
    let number = |offset, bytes: usize| {
        let mut number = [0; 8];
        let start = 8 - bytes.min(8);
        file.read(&mut number[start..], offset).map(|()| u64::from_be_bytes(number))
    };
    let version = number(4, 4)?;
    let order = if version == 2 { 4 } else { number(96, 4)? };
    if !matches!(version, 2 | 3) || order > 6 {
        return Ok(());
    }
    // Of the table, how many clusters it has is told apart from where it lies.
    let block = if number(56, 4)? == 0 { 0 } else { number(number(48, 8)?, 8)? & OFFSET };
    let bits = 1u64 << order;
    let count = match block {
        0 => 0,
        // Counts of less than a byte begin with its lowest bits.
        _ if bits < 8 => number(block, 1)? & ((1 << bits) - 1),
        _ => number(block, bits as usize / 8)?,
    };
    if count == 0 {
        let error = "its reference counts say that its header is nobody's, so it cannot be written to";
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(())
}

/// Opens a raw layer, which is the last.
fn open_raw(
    layer: usize,
    file: OwnedFd,
    backing: &impl ExactSizeIterator<Item = OwnedFd>,
) -> Result<FormatAccess<File>, OpenError> {
    if backing.len() > 0 {
        return Err(OpenError::NotBacked { layer, count: layer + backing.len() });
    }
    let failed = |source| OpenError::Layer { layer, format: "raw", source };
    let file = File::try_from(fs::File::from(file)).map_err(failed)?;
    Ok(FormatAccess::new(Raw::open_image(file, false).map_err(failed)?))
}

/// `Ok(false)` where a version 2 image cannot do it.
fn supported(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

impl Image for Qcow2Image {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.shared().read(into, offset)
    }

    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()> {
        let image = self.shared();
        image.write(from, offset)?;
        // The tables; into the page cache.
        image.flush()?;
        if stable { image.sync() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.shared();
        image.flush()?;
        image.sync()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut image = self.alone();
        supported(image.discard_to_any(offset, length))?;
        image.flush()
    }

    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool> {
        if self.is_less_than_a_cluster() {
            return Ok(false);
        }
        if unmap {
            let mut image = self.alone();
            let done = supported(image.discard_to_zero(offset, length))?;
            image.flush().map(|()| done)
        } else {
            let image = self.shared();
            let done = supported(image.write_zeroes(offset, length))?;
            image.flush().map(|()| done)
        }
    }
}
