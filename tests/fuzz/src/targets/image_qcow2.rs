//! A disk image in QEMU's format that somebody else made: one that is right but for what the input changes is refused, or read and
//! read as far as it goes. One that is right is written, too.
//!
//! What this does not look at: writes to an image that the input changes. With one whose reference counts call its header nobody's imago
//! 0.2.6 recursed until its stack was full (found by this target; input 2932ffffffffffffff800005212c). Such an image is refused now, and
//! `an_image_whose_tables_make_no_sense_is_written_as_far_as_it_goes` (device-procs/block/tests/qcow2.rs) writes to others.

use std::fs::File;
use std::os::fd::OwnedFd;

use cellblock_block::image::{Image, Qcow2Image};
use crate::Script;
use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

const BYTES: u64 = 64 << 10;
const CLUSTER: usize = 512;
/// An image may not grow past this.
const MOST: u64 = 1 << 20;

thread_local! {
    static TEMPLATE: Vec<u8> = template();
    static IMAGE: OwnedFd = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
}

/// An image with something in it.
fn template() -> Vec<u8> {
    let fd = memfd_create("template", MemfdFlags::CLOEXEC).unwrap();
    let storage = imago::file::File::try_from(File::from(fd.try_clone().unwrap())).unwrap();
    Qcow2::<imago::file::File>::create_builder(storage).size(BYTES).cluster_size(CLUSTER).create().unwrap();
    let image = Qcow2Image::open(fd.try_clone().unwrap(), vec![], true, BYTES).unwrap();
    image.write(0, &[7; 2000], false).unwrap();
    image.write(40_000, &[8; 100], true).unwrap();
    drop(image);
    let mut bytes = vec![0; rustix::fs::fstat(&fd).unwrap().st_size as usize];
    pread(&fd, &mut bytes, 0).unwrap();
    bytes
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut content = TEMPLATE.with(Vec::clone);
    let changes = script.u8() % 8;
    for _ in 0..changes {
        // The header, or anywhere.
        let at = if script.flag() { script.u8().into() } else { usize::from(script.u16()) % content.len() };
        let count = usize::from(script.u8() % 9);
        for (to, from) in content[at..].iter_mut().zip(script.bytes(count)) {
            *to = *from;
        }
    }
    if changes > 0 && script.u8() & 15 == 15 {
        content.truncate(script.u16().into());
    }
    IMAGE.with(|image| {
        ftruncate(image, 0).unwrap();
        pwrite(image, &content, 0).unwrap();
        let fd = image.try_clone().unwrap();
        let Ok(disk) = Qcow2Image::open(fd, vec![], changes == 0, BYTES) else { return };
        let mut room = [0; 4096];
        for _ in 0..script.u8() % 8 {
            let kind = script.u8();
            let offset = u64::from(script.u16()) % BYTES;
            let length = (1 + usize::from(script.u16()) % room.len()).min((BYTES - offset) as usize);
            // Whatever it says, it may say so; the device reports an I/O error.
            let _ = match kind % 6 {
                0 | 1 => disk.read(offset, &mut room[..length]),
                2 | 3 => disk.write(offset, &room[..length], kind & 64 != 0),
                4 => disk.discard(offset & !511, length as u64 & !511),
                _ => disk.zero(offset & !511, length as u64 & !511, kind & 64 != 0).map(drop),
            };
            let grown = rustix::fs::fstat(image).unwrap().st_size as u64;
            if grown > MOST {
                // Sparse: an image may be told to lie anywhere in its file.
                return;
            }
        }
        let _ = disk.flush();
    });
}
