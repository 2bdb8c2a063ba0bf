//! A disk in a qcow2 image, in this process.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)] // Tests; clippy knows only #[test] functions as such.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use cellblock_block::Disk;
use cellblock_block::image::{Image, Qcow2Image};
use cellblock_block::request::Requests;
use cellblock_sdk::testing::process::Noise;
use cellblock_sdk::testing::virtio::{Driver, Edges, shared_ram};
use cellblock_sdk::testing::{Harness, ManualClock};
use cellblock_sdk::virtio::{Inline, Interrupt, OneByOne, Transport};
use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

mod probes;
use probes::images::{ImageFile, open, qemu_img};
use probes::*;

const BYTES: u64 = SECTORS * 512;
const CLUSTER: u64 = 64 << 10;

fn opened(file: &ImageFile) -> Qcow2Image {
    Qcow2Image::open(file.open(), vec![], true, BYTES).unwrap()
}

type Rig = Driver<Harness<Transport<Inline<OneByOne<Requests<Qcow2Image, ManualClock>>>>>>;

fn disk(image: &Qcow2Image) -> Rig {
    let interrupt = Interrupt::new(Edges::default());
    let ram = shared_ram().0;
    let disk = Disk::new(&config(), image, &ManualClock::default(), &interrupt);
    let engine = Inline::servers(disk.servers, interrupt.clone());
    Driver::new(Harness::new(Transport::new(disk.identity, engine, ram.clone(), interrupt)), ram)
}

fn bytes_at(image: &Qcow2Image, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    image.read(offset, &mut bytes).unwrap();
    bytes
}

/// Versions, and cluster and refcount sizes from one end to the other.
fn variants() -> Vec<ImageFile> {
    let size = BYTES.to_string();
    let options = ["compat=0.10", "cluster_size=512,refcount_bits=1", "cluster_size=2M,refcount_bits=64"];
    let created = options.iter().filter_map(|option| ImageFile::created(&["-o", option, &size]));
    std::iter::once(ImageFile::fresh(BYTES)).chain(created).collect()
}

#[test]
fn every_request_does_what_it_says() {
    for file in variants() {
        let image = opened(&file);
        every_request(&mut disk(&image));
        scattered_buffers(&mut disk(&image));
        many_requests(&mut disk(&image), 20);
        drop(image);
        file.check(0);
    }
}

#[test]
fn requests_that_make_no_sense_fail_alone() {
    let file = ImageFile::fresh(BYTES);
    bad_requests(&mut disk(&opened(&file)));
    bad_buffers(&mut disk(&opened(&file)));
    file.check(0);
}

/// What was completed is in the file, not in the process: one that is killed loses nothing.
#[test]
fn a_killed_worker_leaves_all_that_it_completed() {
    let file = ImageFile::fresh(BYTES);
    let image = opened(&file);
    image.write(3 * CLUSTER - 512, &pattern(1, 1024), false).unwrap();
    image.write(8 * CLUSTER, &pattern(2, 4096), false).unwrap();
    image.discard(8 * CLUSTER, CLUSTER).unwrap();
    assert!(image.zero(3 * CLUSTER, 512, false).unwrap());
    // As if it were killed: nothing of it runs any more.
    std::mem::forget(image);
    file.check(0);
    let successor = opened(&file);
    assert_eq!(bytes_at(&successor, 3 * CLUSTER - 512, 512), pattern(1, 1024)[..512]);
    assert_eq!(bytes_at(&successor, 3 * CLUSTER, 512), [0; 512]);
    assert_eq!(bytes_at(&successor, 8 * CLUSTER, 4096), [0; 4096]);
}

