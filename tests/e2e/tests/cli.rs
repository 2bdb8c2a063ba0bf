//! The command line: what is wrong is named, with its documented status.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::path::Path;
use std::process::{Command, Stdio};

use cellblock_e2e::leftovers::Memfds;
use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Places, User, Vm, skip};

/// The program, or `None` and a line that says why where it is not built.
fn program() -> Option<std::path::PathBuf> {
    let program = Places::find().program();
    if !program.exists() {
        skip(&format!("{} is not built (scripts/build)", program.display()));
        return None;
    }
    Some(program)
}

#[track_caller]
#[allow(clippy::panic)] // A helper of tests.
fn refused(program: &Path, arguments: &[&str], status: i32, says: &[&str]) {
    let ended = Vm::start(program, &User::Own, arguments).and_then(Vm::wait);
    let Ok(ended) = ended else { panic!("{arguments:?}: {ended:?}") };
    assert_eq!(ended.code(), status, "{arguments:?}: {ended}");
    for text in says {
        assert!(ended.messages.contains(text), "{arguments:?} does not say {text:?}: {ended}");
    }
}

#[test]
fn a_wrong_value_names_the_field_the_value_and_what_is_allowed() {
    let Some(program) = program() else { return };
    let wrong: &[(&[&str], &[&str])] = &[
        (&["--cpus", "0"], &["cpus", "0", "1 to 32"]),
        (&["--cpus", "33"], &["cpus", "33", "1 to 32"]),
        (&["--cpus", "many"], &["cpus", "many"]),
        (&["--memory", "1"], &["memory", "1"]),
        (&["--memory", "lots"], &["memory", "lots"]),
        (&["--serial", "carrier-pigeon"], &["serial", "carrier-pigeon", "stdio"]),
        (&["--on-reboot", "explode"], &["on-reboot", "explode", "exit", "restart"]),
        (&["--without-layer", "onion"], &["without-layer", "onion", "seccomp"]),
        (&["--id", "a b"], &["id", "a b", "letters"]),
        (&["--boot-protocol", "morse"], &["boot-protocol", "morse", "pvh"]),
        (&["--poll-max-us=-1"], &["poll-max-us", "-1"]),
    ];
    for (arguments, says) in wrong {
        refused(&program, &[&["run", "--kernel", "/dev/null"][..], arguments].concat(), 2, says);
    }
}

#[test]
fn unknown_commands_and_options_are_usage_errors() {
    let Some(program) = program() else { return };
    refused(&program, &[], 2, &["run"]);
    refused(&program, &["fly"], 2, &["fly"]);
    refused(&program, &["run", "--wings"], 2, &["--wings"]);
    refused(&program, &["run"], 2, &["kernel"]);
}

#[test]
fn help_teaches() {
    let Some(program) = program() else { return };
    for arguments in [&["--help"][..], &["run", "--help"], &["doctor", "--help"], &["ps", "--help"]] {
        let ended = Vm::start(&program, &User::Own, arguments).unwrap().wait().unwrap();
        assert_eq!(ended.code(), 0, "{ended}");
        assert!(ended.output.contains("Usage"), "{ended}");
    }
    let ended = Vm::start(&program, &User::Own, ["run", "--help"]).unwrap().wait().unwrap();
    for text in ["Examples:", "Exit status:", "--without-layer", "--on-reboot"] {
        assert!(ended.output.contains(text), "run --help does not say {text:?}");
    }
}

#[test]
fn files_that_cannot_be_used_refuse_the_start() {
    let Some(program) = program() else { return };
    refused(&program, &["run", "--kernel", "/no/such/kernel"], 3, &["/no/such/kernel"]);
    let Some(lab) = Lab::with_guests("files") else { return };
    let hello = lab.places().guest("hello").display().to_string();
    refused(&program, &["run", "--kernel", &hello, "--initrd", "/no/such/initrd"], 3, &["/no/such/initrd"]);
    refused(&program, &["run", "--kernel", &hello, "--worker-dir", "/no/such/dir"], 3, &["/no/such/dir"]);
    let text = lab.folder().join("text");
    std::fs::write(&text, "this is no kernel").unwrap();
    refused(&program, &["run", "--kernel", &text.display().to_string()], 3, &["kernel"]);
}

