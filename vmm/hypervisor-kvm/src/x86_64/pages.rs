//! Pages of several memfds, one behind the other, so that one memory slot holds them.
#![allow(unsafe_code)] // Mapping at a chosen address.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use crate::interface::RegisterPage;

/// A mapping for reading, for KVM alone: nobody in this process looks through it.
pub(super) struct PagesMapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is only unmapped, which any thread may do.
unsafe impl Send for PagesMapping {}
// SAFETY: nothing is accessed through it.
unsafe impl Sync for PagesMapping {}

impl PagesMapping {
    /// Bytes of one page.
    pub(super) const PAGE: u64 = 4096;

    pub(super) fn new(pages: &[RegisterPage]) -> io::Result<Self> {
        let page = Self::PAGE as usize;
        let bytes = pages.len() * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; it holds the place.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start =
            NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        // From here on it is unmapped whatever happens.
        let mapping = PagesMapping { start, bytes };
        for (number, RegisterPage { memory, .. }) in pages.iter().enumerate() {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            // SAFETY: inside the mapping.
            let at = unsafe { start.as_ptr().add(number * page) };
            // SAFETY: replaces a page of the mapping above, which is ours and unused.
            let at = unsafe { libc::mmap(at.cast(), page, libc::PROT_READ, flags, memory.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(mapping)
    }

    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PagesMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the VM that reads through it has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