#[test]
fn discarded_clusters_go_back_to_the_host() {
    let file = ImageFile::fresh(BYTES);
    let image = opened(&file);
    image.write(0, &pattern(1, 8 * CLUSTER as usize), true).unwrap();
    let blocks = || {
        image.flush().unwrap();
        fs::metadata(&file.path).unwrap().blocks() * 512
    };
    let full = blocks();
    image.discard(CLUSTER, 2 * CLUSTER).unwrap();
    let discarded = blocks();
    assert!(image.zero(4 * CLUSTER, 2 * CLUSTER, true).unwrap());
    let unmapped = blocks();
    // Not every file system punches holes; but clusters are used again.
    if full == discarded {
        eprintln!("SKIP: the file system of {} punches no holes", file.path.display());
    } else {
        assert!(discarded <= full - 2 * CLUSTER, "{full} {discarded}");
        assert!(unmapped <= discarded - 2 * CLUSTER, "{discarded} {unmapped}");
    }
    let length = fs::metadata(&file.path).unwrap().len();
    image.write(CLUSTER, &pattern(2, 4 * CLUSTER as usize), false).unwrap();
    assert!(fs::metadata(&file.path).unwrap().len() <= length + CLUSTER, "clusters are used again");
    assert_eq!(bytes_at(&image, CLUSTER, 4 * CLUSTER as usize), pattern(2, 4 * CLUSTER as usize));
    drop(image);
    file.check(0);
}

/// An image on one on a raw file, which is smaller: what is not written is read from below, and nothing is written there.
#[test]
fn a_backing_chain_is_read_and_never_written() {
    let size = BYTES.to_string();
    let Some(file) = ImageFile::created(&[&size]) else { return };
    let (raw, middle) = (file.beside("base.raw"), file.beside("middle.qcow2"));
    fs::write(&raw, pattern(1, 2 * CLUSTER as usize)).unwrap();
    file.make("middle.qcow2", &["-b", "base.raw", "-F", "raw", &size]);
    let image = Qcow2Image::open(open(&middle, true), vec![open(&raw, false)], true, BYTES).unwrap();
    image.write(512, &pattern(2, 512), false).unwrap();
    drop(image);
    file.make("disk.qcow2", &["-b", "middle.qcow2", "-F", "qcow2", &size]);
    let before = (fs::read(&raw).unwrap(), fs::read(&middle).unwrap());

    let below = || vec![open(&middle, false), open(&raw, false)];
    let image = Qcow2Image::open(file.open(), below(), true, BYTES).unwrap();
    assert_eq!(bytes_at(&image, 0, 512), pattern(1, 512));
    assert_eq!(bytes_at(&image, 512, 512), pattern(2, 512), "from the middle");
    assert_eq!(
        bytes_at(&image, 1024, 512),
        pattern(1, 2048)[1024..1536],
        "copied up when the middle was written"
    );
    assert_eq!(bytes_at(&image, 2 * CLUSTER, 512), [0; 512], "past the end of the lowest");
    image.write(1024, &pattern(3, 512), false).unwrap();
    assert!(image.zero(CLUSTER, CLUSTER, true).unwrap());
    for _ in 0..2 {
        let image = Qcow2Image::open(file.open(), below(), false, BYTES).unwrap();
        assert_eq!(bytes_at(&image, 512, 512), pattern(2, 512), "copied up with what was written");
        assert_eq!(bytes_at(&image, 1024, 512), pattern(3, 512));
        assert_eq!(bytes_at(&image, CLUSTER, CLUSTER as usize), vec![0; CLUSTER as usize], "no peek below");
    }
    drop(image);
    assert_eq!((fs::read(&raw).unwrap(), fs::read(&middle).unwrap()), before);
    file.check(0);

    let refused = |below: Vec<_>| Qcow2Image::open(file.open(), below, true, BYTES).unwrap_err().to_string();
    assert!(refused(vec![]).contains("layer 0 of the disk image is backed by \"middle.qcow2\""));
    assert!(
        refused(vec![open(&middle, false)]).contains("layer 1 of the disk image is backed by \"base.raw\"")
    );
    let mut many = below();
    many.push(open(&raw, false));
    assert!(refused(many).contains("3 backing files are given, but layer 2"));
    assert!(
        refused(vec![open(&raw, false), open(&raw, false)])
            .contains("layer 1 of the disk image cannot be read as qcow2")
    );
}

