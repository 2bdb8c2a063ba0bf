//! A virtio disk: sequential requests of 1 MiB and random ones of 4 KiB, one at a time, past the guest's page cache.
//!
//! Each VM has a copy of the same image in the host's memory, which both programs read and write through the page cache:
//! what is measured is the way from the guest to there, not a disk.

use std::fs;

use anyhow::Result;

use super::{CMDLINE, Images, Session, compare};
use crate::Request;
use crate::rival::{Guest, Program};

const PATTERNS: [&str; 4] = ["sequential-read", "sequential-write", "random-read", "random-write"];
const IMAGE_BYTES: usize = 48 << 20;
/// Of one figure, in seconds of the guest's time; an eighth more to warm up.
const SPAN: f64 = 0.4;

/// Measures each of `programs`; whether ours is fast enough.
pub(super) fn run(request: &Request, programs: &[Program], images: &Images) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let mut sessions = Vec::new();
    for program in programs {
        let name = program.name();
        let image = folder.path().join(name);
        // Written, so that no figure pays for its allocation.
        fs::write(&image, vec![0xa5; IMAGE_BYTES])?;
        let (kernel, initrd) = (&images.kernel, Some(images.initrd.as_path()));
        let guest = Guest {
            kernel,
            initrd,
            cmdline: CMDLINE,
            cpus: request.cpus,
            disk: Some(&image),
            tap: None,
            exit_stats: false,
        };
        let mut vm = program.start(&guest, "bench-disk", folder.path())?;
        vm.expect("CELLBLOCK-WAITS")?;
        sessions.push(Session { name, vm, host: String::new() });
    }
    let measures = PATTERNS.map(|pattern| (pattern, format!("io /dev/vda {pattern} {SPAN}")));
    let kept = compare(request, &mut sessions, &measures)?;
    sessions.into_iter().try_for_each(Session::end)?;
    Ok(kept)
}
