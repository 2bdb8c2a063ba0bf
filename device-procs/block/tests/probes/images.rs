//! qcow2 images for tests: made by `qemu-img`, as a user makes them, or by `imago` itself where that is missing.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;

/// An image's file, in a folder of its own, on a disk rather than in memory where that can be had.
pub struct ImageFile {
    folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl ImageFile {
    /// An empty version 3 image of `bytes` bytes.
    pub fn fresh(bytes: u64) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.qcow2");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let storage = imago::file::File::try_from(file).unwrap();
        Qcow2::<imago::file::File>::create_builder(storage).size(bytes).create().unwrap();
        ImageFile { folder, path }
    }

    /// What `qemu-img create … FILE SIZE` makes, in a folder with `base` in it, if it is given.
    pub fn created(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.qcow2");
        let image = ImageFile { folder, path };
        image.make("disk.qcow2", arguments).then_some(image)
    }

    /// Makes another image beside it; whether `qemu-img` is there.
    pub fn make(&self, name: &str, arguments: &[&str]) -> bool {
        let (options, size) = arguments.split_at(arguments.len() - 1);
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend(options);
        all.extend([name, size[0]]);
        qemu_img(self.folder.path(), &all).is_some()
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn open(&self) -> OwnedFd {
        open(&self.path, true)
    }

    /// `qemu-img check`: no error, and at most `leaks` clusters that nobody uses.
    pub fn check(&self, leaks: u64) {
        let Some(text) = qemu_img(self.folder.path(), &["check", "--output=json", "disk.qcow2"]) else {
            return;
        };
        let number = |name: &str| -> u64 {
            let rest = text.split(&format!("\"{name}\": ")).nth(1).unwrap_or("0");
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        assert_eq!((number("corruptions"), number("check-errors")), (0, 0), "{text}");
        assert!(number("leaks") <= leaks, "{text}");
    }
}

pub fn open(path: &Path, writable: bool) -> OwnedFd {
    File::options().read(true).write(writable).open(path).unwrap().into()
}

/// What `qemu-img` says; `None`, and a line, where it is missing. Its status 3 of `check` means leaks only.
pub fn qemu_img(folder: &Path, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").args(arguments).current_dir(folder).output() else {
        eprintln!("SKIP: qemu-img is missing (package qemu-utils)");
        return None;
    };
    let status = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(status, Some(0 | 3)), "qemu-img {arguments:?}: {status:?} {said}");
    Some(String::from_utf8(output.stdout).unwrap())
}
