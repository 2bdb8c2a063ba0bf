//! The page that a vCPU shares with the kernel (`struct kvm_run`).
#![allow(unsafe_code)] // A shared mapping, read and written through raw pointers only.

use std::io;
use std::mem::offset_of;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    kvm_debug_exit_arch, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_2 as FailEntry,
    kvm_run__bindgen_ty_1__bindgen_ty_4 as Io, kvm_run__bindgen_ty_1__bindgen_ty_6 as Mmio,
    kvm_run__bindgen_ty_1__bindgen_ty_8 as Hypercall, kvm_run__bindgen_ty_1__bindgen_ty_13 as Internal,
    kvm_run__bindgen_ty_1__bindgen_ty_19 as SystemEvent, kvm_run__bindgen_ty_1__bindgen_ty_27 as MemoryFault,
};

/// A mapping of one vCPU's run page, our own: it stays valid after the vCPU is gone, for kick handles that outlive it.
///
/// Only [`immediate_exit`](Self::immediate_exit) may be used from any thread. The rest belongs to the vCPU's thread while it is not inside
/// `KVM_RUN`; this crate's types see to that (a bound vCPU is not `Send`).
pub(super) struct RunPage {
    run: NonNull<kvm_run>,
    size: usize,
}

// SAFETY: the mapping may be used and unmapped from any thread; who uses which part is said above.
unsafe impl Send for RunPage {}
// SAFETY: what is shared between threads is an atomic.
unsafe impl Sync for RunPage {}

/// Reads one member of the exit union.
macro_rules! exit_field {
    ($(#[$doc:meta])* $name:ident: $kind:ty = $($path:ident).+) => {
        $(#[$doc])*
        pub(super) fn $name(&self) -> $kind {
            let field: *mut $kind = self.field(offset_of!(kvm_run, $($path).+));
            // SAFETY: plain bytes for which any pattern is valid; the kernel writes them only during KVM_RUN, which
            // this thread is not in.
            unsafe { field.read_volatile() }
        }
    };
}

impl RunPage {
    /// Maps `size` bytes (`KVM_GET_VCPU_MMAP_SIZE`) of a vCPU.
    pub(super) fn map(vcpu: RawFd, size: usize) -> io::Result<Self> {
        if size < size_of::<kvm_run>() {
            return Err(io::Error::other(format!("KVM_GET_VCPU_MMAP_SIZE is only {size} bytes")));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, vcpu, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(at.cast()) {
            Some(run) => Ok(Self { run, size }),
            None => Err(io::Error::other("the run page was mapped at address 0")),
        }
    }

    /// While it is 1, `KVM_RUN` completes what is pending and returns `EINTR` without running the guest.
    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        let flag = self.field(offset_of!(kvm_run, immediate_exit));
        // SAFETY: the mapping lives as long as `self`; we access the byte only atomically, the kernel only reads it.
        unsafe { AtomicU8::from_ptr(flag) }
    }

    exit_field!(
        /// Why `KVM_RUN` returned: one of `KVM_EXIT_*`.
        exit_reason: u32 = exit_reason
    );
    exit_field!(
        /// Of `KVM_EXIT_IO`.
        io: Io = __bindgen_anon_1.io
    );
    exit_field!(
        /// Of `KVM_EXIT_MMIO`.
        mmio: Mmio = __bindgen_anon_1.mmio
    );
    exit_field!(
        /// Of `KVM_EXIT_HYPERCALL`.
        hypercall: Hypercall = __bindgen_anon_1.hypercall
    );
    exit_field!(
        /// Of `KVM_EXIT_DEBUG`.
        debug: kvm_debug_exit_arch = __bindgen_anon_1.debug.arch
    );
    exit_field!(
        /// Of `KVM_EXIT_SYSTEM_EVENT`.
        system_event: SystemEvent = __bindgen_anon_1.system_event
    );
    exit_field!(
        /// Of `KVM_EXIT_FAIL_ENTRY`.
        fail_entry: FailEntry = __bindgen_anon_1.fail_entry
    );
    exit_field!(
        /// Of `KVM_EXIT_UNKNOWN`.
        hardware_exit_reason: u64 = __bindgen_anon_1.hw.hardware_exit_reason
    );
    exit_field!(
        /// Of `KVM_EXIT_INTERNAL_ERROR`.
        internal: Internal = __bindgen_anon_1.internal
    );
    exit_field!(
        /// Of `KVM_EXIT_MEMORY_FAULT`.
        memory_fault: MemoryFault = __bindgen_anon_1.memory_fault
    );

    /// Answers an MMIO read with 1 to 8 bytes.
    pub(super) fn set_mmio_data(&self, bytes: &[u8]) {
        let mut data = [0; 8];
        let len = bytes.len().min(8);
        data[..len].copy_from_slice(&bytes[..len]);
        let field: *mut [u8; 8] = self.field(offset_of!(kvm_run, __bindgen_anon_1.mmio.data));
        // SAFETY: the kernel reads it only during the next KVM_RUN.
        unsafe { field.write_volatile(data) }
    }

    /// Answers a hypercall.
    pub(super) fn set_hypercall_result(&self, result: u64) {
        let field: *mut u64 = self.field(offset_of!(kvm_run, __bindgen_anon_1.hypercall.ret));
        // SAFETY: as above.
        unsafe { field.write_volatile(result) }
    }

    /// Copies `bytes.len()` bytes from `offset`; false if they are not inside the mapping.
    pub(super) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(from) = self.inside(offset, bytes.len()) else { return false };
        // SAFETY: `inside` checked the range; the two do not overlap, `bytes` being ours alone.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Copies `bytes` to `offset`; false if they would not lie inside the mapping.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.inside(offset, bytes.len()) else { return false };
        // SAFETY: as in `read_at`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// A field of the structure, by `offset_of!`.
    fn field<T>(&self, offset: usize) -> *mut T {
        // SAFETY: a field's offset is inside the structure, which is inside the mapping.
        unsafe { self.run.as_ptr().byte_add(offset) }.cast()
    }

    /// Where `offset` is, if `len` bytes from there lie behind the structure and inside the mapping.
    fn inside(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        if offset < size_of::<kvm_run>() || end > self.size {
            return None;
        }
        // SAFETY: just checked.
        Some(unsafe { self.run.as_ptr().cast::<u8>().add(offset) })
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; nothing borrows from it any more.
        unsafe { libc::munmap(self.run.as_ptr().cast(), self.size) };
    }
}
