//! Workers run under the spawner's program as well as under their own, so what a device's policy allows the spawner's must
//! allow, too.
#![allow(clippy::unwrap_used)] // All of this is test code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The calls that a policy names, in any section.
fn calls(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap().trim());
    let lines =
        lines.filter(|line| !line.is_empty() && !line.starts_with('[') && !line.starts_with("include "));
    lines.map(|line| line.split(':').next().unwrap().trim().to_owned()).collect()
}

fn policies_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            policies_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "policy") {
            found.push(path);
        }
    }
}

#[test]
fn the_spawners_policy_allows_what_any_device_may_need() {
    let jail = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut devices = Vec::new();
    policies_below(&jail.join("../../device-procs"), &mut devices);
    if devices.is_empty() {
        eprintln!("SKIP: no device has a policy");
    }
    for path in devices {
        let arch = if path.to_string_lossy().contains("aarch64") { "aarch64" } else { "x86_64" };
        let spawner = calls(&fs::read_to_string(jail.join(format!("policy/{arch}/spawner.policy"))).unwrap());
        let device = calls(&fs::read_to_string(&path).unwrap());
        let missing: Vec<&String> = device.difference(&spawner).collect();
        assert!(
            missing.is_empty(),
            "{} needs {missing:?}, which {arch}/spawner.policy lacks",
            path.display()
        );
    }
}
