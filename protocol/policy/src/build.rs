//! For build scripts: a policy beside the crate becomes programs in `OUT_DIR`.
//!
//! ```ignore
//! // build.rs of a device, with policy/x86_64.policy and policy/aarch64.policy beside it
//! fn main() -> Result<(), cellblock_policy::PolicyError> {
//!     cellblock_policy::build::embed("policy/{arch}.policy", "worker")
//! }
//! // main.rs
//! const SERVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/worker.serve.bpf"));
//! ```

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::compile::files_of;
use crate::{Arch, PolicyError, Section, compile_file};

/// Compiles the policy at `path` (relative to the crate; `{arch}` stands for the target's architecture) to
/// `OUT_DIR/<name>.start.bpf`, `<name>.serve.bpf` and `<name>.vhost-user.bpf`, and tells Cargo what to watch.
///
/// # Errors
/// Any of [`PolicyError`].
pub fn embed(path: &str, name: &str) -> Result<(), PolicyError> {
    let arch = Arch::named(&variable("CARGO_CFG_TARGET_ARCH")?)?;
    let path = Path::new(&variable("CARGO_MANIFEST_DIR")?).join(path.replace("{arch}", arch.name()));
    let folder = PathBuf::from(variable("OUT_DIR")?);
    for file in files_of(&path)? {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    for section in [Section::Start, Section::Serve, Section::VhostUser] {
        let program = compile_file(&path, arch, section)?;
        let path = folder.join(format!("{name}.{}.bpf", section.name()));
        fs::write(&path, program).map_err(|source| PolicyError::Write { path, source })?;
    }
    Ok(())
}

fn variable(name: &'static str) -> Result<String, PolicyError> {
    env::var(name).map_err(|_| PolicyError::NotInBuildScript(name))
}
