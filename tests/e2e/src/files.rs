//! Files that tests compare.
#![allow(clippy::expect_used)] // Part of the tests: what goes wrong here fails the test.

use std::path::Path;
use std::process::Command;

/// The SHA-256 sum of the file at `path`, as `sha256sum` prints it.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum is executable");
    let line = String::from_utf8(output.stdout).expect("sha256sum prints ASCII");
    line.split(' ').next().unwrap_or_default().to_owned()
}

/// Bytes, a multiple of eight, of which no eight in a row are twice there.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect()
}
