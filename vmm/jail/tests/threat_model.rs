//! Each promise of the threat model (`README.md`) names the tests that try to break it; here is looked whether there are such.
#![allow(clippy::unwrap_used, clippy::panic)] // All of this is test code.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_promise_has_a_test() {
    let jail = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["../../protocol", "../../vmm", "../../device-procs", "../../tests"] {
        sources(&jail.join(folder), &mut paths);
    }
    let text: String = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let readme = fs::read_to_string(jail.join("README.md")).unwrap();
    let promises = readme.split("\n## Promises\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut expected = 1;
    for line in promises.lines() {
        let Some((number, promise)) = line.split_once(". ") else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        assert_eq!(number, expected, "the promises are numbered");
        expected += 1;
        let tests: Vec<_> = promise.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "promise {number} has no test");
        for test in tests {
            // Either a function of the harness, or a case in a list of those that need a process of one thread.
            let stands = text.contains(&format!("fn {test}(")) || text.contains(&format!("(\"{test}\","));
            assert!(stands, "promise {number}: there is no test {test}");
        }
    }
    assert!(expected > 10, "only {} promises were found", expected - 1);
}
