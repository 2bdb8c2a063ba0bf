//! `cellblock upgrade`: another binary for the worker of a device that is in use.
//!
//! This program, as the user who runs it, opens the binary, and gives the VM a copy that nobody can change any more. The VM's
//! front offers that to the spawner; the device's sandbox stays as it was.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{CWD, MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::cli::UpgradeArgs;
use crate::front::control_socket::{Answer, What, ask_with};
use crate::front::paths;
use crate::{launch, ps, restart};

/// The largest binary, in bytes.
const MAX_BINARY: u64 = 64 << 20;

/// Does what `args` say, and prints how long the device paused.
///
/// # Errors
/// The VM or the device does not exist, the binary cannot be read, or its worker does not take over: then the old one goes on.
pub(crate) fn upgrade(args: &UpgradeArgs) -> anyhow::Result<()> {
    let (uid, id) = ps::one(&args.id)?;
    let status = restart::status(uid, &id)?;
    let names = status.device_names();
    let place = names.iter().position(|name| *name == args.device);
    let Some((place, device)) = place.and_then(|place| Some((place, status.devices.get(place)?))) else {
        bail!("VM {id} has no device {:?}; it has {}", args.device, names.join(", "));
    };
    let path = match &args.binary {
        Some(path) => path.clone(),
        None => launch::worker_directory(None).map_err(anyhow::Error::msg)?.join(device.device.name()),
    };
    let files = files(&path)?;
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let what = What::Upgrade { device: u32::try_from(place)?, generation: device.generation };
    match ask_with(uid, &id, what, &files).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Upgraded(pause) => {
            let ms = pause.length().as_secs_f64() * 1e3;
            say!("VM {id}: device {} runs {}; it paused for {ms:.1} ms", args.device, path.display())
        }
        Answer::Refused(reason) => bail!("VM {id}: device {} goes on as before: {reason}", args.device),
        _ => bail!("VM {id} answered something else"),
    }
}

/// The binary at `path`, and its start program, if there is one beside it.
fn files(path: &Path) -> anyhow::Result<Vec<OwnedFd>> {
    let mut files = vec![sealed(paths::open_program(CWD, path), path)?];
    let mut program = path.as_os_str().to_owned();
    program.push(".bpf");
    let program = PathBuf::from(program);
    match paths::open_program(CWD, &program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => files.push(sealed(opened, &program)?),
    }
    Ok(files)
}

/// A copy of the file at `path`, which was `opened`, that nobody can change.
fn sealed(opened: io::Result<File>, path: &Path) -> anyhow::Result<OwnedFd> {
    let failed = || format!("{} cannot be read", path.display());
    let source = opened.with_context(failed)?;
    let mut copy = File::from(memfd().context("no memory for the binary")?);
    let length = io::copy(&mut source.take(MAX_BINARY + 1), &mut copy).with_context(failed)?;
    ensure!(length <= MAX_BINARY, "{} has more than {} MiB", path.display(), MAX_BINARY >> 20);
    copy.flush().with_context(failed)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, all).context("the copy of the binary cannot be sealed")?;
    Ok(copy.into())
}

/// Memory that can be executed, even where that has to be said (Linux 6.3 and later).
fn memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("cellblock-worker", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("cellblock-worker", flags),
        made => made,
    }
}
