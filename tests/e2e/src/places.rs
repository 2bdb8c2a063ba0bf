//! Where the programs, guests and images of the tests are.

use std::env;
use std::path::{Path, PathBuf};

/// The folders that the tests use; see the crate's documentation for the variables.
#[derive(Debug, Clone)]
pub struct Places {
    /// Holds `bin/cellblock` and `libexec/cellblock/`.
    pub dist: PathBuf,
    /// Holds the bare-metal guests.
    pub guests: PathBuf,
    /// Holds `bzImage`, `vmlinux` and `initrd.cpio`, where Linux guests can run.
    pub images: Option<PathBuf>,
    /// Holds workers that end where a test wants it, static ones.
    pub fail_points: PathBuf,
    /// A worker that tries to get out of its jail, a static one.
    pub escape: PathBuf,
    /// A worker that breaks the rules of the protocol, a static one.
    pub hostile: PathBuf,
    /// Holds `vmlinuz`, `initrd.img` and `cmdline` of a Debian whose root file systems are this machine's disks.
    pub debian: Option<PathBuf>,
}

impl Places {
    /// The folders for this process.
    pub fn find() -> Self {
        let emulated = in_emulated_host();
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let dist =
            if emulated { PathBuf::from("/opt/cellblock") } else { checkout.join("dist/x86_64-linux") };
        Places {
            dist: variable("CELLBLOCK_DIST").unwrap_or(dist),
            guests: variable("CELLBLOCK_GUESTS").unwrap_or_else(|| checkout.join(".cache/guests")),
            fail_points: variable("CELLBLOCK_FAIL_POINTS")
                .unwrap_or_else(|| checkout.join(".cache/fail-points")),
            escape: variable("CELLBLOCK_ESCAPE").unwrap_or_else(|| checkout.join(".cache/escape/escape")),
            hostile: variable("CELLBLOCK_HOSTILE").unwrap_or_else(|| checkout.join(".cache/hostile/hostile")),
            images: variable("CELLBLOCK_IMAGES").or_else(|| emulated.then(|| PathBuf::from("/boot"))),
            debian: variable("CELLBLOCK_DEBIAN"),
        }
    }

    /// Debian's kernel and the initrd for QEMU, which needs no KVM here.
    pub fn images_for_qemu(&self) -> PathBuf {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/images/x86_64");
        self.images.clone().unwrap_or(made)
    }

    /// The program under test.
    pub fn program(&self) -> PathBuf {
        self.dist.join("bin/cellblock")
    }

    /// The workers: the device names in `libexec/cellblock`. The tombstone takes part only when a device has failed.
    pub fn workers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dist.join("libexec/cellblock")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.contains('.') && name != "tombstone")
            .collect();
        names.sort();
        names
    }

    /// The bare-metal guest called `name`.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name)
    }

    /// Why no VM can run here, if none can: no program or no `/dev/kvm`. The caller skips its test.
    pub fn why_no_vm(&self) -> Option<String> {
        if !self.program().exists() {
            return Some(format!("{} is not built (scripts/build)", self.program().display()));
        }
        rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK)
            .err()
            .map(|error| format!("/dev/kvm cannot be opened for reading and writing: {error}"))
    }

    /// Why bare-metal guests cannot run here, if they cannot.
    pub fn why_no_guests(&self) -> Option<String> {
        let missing = || format!("{} has no guests (tests/guests/build)", self.guests.display());
        self.why_no_vm().or_else(|| (!self.guests.is_dir()).then(missing))
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether this process runs in `scripts/host`.
pub fn in_emulated_host() -> bool {
    env::var_os("CELLBLOCK_EMULATED_HOST").is_some()
}