/// A guest of a raw disk can write what it likes into it: nobody looks whether that is a qcow2 header.
#[test]
fn a_format_is_never_guessed() {
    let size = BYTES.to_string();
    let Some(file) = ImageFile::created(&[&size]) else { return };
    file.make("secret.qcow2", &[&size]);
    let header = fs::read(file.beside("secret.qcow2")).unwrap();
    fs::write(file.beside("base.raw"), &header).unwrap();
    file.make("disk.qcow2", &["-b", "base.raw", "-F", "raw", &size]);
    let below = || vec![open(&file.beside("base.raw"), false)];
    let image = Qcow2Image::open(file.open(), below(), true, BYTES).unwrap();
    assert_eq!(bytes_at(&image, 0, 512), header[..512], "it is bytes, as it says");
    drop(image);
    // Without a word about the format, it is not used at all.
    qemu_img(&file.beside(""), &["rebase", "-u", "-b", "", "disk.qcow2"]);
    let refused = Qcow2Image::open(file.open(), below(), true, BYTES).unwrap_err().to_string();
    assert!(refused.contains("1 backing files are given, but layer 0"), "{refused}");
    file.make("disk.qcow2", &["-u", "-b", "base.raw", "-F", "vmdk", &size]);
    let refused = Qcow2Image::open(file.open(), below(), true, BYTES).unwrap_err().to_string();
    assert!(refused.contains("in the format \"vmdk\""), "{refused}");
}

#[test]
fn what_is_no_image_is_refused() {
    let file = ImageFile::fresh(BYTES);
    let refused = |writable, bytes| {
        Qcow2Image::open(file.open(), vec![], writable, bytes).map(drop).unwrap_err().to_string()
    };
    assert!(
        refused(true, BYTES + 512).contains(&format!("has {BYTES} bytes, announced were {}", BYTES + 512))
    );
    let whole = fs::read(&file.path).unwrap();
    let damaged = |offset: usize, bytes: &[u8]| {
        let mut image = whole.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        fs::write(&file.path, image).unwrap();
        refused(true, BYTES)
    };
    assert!(damaged(0, b"\0").contains("layer 0 of the disk image cannot be read as qcow2"));
    assert!(damaged(4, &9u32.to_be_bytes()).contains("v9 is not supported"));
    assert!(damaged(20, &60u32.to_be_bytes()).contains("cluster size"));
    assert!(damaged(40, &7u64.to_be_bytes()).contains("L1 table"), "it lies askew");
    // Incompatible features (§ of docs/interop/qcow2.txt): an external data file, and one that nobody knows.
    assert!(damaged(72, &4u64.to_be_bytes()).contains("keeps its data in another file"));
    assert!(damaged(72, &(1u64 << 40).to_be_bytes()).contains("incompatible feature"));
    assert!(damaged(72, &2u64.to_be_bytes()).contains("incompatible feature"), "it is corrupt");
    assert!(damaged(32, &1u32.to_be_bytes()).contains("layer 0 of the disk image is encrypted"));
    // Found by fuzzing: imago 0.2.6 panics at a name of one byte, and reads names of images of version 3 only.
    let names = |version: u8, bytes: u32| {
        let mut image = whole.clone();
        image[7] = version;
        let at = u32::from_be_bytes(image[100..104].try_into().unwrap()) as usize;
        image[at..at + 120].fill(0);
        image[at..at + 4].copy_from_slice(&0x6803_f857u32.to_be_bytes());
        image[at + 4..at + 8].copy_from_slice(&bytes.to_be_bytes());
        fs::write(&file.path, image).unwrap();
        Qcow2Image::open(file.open(), vec![], true, BYTES).map(drop).map_err(|error| error.to_string())
    };
    assert!(names(3, 49).unwrap_err().contains("its table of feature names has 49 bytes"));
    assert_eq!((names(3, 96), names(2, 49)), (Ok(()), Ok(())));
    fs::write(&file.path, b"").unwrap();
    assert!(refused(true, BYTES).contains("qcow2"));
}

