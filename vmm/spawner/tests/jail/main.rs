//! Real workers, started through the whole jail and looked at from /proc; they try what a worker must not do and say what
//! happened. Runs as root, and then again as an ordinary user.
//!
//! No test harness: it would have threads, and the spawner is forked from a process with one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // All of this is test code.

mod attempts;
mod endings;
mod latency;
mod layers;
mod machine;

use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

use machine::Prober;

/// A case by name.
type Case = (&'static str, fn(&Prober));

const CASES: &[Case] = &[
    ("a_worker_is_confined_by_every_layer", layers::every_layer),
    ("the_spawner_is_confined_too", layers::spawner),
    ("each_layer_can_be_done_without", layers::each_without),
    ("without_user_an_ordinary_user_is_told_what_else", layers::conflict),
    ("workers_have_ids_of_their_own_as_root", layers::own_ids),
    ("strict_policy_kills_what_it_does_not_name", attempts::strict),
    ("without_seccomp_the_other_layers_refuse", attempts::loose),
    ("the_thread_limit_is_exact", attempts::threads),
    ("a_worker_may_have_large_files", attempts::file_sizes),
    ("every_end_is_reported", endings::reported),
    ("a_worker_that_cannot_enter_is_reported", endings::cannot_enter),
    ("only_what_the_manifest_names_is_started", endings::refused),
    ("a_worker_has_several_processes_but_not_too_many", endings::several),
    ("a_binary_that_is_offered_is_started_in_the_same_jail", endings::offered),
    ("a_spawner_that_does_not_read_now_does_so_later", endings::slow_spawner),
    ("a_worker_is_started_again_after_its_end", endings::again),
    ("nothing_is_left_when_the_socket_closes", endings::socket_closes),
    ("nothing_is_left_when_init_is_killed", endings::init_killed),
    ("workers_outlive_the_spawner", endings::spawner_killed),
    ("nothing_is_left_without_a_pid_namespace", endings::no_pid_namespace),
    ("start_latency", latency::report),
];

/// `nobody`, who has no rights anywhere.
const USER: u32 = 65534;

fn main() -> ExitCode {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let prober = match std::env::var_os("CELLBLOCK_PROBER") {
        Some(folder) => Prober::built(folder.into()),
        None => match Prober::build() {
            Ok(prober) => prober,
            Err(why) => {
                eprintln!("SKIP: {why}");
                return ExitCode::SUCCESS;
            }
        },
    };
    let mut failed = run(&prober, wanted.as_deref());
    if machine::is_root() {
        failed |= !as_user(&prober, wanted.as_deref());
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Returns whether a case failed.
fn run(prober: &Prober, wanted: Option<&str>) -> bool {
    let who = if machine::is_root() { "root" } else { "user" };
    let mut failed = false;
    for (name, case) in CASES.iter().filter(|(name, _)| wanted.is_none_or(|part| name.contains(part))) {
        let passed = catch_unwind(AssertUnwindSafe(|| case(prober))).is_ok();
        println!("test {who}::{name} ... {}", if passed { "ok" } else { "FAILED" });
        failed |= !passed;
    }
    failed
}

/// This program again, as an ordinary user. Returns whether it passed.
fn as_user(prober: &Prober, wanted: Option<&str>) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.args(wanted).env("CELLBLOCK_PROBER", prober.folder()).uid(USER).gid(USER);
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("SKIP: the test program cannot be run as uid {USER}: {error}");
            true
        }
    }
}
