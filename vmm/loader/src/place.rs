//! Where the initrd goes.

use cellblock_arch::{Initrd, layout};
use vm_memory::GuestMemoryMmap;

use crate::error::LoadError;
use crate::file::{Image, ImageFile};

const PAGE: u64 = 0x1000;

/// What bounds the initrd.
pub(crate) struct Bounds {
    /// End of the memory that the kernel needs.
    pub(crate) kernel_end: u64,
    /// The kernel's own limit.
    pub(crate) kernel_ceiling: u64,
    /// End of RAM below the device hole.
    pub(crate) low_ram_end: u64,
}

/// Copies the initrd as high as the kernel can reach, so that it is out of the kernel's way while that unpacks.
pub(crate) fn initrd<F: ImageFile>(
    image: &mut Image<'_, F>,
    ram: &GuestMemoryMmap,
    bounds: &Bounds,
) -> Result<Initrd, LoadError> {
    let bytes = image.bytes();
    if bytes == 0 {
        let allowed = "an initrd cannot be empty; leave it out".to_owned();
        return Err(LoadError::Field { image: "initrd", field: "file length", value: 0, allowed });
    }
    let ceiling = bounds.low_ram_end.min(layout::INITRD_CEILING).min(bounds.kernel_ceiling);
    let no_room = LoadError::NoRoom { image: "initrd", needed: bytes, from: bounds.kernel_end, to: ceiling };
    let address = match ceiling.checked_sub(bytes) {
        Some(address) => address & !(PAGE - 1),
        None => return Err(no_room),
    };
    if address < bounds.kernel_end {
        return Err(no_room);
    }
    image.copy_to(ram, address, 0, bytes)?;
    Ok(Initrd { address, bytes })
}