/// What imago 0.2.6 allocates by counts that do not cover the header, it takes for nothing: it recurses to do it again. Found by
/// fuzzing, as the first 128 bytes of an image.
#[test]
fn an_image_whose_header_is_nobodys_is_not_written() {
    for (file, size) in variants().into_iter().zip([CLUSTER, CLUSTER, 512, 2 << 20]) {
        let whole = fs::read(&file.path).unwrap();
        let field = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
        let table = field(48);
        let block = field(table);
        let opened = |image: &[u8], writable| {
            fs::write(&file.path, image).unwrap();
            Qcow2Image::open(file.open(), vec![], writable, BYTES)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let without = |at: usize, bytes: usize| {
            let mut image = whole.clone();
            image[at..at + bytes].fill(0);
            image
        };
        for image in [without(table, 8), without(block, size as usize), without(56, 4), whole[..128].to_vec()]
        {
            let refusal = opened(&image, true).unwrap_err();
            assert!(refusal.contains("its header is nobody's"), "{refusal}");
            assert_eq!(opened(&image, false), Ok(()), "whoever only reads needs no counts");
        }
        assert_eq!(opened(&whole, true), Ok(()));
    }
}

/// Tables that make no sense, however they came about, cost an error or their own disk's content: nothing panics, and no stack
/// overflows.
#[test]
fn an_image_whose_tables_make_no_sense_is_written_as_far_as_it_goes() {
    const CLUSTER: u64 = 512;
    const BYTES: u64 = 64 << 10;
    const MOST: u64 = 1 << 20;
    let rounds = std::env::var("CELLBLOCK_ROUNDS").map_or(1000, |rounds| rounds.parse().unwrap());
    let fd = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
    let file = fs::File::from(fd.try_clone().unwrap());
    let storage = imago::file::File::try_from(file.try_clone().unwrap()).unwrap();
    Qcow2::<imago::file::File>::create_builder(storage)
        .size(BYTES)
        .cluster_size(CLUSTER as usize)
        .create()
        .unwrap();
    let open = || Qcow2Image::open(fd.try_clone().unwrap(), vec![], true, BYTES);
    let image = open().unwrap();
    image.write(0, &[7; 2000], false).unwrap();
    image.write(40_000, &[8; 100], true).unwrap();
    drop(image);
    let mut whole = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut whole, 0).unwrap();
    let mut noise = Noise(std::process::id().into());
    let mut written = 0;
    for round in 0..rounds {
        let mut bytes = whole.clone();
        for _ in 0..1 + noise.below(5) {
            // A word of a table, mostly an entry that leads to another cluster, or some bytes.
            let at = (noise.below(bytes.len() as u64 / 8) * 8) as usize;
            let entry = (noise.below(600) * CLUSTER) | (noise.below(4) << 62);
            let word = [entry, 0, noise.below(u64::MAX), 0x0001_0001_0001_0001][noise.below(4) as usize];
            bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        }
        if noise.below(8) == 0 {
            bytes.truncate(noise.below(bytes.len() as u64) as usize);
        }
        file.set_len(0).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let Ok(disk) = open() else { continue };
        for _ in 0..noise.below(8) {
            let (offset, length) = (noise.below(128) * 512, (1 + noise.below(8)) * 512);
            let length = length.min(BYTES - offset);
            // Whatever it says, it may say so; the device reports an I/O error.
            let _ = match noise.below(4) {
                0 | 1 => disk.write(offset, &vec![9; length as usize], false),
                2 => disk.discard(offset, length),
                _ => disk.zero(offset, length, round % 2 == 0).map(drop),
            };
            written += 1;
            if file.metadata().unwrap().len() > MOST {
                // Sparse: an image may be told to lie anywhere in its file.
                break;
            }
        }
        let _ = disk.flush();
    }
    assert!(written > rounds / 2, "only {written} requests reached an image");
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    let Some(file) = ImageFile::created(&[&BYTES.to_string()]) else { return };
    let bytes = pattern(1, BYTES as usize);
    fs::write(file.beside("whole.raw"), &bytes).unwrap();
    let convert = ["convert", "-c", "-O", "qcow2", "whole.raw", "disk.qcow2"];
    qemu_img(&file.beside(""), &convert);
    let image = opened(&file);
    assert_eq!(bytes_at(&image, 0, BYTES as usize), bytes);
    image.write(CLUSTER + 512, &pattern(2, 512), false).unwrap();
    image.discard(3 * CLUSTER, CLUSTER).unwrap();
    assert_eq!(bytes_at(&image, CLUSTER, 512), bytes[CLUSTER as usize..][..512]);
    assert_eq!(bytes_at(&image, CLUSTER + 512, 512), pattern(2, 512));
    assert_eq!(bytes_at(&image, 2 * CLUSTER, 512), bytes[2 * CLUSTER as usize..][..512]);
    drop(image);
    file.check(0);
}

