//! A disk, over a file or over memory that fails now and then.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use cellblock_block::Disk;
use cellblock_block::image::{Image, RawImage};
use crate::Script;
use crate::guest::Guest;
use crate::host::{Line, Ticks, fresh};
use cellblock_sdk::virtio::{Inline, Interrupt, Transport};
use cellblock_wire::device::{BlockConfig, Bucket, CacheMode, Format, Limits, SECTOR};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const SECTORS: u64 = 32;
const BYTES: usize = (SECTORS * SECTOR) as usize;

thread_local! {
    static FILE: RawImage = {
        let file = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, BYTES as u64).unwrap();
        RawImage::new(file)
    };
}

/// Bytes in memory, and in how many requests the next one fails.
#[derive(Clone)]
struct Memory(Rc<RefCell<(Vec<u8>, u8)>>);

#[derive(Clone)]
enum Bytes {
    File(RawImage),
    Memory(Memory),
}

impl Memory {
    fn at<T>(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let (bytes, left) = &mut *self.0.borrow_mut();
        *left = left.wrapping_sub(1);
        if *left == 0 {
            return Err(io::Error::other("the disk is broken"));
        }
        // The device promises to stay within the disk.
        let end = offset.checked_add(length).expect("within the disk");
        Ok(act(&mut bytes[offset as usize..end as usize]))
    }
}

impl Image for Bytes {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.read(offset, into),
            Bytes::Memory(memory) => {
                memory.at(offset, into.len() as u64, |bytes| into.copy_from_slice(bytes))
            }
        }
    }

    fn write(&self, offset: u64, from: &[u8], stable: bool) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.write(offset, from, stable),
            Bytes::Memory(memory) => {
                memory.at(offset, from.len() as u64, |bytes| bytes.copy_from_slice(from))
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.flush(),
            Bytes::Memory(memory) => memory.at(0, 0, |_| ()),
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.discard(offset, length),
            Bytes::Memory(memory) => memory.at(offset, length, |bytes| bytes.fill(0)),
        }
    }

    fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<bool> {
        match self {
            Bytes::File(file) => file.zero(offset, length, unmap),
            Bytes::Memory(memory) => memory.at(offset, length, |bytes| bytes.fill(0)).map(|()| unmap),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Bytes::File(file) => file.file(),
            Bytes::Memory(_) => None,
        }
    }
}

/// Looks at one input.
pub(crate) fn run(bytes: &[u8]) {
    let (ram, mut script) = (fresh(), Script::new(bytes));
    let how = script.u8();
    let image = if how & 1 == 0 {
        Bytes::File(FILE.with(RawImage::clone))
    } else {
        Bytes::Memory(Memory(Rc::new(RefCell::new((vec![0; BYTES], script.u8())))))
    };
    let bucket = (how & 2 != 0).then_some(Bucket { per_second: 1000, burst: 600 });
    let config = BlockConfig {
        sectors: SECTORS,
        block_size: 512 << (how >> 2 & 3),
        read_only: how & 16 != 0,
        cache: [CacheMode::Writeback, CacheMode::Unsafe][usize::from(how >> 5 & 1)],
        queues: 2,
        id: "disk".into(),
        format: Format::Raw,
        backing: 0,
        limits: Limits { bytes: bucket, operations: bucket },
    };
    let memory = ram.clone();
    let make = || {
        let interrupt = Interrupt::new(Line);
        let disk = Disk::new(&config, &image, &Ticks, &interrupt);
        let engine = Inline::servers(disk.servers, interrupt.clone());
        Transport::new(disk.identity, engine, memory.clone(), interrupt).in_order()
    };
    Guest::new(ram, 2, make).run(&mut script, |_| ());
}
