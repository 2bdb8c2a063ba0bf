//! A virtio block device (Virtio 1.3 §5.2) over a raw or qcow2 image: registers (region 0), interrupt line 0, a thread for each
//! queue.
//!
//! Guarantees:
//! 1. No request reaches past the disk's end, whatever it says; a read-only disk is never written.
//! 2. A completed write is at least in the host's page cache. A completed flush, or a completed write of a driver that did
//!    not accept `VIRTIO_BLK_F_FLUSH` or chose so (`VIRTIO_BLK_F_CONFIG_WCE`), is on stable storage; except with the cache mode
//!    `unsafe`, where neither promises anything once the host has crashed. `direct` goes past the page cache and is otherwise
//!    as `writeback`.
//! 3. A queue's requests are done in their order, one at a time; those of different queues beside each other.
//! 4. Across a restart each request is done at least once: what was not in the used ring is done again, which is the same
//!    for reads, writes, and all else that this device does.
//! 5. A request takes fixed memory, however large it is. Between a raw image and guest memory the kernel moves its bytes; a
//!    qcow2 image, and buffers that `O_DIRECT` does not take as they lie, are copied through 256 KiB for each queue.
//! 6. Only descriptors that were granted are opened, in the format that was told: nothing in an image names a file or is
//!    guessed (see [`image::qcow2`]).
//! 7. Over any time the disk moves no more than its limits, all queues together: a request begins when the last one is paid
//!    for.
//! 8. A request during which two workers ended is not tried a third time: it gets `VIRTIO_BLK_S_IOERR`, and the next is served.
//!
//! No guarantee: the content of a crafted qcow2 image that is written, and a service for it. One whose reference counts call its header
//! nobody's is refused (imago 0.2.6 would recurse until its stack is full); other nonsense costs errors, or what is in the image.
//! Whoever gives a guest an image that a stranger made should give it read-only, or look at it with `qemu-img check` first.
//!
//! A request that makes no sense gets `VIRTIO_BLK_S_IOERR`, one of an unknown kind `VIRTIO_BLK_S_UNSUPP`; one without room
//! for its status is given back with nothing written.
#![forbid(unsafe_code)]

pub mod device;
pub mod image;
pub mod request;
pub mod spec;
pub mod state;

pub use device::Disk;