/// Whatever a header says, it is refused or opened, in bounded memory and time.
#[test]
fn any_header_is_survived() {
    let file = ImageFile::fresh(BYTES);
    let whole = fs::read(&file.path).unwrap();
    let on_disk = fs::File::options().write(true).open(&file.path).unwrap();
    for at in 0..112 {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            on_disk.write_all_at(&[byte], at).unwrap();
            if let Ok(image) = Qcow2Image::open(file.open(), vec![], false, BYTES) {
                let _ = image.read(0, &mut [0; 512]);
            }
            on_disk.write_all_at(&whole[..128], 0).unwrap();
        }
    }
}

/// Queues of one disk, on threads of their own: reads, writes, discards beside each other.
#[test]
fn queues_share_an_image() {
    const THREADS: u64 = 4;
    let file = ImageFile::fresh(BYTES);
    let image = opened(&file);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let image = image.clone();
            scope.spawn(move || {
                let part = BYTES / THREADS;
                for round in 0..60u64 {
                    let offset = part * thread + round * 7919 % (part / 512 - 100) * 512;
                    let bytes = pattern((thread * 50 + round) as u8, 49 * 512);
                    image.write(offset, &bytes, round % 16 == 0).unwrap();
                    let mut back = vec![0; bytes.len()];
                    image.read(offset, &mut back).unwrap();
                    assert_eq!(back, bytes, "thread {thread}, round {round}");
                    match round % 3 {
                        0 => image.discard(offset, 49 * 512).unwrap(),
                        1 => assert!(image.zero(offset, 4096, round % 2 == 0).unwrap()),
                        _ => {}
                    }
                }
            });
        }
    });
    drop(image);
    file.check(0);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Step> {
    let place = || (0u64..BYTES / 512).prop_flat_map(|at| (Just(at), 1..=(BYTES / 512 - at).min(400)));
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((at, n), seed)| Step::Write(at * 512, n as usize * 512, seed)),
        2 => (place(), any::<bool>()).prop_map(|((at, n), unmap)| Step::Zero(at * 512, n * 512, unmap)),
        1 => place().prop_map(|(at, n)| Step::Discard(at * 512, n * 512)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// It holds what a plain array would; where something was discarded, that or zeroes.
    #[test]
    fn it_is_an_array_of_bytes(steps in proptest::collection::vec(steps(), 1..30)) {
        let file = ImageFile::fresh(BYTES);
        let mut image = opened(&file);
        let mut model = vec![0u8; BYTES as usize];
        for step in steps {
            match step {
                Step::Write(at, length, seed) => {
                    let bytes = pattern(seed, length);
                    image.write(at, &bytes, false).unwrap();
                    model[at as usize..][..length].copy_from_slice(&bytes);
                }
                Step::Zero(at, length, unmap) => {
                    prop_assert!(image.zero(at, length, unmap).unwrap());
                    model[at as usize..][..length as usize].fill(0);
                }
                Step::Discard(at, length) => {
                    image.discard(at, length).unwrap();
                    let range = at as usize..(at + length) as usize;
                    let now = bytes_at(&image, at, length as usize);
                    for (now, model) in now.iter().zip(&mut model[range]) {
                        prop_assert!(*now == 0 || now == model);
                        *model = *now;
                    }
                }
                Step::Reopen => {
                    std::mem::forget(std::mem::replace(&mut image, opened(&ImageFile::fresh(BYTES))));
                    image = opened(&file);
                }
            }
        }
        prop_assert!(bytes_at(&image, 0, BYTES as usize) == model);
        drop(image);
        file.check(0);
    }
}
