//! A tap interface that a test's VM leads to.
#![allow(clippy::expect_used, clippy::panic)] // Part of the tests: what goes wrong here fails the test.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Lab, skip};

/// A tap for as long as a test takes.
pub struct Tap<'a> {
    lab: &'a Lab,
    name: String,
}

impl<'a> Tap<'a> {
    /// Made by `cellblock tap create`; `None`, and a line that says why, where that cannot be.
    pub fn create(lab: &'a Lab, name: &str, address: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            skip("taps need root and /dev/net/tun");
            return None;
        }
        let output = Command::new(lab.places().program())
            .args(["tap", "create", name, "--user", "nobody", "--address", address])
            .output()
            .expect("cellblock is executable");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Tap { lab, name: name.to_owned() })
    }

    /// Queues that carry frames.
    pub fn queues(&self) -> usize {
        let queues = fs::read_dir(format!("/sys/class/net/{}/queues", self.name)).expect("the tap is there");
        queues.flatten().filter(|queue| queue.file_name().to_string_lossy().starts_with("tx-")).count()
    }

    /// Deletes it by `cellblock tap delete`; whether that was done.
    pub fn delete(&self) -> bool {
        let deleted = Command::new(self.lab.places().program()).args(["tap", "delete", &self.name]).output();
        deleted.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        self.delete();
    }
}
