//! Hostile workers (`tests/escape`) in the place of a VM's own, and what became of all that they tried.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Part of the tests: what is wrong fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cellblock_escape::all;
use cellblock_escape::bait::{Bait, MARK as MARK_OF_BAIT};
use cellblock_escape::program::{PLACE, place};
use cellblock_escape::report::{END, MARK, read};

use crate::processes::Tree;
use crate::{Lab, User, skip};

/// What is said of a case that is about something which the device has not.
const NOTHING: &str = "nothing is granted";

/// A lab in which hostile workers can be had; `None`, and a line that says why, where none can.
pub fn lab(name: &str) -> Option<Lab> {
    let lab = Lab::with_guests(name)?;
    if lab.places().escape.exists() {
        return Some(lab);
    }
    skip(&format!("{} is not built (scripts/test build)", lab.places().escape.display()));
    None
}

/// The kernel's version.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The hostile worker in the place of `worker`, under the program of `policy`.
pub fn infiltrate(lab: &Lab, worker: &str, policy: &str) {
    let folder = lab.places().dist.join("libexec/cellblock");
    let told = if worker == policy { PLACE } else { place(policy) };
    if worker != policy {
        fs::copy(folder.join(format!("{policy}.bpf")), folder.join(format!("{worker}.bpf"))).unwrap();
    }
    let program = folder.join(worker);
    install(&lab.places().escape, &PLACE, &told, &program);
    install(&program, &MARK_OF_BAIT, Bait::of(std::process::id()).mark(), &program);
}

/// Puts the program `built` where `to` is, with `text` in the one place in it that reads `place`.
pub fn install(built: &Path, place: &[u8], text: &[u8], to: &Path) {
    let mut program = fs::read(built).unwrap();
    let mut found = program.windows(place.len()).enumerate().filter(|(_, bytes)| *bytes == place);
    let (at, _) = found.next().expect("the program's place for a text");
    assert!(found.next().is_none(), "{}: two places for a text", built.display());
    drop(found);
    program[at..at + text.len()].copy_from_slice(text);
    // Beside it first, for what is executed cannot be written.
    let beside = to.with_extension("new");
    fs::write(&beside, program).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(beside, to).unwrap();
}

/// Runs a VM whose `workers`, named with the policy of each, are hostile, and judges what they tell; its guest asks nothing of any of
/// them, and goes on. Returns who got past its policy with what.
pub fn judge(
    lab: &Lab,
    user: &User,
    seccomp: bool,
    workers: &[(String, String)],
) -> BTreeMap<&'static str, BTreeSet<String>> {
    let without: &[&str] = if seccomp { &[] } else { &["--without-layer", "seccomp"] };
    // A guest that has its serial port can say that it goes on.
    let talks = workers.iter().all(|(worker, _)| worker != "serial");
    let guest = lab.guest(if talks { "echo" } else { "idle" });
    let plan = guest.with_every_device().with(["-vv"]).with(without.iter().copied()).as_user(user);
    let mut vm = plan.start().patient(3 * crate::vm::patience());
    for (worker, _) in workers {
        vm.expect_message(&format!("{worker}: {MARK} {END}")).unwrap();
    }
    let messages = vm.messages();
    let who = if matches!(user, User::Own) { "the tests' user" } else { "an ordinary user" };
    let with = if seccomp { "with" } else { "without" };
    let (mut wrong, mut passed) = (Vec::new(), BTreeMap::<_, BTreeSet<_>>::new());
    for (worker, policy) in workers {
        let reports = read(&messages, worker);
        let names: Vec<_> = reports.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, all().map(|case| case.name).collect::<Vec<_>>(), "{worker}");
        let mut held = BTreeMap::<&str, u32>::new();
        for (case, (_, report)) in all().zip(reports) {
            match case.judge(report, seccomp, kernel()) {
                Ok("seccomp") => *held.entry("seccomp").or_default() += 1,
                Ok(layer) => {
                    *held.entry(layer).or_default() += 1;
                    if layer != NOTHING {
                        passed.entry(case.name).or_default().insert(policy.clone());
                    }
                }
                Err(why) => wrong.push(format!("{policy}: {why}")),
            }
        }
        println!("{policy} of {who} {with} seccomp: {held:?}");
    }
    assert!(wrong.is_empty(), "of {who} {with} seccomp: {wrong:#?}");
    // Nobody had to be replaced, and the supervisor answers.
    let tree = Tree::of_vm(&lab.places().program(), plan.id()).unwrap();
    for row in &tree.processes {
        assert!(row.restarts.is_none_or(|restarts| restarts == 0), "{row:?}");
    }
    if talks {
        vm.type_in("still there\n").unwrap();
        vm.expect("still there").unwrap();
    }
    let image = fs::metadata(lab.folder().join(format!("{}.img", plan.id()))).unwrap();
    assert_eq!(image.len(), 4096, "the disk's image");
    passed
}