/// As root, whoever may make links in a folder on the way could have the VM read, write to, run or reach what is not his.
#[test]
fn root_follows_nobodys_links_on_any_path() {
    if !rustix::process::geteuid().is_root() {
        return skip("root alone can make a stranger's link");
    }
    let Some(lab) = Lab::with_guests("links") else { return };
    let at = |name: &str| lab.folder().join(name);
    let text = |path: &Path| path.display().to_string();
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, at(name)).unwrap();
        std::os::unix::fs::lchown(at(name), Some(12345), None).unwrap();
        text(&at(name))
    };
    let program = lab.places().program();
    let kernel = text(&lab.places().guest("poweroff"));
    std::fs::create_dir(at("real")).unwrap();
    std::fs::write(at("real/file"), [0; 4096]).unwrap();
    let (folder, file) = (link(&at("real"), "folder"), link(&at("real/file"), "file"));
    let linked_kernel = link(Path::new(&kernel), "kernel");
    let workers = link(&lab.places().dist.join("libexec/cellblock"), "workers");
    let real = text(&at("real/file"));
    let cases: &[&[&str]] = &[
        &["run", "--kernel", &linked_kernel],
        &["run", "--kernel", &kernel, "--initrd", &file],
        &["run", "--kernel", &kernel, "--disk", &format!("path={file}")],
        &["run", "--kernel", &kernel, "--disk", &format!("path={folder}/file,readonly")],
        &["run", "--kernel", &kernel, "--disk", &format!("path={real},backing={file},format=qcow2")],
        &["run", "--kernel", &kernel, "--serial", &format!("file={folder}/log")],
        &["run", "--kernel", &kernel, "--serial", &format!("socket={folder}/socket")],
        &["run", "--kernel", &kernel, "--vsock", &format!("cid=3,path={folder}/socket")],
        &["run", "--kernel", &kernel, "--worker-dir", &workers],
        &["vhost-user", "--socket", &format!("{folder}/socket"), "--rng"],
    ];
    for arguments in cases {
        refused(
            &program,
            arguments,
            3,
            &["symbolic link of uid 12345", "root does not follow", "name what it leads to"],
        );
    }
    assert_eq!(std::fs::read_dir(at("real")).unwrap().count(), 1, "something was made behind the link");
    // Root's own links are followed, as /var/run.
    std::os::unix::fs::symlink(&kernel, at("own")).unwrap();
    let plan = lab.plan().with(["--kernel", &text(&at("own"))]).start().wait().unwrap();
    plan.assert(0, "guest powered off");
}

#[test]
fn a_configuration_file_says_the_same_and_its_errors_have_a_place() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    refused(
        &program,
        &["run", "--config", &write("a.toml", "cpus = 99\nkernel = \"k\"")],
        2,
        &["cpus", "99", "1 to 32"],
    );
    refused(&program, &["run", "--config", &write("b.toml", "wings = 2")], 2, &["wings", "b.toml"]);
    refused(&program, &["run", "--config", &write("c.json", "{\"cpus\": }")], 2, &["c.json", "line 1"]);
    refused(&program, &["run", "--config", &write("d.yaml", "")], 2, &[".toml or .json"]);
    refused(&program, &["run", "--config", "/no/such.toml"], 2, &["/no/such.toml"]);
}

#[test]
fn a_configuration_file_boots_a_guest() {
    let Some(lab) = Lab::with_guests("config") else { return };
    let config = lab.folder().join("guest.toml");
    let kernel = lab.places().guest("poweroff");
    std::fs::write(&config, format!("kernel = {kernel:?}\nmemory = \"64M\"\non-reboot = \"exit\"\n"))
        .unwrap();
    let ended = lab.plan().with(["--config", &config.display().to_string()]).start().wait().unwrap();
    ended.assert(0, "guest powered off");
}

#[test]
fn doctor_reports_as_text_and_as_json() {
    let Some(program) = program() else { return };
    let text = Command::new(&program).arg("doctor").output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).to_lowercase();
    for topic in ["kvm", "kernel code", "layer user", "landlock", "cgroup", "futex_waitv", "hugepages"] {
        assert!(text.contains(topic), "doctor does not mention {topic}:\n{text}");
    }
    let json = Command::new(&program).args(["doctor", "--json"]).output().unwrap();
    serde_json::from_slice::<serde_json::Value>(&json.stdout).expect("doctor --json prints JSON");
}

#[test]
fn who_stops_listening_is_no_error() {
    let Some(program) = program() else { return };
    let nobody = || Stdio::from(std::io::pipe().unwrap().1);
    let doctor = |stdout| Command::new(&program).arg("doctor").stdout(stdout).status().unwrap().code();
    assert!(matches!(doctor(Stdio::null()), Some(0 | 3)));
    assert_eq!(doctor(nobody()), doctor(Stdio::null()));
    let refused =
        Command::new(&program).args(["run", "--kernel", "/dev/null"]).stderr(nobody()).status().unwrap();
    assert!(matches!(refused.code(), Some(1..=7)), "{refused}");
    // A disk without room is one.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(doctor(full.into()), Some(1));
}

#[test]
fn a_host_that_emulates_kernel_code_refuses_linux_with_one_sentence() {
    let Some(lab) = Lab::with_guests("emulating") else { return };
    let bz_image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/images/x86_64/bzImage");
    if !bz_image.exists() {
        return skip("no bzImage (scripts/images)");
    }
    let doctor = Command::new(lab.places().program()).arg("doctor").output().unwrap();
    if !String::from_utf8_lossy(&doctor.stdout).contains("emulate") {
        return skip("this host runs kernel code natively");
    }
    let scope = lab.scope();
    let before = scope.census();
    let ended = lab.plan().with(["--kernel", &bz_image.display().to_string()]).start().wait().unwrap();
    ended.assert(3, "emulate");
    assert!(ended.messages.contains("--force"), "{ended}");
    scope.wait_for(&before, &Memfds::default(), patience()).unwrap();
}

#[test]
fn a_name_is_used_once_at_a_time() {
    let Some(lab) = Lab::with_guests("twice") else { return };
    let first = lab.guest("hello");
    let vm = first.start();
    vm.expect_any().unwrap();
    refused(
        &lab.places().program(),
        &["run", "--id", first.id(), "--kernel", &lab.places().guest("hello").display().to_string()],
        3,
        &[first.id()],
    );
}
