//! Who may depend on whom, where `unsafe` and `target_arch` may stand, and what lies at the top of the tree.
#![allow(clippy::unwrap_used, clippy::panic)] // A rule that cannot be looked up fails as loudly as one that is broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A crate of the workspace: its folder (`vmm/jail`) and the folders of those that it depends on, for use or build.
struct Member {
    folder: String,
    depends_on: Vec<String>,
}

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn members() -> Vec<Member> {
    let root = root();
    let folder = |path: &str| Path::new(path).strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    packages()
        .iter()
        .map(|package| Member {
            folder: folder(package["manifest_path"].as_str().unwrap())
                .trim_end_matches("/Cargo.toml")
                .to_owned(),
            depends_on: package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .filter_map(|dependency| dependency["path"].as_str().map(folder))
                .collect(),
        })
        .collect()
}

/// Every Rust source of the workspace, as (path from the root, text).
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    for top in ["protocol", "vmm", "device-procs", "tests"] {
        walk(&root.join(top), &mut found);
    }
    assert!(found.len() > 50, "the walk found only {} sources", found.len());
    let relative = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

fn top(folder: &str) -> &str {
    folder.split('/').next().unwrap()
}

#[test]
fn arrows_go_one_way() {
    let mut wrong = Vec::new();
    for member in members() {
        for dependency in &member.depends_on {
            let allowed = match top(&member.folder) {
                "protocol" => top(dependency) == "protocol",
                "vmm" => matches!(top(dependency), "protocol" | "vmm"),
                "device-procs" => matches!(top(dependency), "protocol" | "device-procs"),
                _ => true,
            };
            if !allowed {
                wrong.push(format!("{} -> {dependency}", member.folder));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn devices_do_not_know_each_other() {
    for member in members().iter().filter(|member| top(&member.folder) == "device-procs") {
        let others =
            member.depends_on.iter().filter(|d| top(d) == "device-procs" && *d != "device-procs/sdk");
        assert_eq!(others.count(), 0, "{} depends on another device", member.folder);
    }
}

#[test]
fn config_is_data_only() {
    let config = members().into_iter().find(|member| member.folder == "vmm/config").unwrap();
    // The wire's plain values are the one thing that it shares.
    assert_eq!(config.depends_on, ["protocol/wire"]);
}

/// Workers that end at a chosen step are for tests: nobody who is built for use asks for them.
#[test]
fn no_program_has_fail_points() {
    const FEATURE: &str = "fail-points";
    let asks = |features: &serde_json::Value| {
        let mut features = features.as_array().unwrap().iter().filter_map(|name| name.as_str());
        features.any(|name| name == FEATURE || name.ends_with("/fail-points"))
    };
    let (mut wrong, mut owners) = (Vec::new(), Vec::new());
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        if dependencies.filter(|one| one["kind"] != "dev").any(|one| asks(&one["features"])) {
            wrong.push(format!("a dependency of {name}"));
        }
        for (feature, implied) in package["features"].as_object().unwrap() {
            if asks(implied) {
                wrong.push(format!("feature {feature} of {name}"));
            }
            if feature == FEATURE {
                owners.push(name.to_owned());
            }
        }
    }
    if fs::read_to_string(root().join("scripts/build")).unwrap().contains(FEATURE) {
        wrong.push("scripts/build".to_owned());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(owners, ["cellblock-sdk"], "who has them, and has to keep them off");
}

/// Where a module may opt in to `unsafe`. The workspace denies it here and in tests; all else forbids it, which nothing takes back.
const UNSAFE: [&str; 4] = ["vmm/hypervisor-kvm", "vmm/memory", "vmm/jail", "protocol/channel"];
/// Programs that take the part of a worker or a VMM in tests.
const UNSAFE_IN_TESTS: [&str; 3] = ["tests/escape", "tests/exits", "tests/hostile"];

fn may_be_unsafe(folder: &str) -> bool {
    UNSAFE.contains(&folder) || UNSAFE_IN_TESTS.contains(&folder)
}

#[test]
fn unsafe_is_forbidden_outside_four_crates() {
    let root = root();
    let has = |path: &Path, line: &str| fs::read_to_string(path).unwrap().lines().any(|found| found == line);
    let (mut wrong, mut forbidding) = (Vec::new(), 0);
    for package in packages() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(&root).unwrap().to_str().unwrap();
        if !has(manifest, "[lints]") || has(manifest, "[lints.rust]") {
            wrong.push(format!("{folder}: its lints are not the workspace's"));
        }
        for target in package["targets"].as_array().unwrap() {
            let is_test = target["kind"].as_array().unwrap().iter().any(|kind| kind == "test");
            let source = Path::new(target["src_path"].as_str().unwrap());
            if is_test || may_be_unsafe(folder) {
                continue;
            }
            forbidding += 1;
            if !has(source, "#![forbid(unsafe_code)]") {
                wrong.push(format!("{} does not forbid it", source.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(forbidding > 40, "only {forbidding} targets were looked at");
    assert!(has(&root.join("Cargo.toml"), "unsafe_code = \"deny\""), "the workspace does not deny it");
}

/// What a macro brings into another crate is that crate's by no lint: so none may be written where `unsafe` is forbidden.
#[test]
fn no_macro_takes_unsafe_elsewhere() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            let mut folder = path.splitn(3, '/');
            let folder = format!("{}/{}", folder.next().unwrap(), folder.next().unwrap());
            !is_test(path) && !may_be_unsafe(&folder) && text.lines().any(is_unsafe)
        })
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for line in [
        "    unsafe { f() }",
        "#[unsafe(no_mangle)]",
        "pub unsafe fn f() {",
        "x(unsafe",
        "unsafe extern \"C\" {",
    ] {
        assert!(is_unsafe(line), "{line}");
    }
    for line in [
        "// unsafe {}",
        "#![forbid(unsafe_code)]",
        "Cache::Unsafe => \"unsafe\",",
        "not_unsafe(1)",
        "cache=direct|unsafe][,",
    ] {
        assert!(!is_unsafe(line), "{line}");
    }
}

/// Whether the keyword stands in this line, before what it is said of.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap();
    code.match_indices("unsafe").any(|(at, word)| {
        let said_of = code[at + word.len()..].trim_start();
        !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            && (said_of.is_empty()
                || ["{", "(", "fn ", "impl", "extern", "trait"].iter().any(|s| said_of.starts_with(s)))
    })
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Where the target may be asked for: back ends, the board, and what names system calls or reads a thread's registers.
const TARGET: [&str; 5] = [
    "vmm/hypervisor-kvm/",
    "vmm/arch/",
    "protocol/policy/",
    "protocol/channel/src/process/fault.rs",
    "vmm/jail/src/programs.rs",
];

#[test]
fn targets_are_asked_for_only_in_back_ends() {
    let asks = |text: &str| {
        text.lines().any(|line| {
            let code = line.trim_start();
            !code.starts_with("//") && (code.contains("target_arch") || code.contains("target_os"))
        })
    };
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| asks(text) && !is_test(path) && !TARGET.iter().any(|p| path.starts_with(p)))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_say_something() {
    const EMPTY: [&str; 6] = ["util", "utils", "common", "base", "misc", "helper"];
    for (path, _) in sources() {
        for part in path.split('/') {
            let name = part.trim_end_matches(".rs");
            assert!(!EMPTY.contains(&name), "{path} has a name that says nothing");
        }
    }
}

/// What a device promises across a restart is in the table of device-procs/README.md, with the tests that pin it.
#[test]
fn each_device_has_a_pinned_restart_guarantee() {
    let readme = fs::read_to_string(root().join("device-procs/README.md")).unwrap();
    let table = readme.split("## What a restart means").nth(1).unwrap().split("\n## ").next().unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .collect();
    let sources = sources();
    for row in &rows {
        let [device, _, guarantee, tests] = row[..] else { panic!("{row:?} has not four columns") };
        let device = quoted(device).remove(0);
        let library = fs::read_to_string(root().join(format!("device-procs/{device}/src/lib.rs"))).unwrap();
        let promise = library.split(&format!("//! {guarantee}. ")).nth(1).unwrap_or_default();
        let promise =
            promise.split(&format!("//! {}. ", guarantee.parse::<u32>().unwrap() + 1)).next().unwrap();
        assert!(
            ["restart", "successor"].iter().any(|word| promise.contains(word)),
            "guarantee {guarantee} of {device} says nothing of a restart"
        );
        for test in quoted(tests) {
            let folder = format!("device-procs/{device}/");
            let stands = |(path, text): &(String, String)| {
                path.starts_with(&folder) && text.contains(&format!("fn {test}("))
            };
            assert!(sources.iter().any(stands), "{device} has no test {test}");
        }
    }
    for member in members().iter().filter(|member| top(&member.folder) == "device-procs") {
        let name = member.folder.trim_start_matches("device-procs/");
        let is_device = !matches!(name, "sdk" | "tombstone");
        let has_row = rows.iter().any(|row| row[0].contains(&format!("`{name}`")));
        assert!(!is_device || has_row, "{name} promises nothing across a restart");
    }
}

#[test]
fn the_top_level_is_short() {
    let allowed = ["protocol", "vmm", "device-procs", "tests", "scripts"];
    let files =
        ["Cargo.toml", "Cargo.lock", "README.md", "LICENSE", "clippy.toml", "rustfmt.toml", "deny.toml"];
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    if !output.status.success() {
        eprintln!("SKIP: this is no git checkout, so what is tracked at the top is unknown");
        return;
    }
    for path in String::from_utf8(output.stdout).unwrap().split('\0').filter(|path| !path.is_empty()) {
        let known = allowed.contains(&top(path)) || files.contains(&path) || path.starts_with('.');
        assert!(known, "{path} lies at the top level");
    }
}
