//! Which entries of policies a run of workers needed: what strace wrote of them, held against the text.
//!
//! An entry is one alternative of one line. In `[start]` it must be needed before the worker's sandbox closes, elsewhere
//! afterwards. A line whose comment has `rare: reason` need not be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::PolicyError;
use crate::compile::files_of;
use crate::parse::{self, Alternative, Comparison, Condition, Line};

/// How a rare path is marked.
const RARE: &str = "rare: ";
/// How a worker is executed (`jail::worker`): from then on its calls count.
const EXEC: &str = "execveat";

/// One call of a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    name: String,
    arguments: [u64; 6],
    /// After its sandbox was closed.
    serving: bool,
}

/// The calls of all workers in `strace -f -e raw=all`'s output: what a process does after it has executed a binary by its
/// descriptor, and its threads.
fn calls(trace: &str) -> BTreeSet<Call> {
    // A thread may be heard of before its maker is told its number.
    let mut process_of = BTreeMap::<u32, u32>::new();
    let mut pending = BTreeMap::<u32, String>::new();
    let mut started = BTreeMap::<u32, usize>::new();
    let events: Vec<(u32, &str)> = trace.lines().filter_map(event).collect();
    for (index, (thread, text)) in events.iter().enumerate() {
        let resumed = text.starts_with("<... ");
        let name = match text.strip_prefix("<... ") {
            Some(rest) => rest.split(' ').next().unwrap_or_default(),
            None => text.split('(').next().unwrap_or_default(),
        };
        if !resumed && text.ends_with("<unfinished ...>") {
            pending.insert(*thread, name.to_owned());
            continue;
        }
        let Some(result) = text.rsplit_once("= ").and_then(|(_, result)| number(result)) else { continue };
        if name == EXEC && result == 0 {
            process_of.insert(*thread, *thread);
            started.insert(*thread, index);
        }
        if let ("clone3", Some(process)) = (name, process_of.get(thread).copied()) {
            process_of.insert(result as u32, process);
        }
    }
    let mut closed = BTreeSet::new();
    let mut found = BTreeSet::new();
    for (index, (thread, text)) in events.iter().enumerate() {
        let Some(process) = process_of.get(thread) else { continue };
        if started.get(process).is_some_and(|start| index <= *start) || text.starts_with("<... ") {
            continue;
        }
        let Some((name, rest)) = text.split_once('(') else { continue };
        let mut arguments = [0; 6];
        let words = rest.split([',', ')']).map(str::trim);
        for (to, word) in arguments.iter_mut().zip(words) {
            *to = number(word).unwrap_or(0);
        }
        let serving = closed.contains(process);
        found.insert(Call { name: name.to_owned(), arguments, serving });
        if name == "seccomp" {
            closed.insert(*process);
        }
    }
    found
}

/// `PID  text`.
fn event(line: &str) -> Option<(u32, &str)> {
    let (thread, text) = line.split_once(' ')?;
    Some((thread.parse().ok()?, text.trim_start()))
}

fn number(word: &str) -> Option<u64> {
    let word = word.split_whitespace().next()?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
    let whole = arguments.get(usize::from(condition.argument)).copied().unwrap_or(0);
    let (value, wanted) = match condition.low {
        true => (u64::from(whole as u32), u64::from(condition.value as u32)),
        false => (whole, condition.value),
    };
    match condition.comparison {
        Comparison::Equal => value == wanted,
        Comparison::NotEqual => value != wanted,
        Comparison::Less => value < wanted,
        Comparison::LessOrEqual => value <= wanted,
        Comparison::Greater => value > wanted,
        Comparison::GreaterOrEqual => value >= wanted,
        Comparison::MaskedEqual(mask) => value & mask == wanted,
    }
}

/// An entry that nobody needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unused {
    /// The policy's file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// The line, and which of its alternatives (from 1).
    pub text: String,
}

/// The entries of `policies`, and of what they include, that no worker needed in its own traces. Each is a policy with the
/// texts that strace wrote of its device's workers; an included entry is needed if any device's workers need it.
///
/// # Errors
/// A policy cannot be read.
pub fn unused(policies: &[(PathBuf, Vec<String>)]) -> Result<BTreeSet<Unused>, PolicyError> {
    let (mut entries, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for (policy, traces) in policies {
        let calls: BTreeSet<Call> = traces.iter().flat_map(|trace| calls(trace)).collect();
        for file in files_of(policy)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|source| PolicyError::Read { path: file.clone(), source })?;
            let file = file.canonicalize().unwrap_or(file);
            for (entry, call, alternative, starting) in entries_of(&file, &text) {
                let needs = |made: &Call| {
                    made.name == call
                        && made.serving != starting
                        && alternative.iter().all(|condition| holds(condition, &made.arguments))
                };
                if calls.iter().any(needs) {
                    needed.insert(entry.clone());
                }
                entries.insert(entry);
            }
        }
    }
    Ok(entries.difference(&needed).cloned().collect())
}

/// The entries of one file that are not rare: with the call, the alternative and whether it is for the start alone.
fn entries_of(file: &Path, text: &str) -> Vec<(Unused, String, Alternative, bool)> {
    let mut starting = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match parse::line(line) {
            Ok(Line::Section(name)) => starting = name == "start",
            Ok(Line::Allow { call, alternatives }) if !line.contains(RARE) => {
                for (which, alternative) in (1..).zip(alternatives) {
                    let code = line.split('#').next().unwrap_or_default().trim();
                    let text = format!("{code} (alternative {which})");
                    found.push((
                        Unused { file: file.to_owned(), line: number, text },
                        call.clone(),
                        alternative,
                        starting,
                    ));
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
10  mmap(0, 0x1000, 0x7, 0x22, 0xffffffff, 0) = 0x7f0000000000
11  execveat(0x4, 0x7f, 0x7f, 0x7f, 0x1000 <unfinished ...>
10  close(0x9)                          = 0
11  <... execveat resumed>)             = 0
11  brk(0)                              = 0x5555
11  clone3(0x7f, 0x58 <unfinished ...>
12  read(0x7, 0x7f, 0x8 <unfinished ...>
11  <... clone3 resumed>)               = 12
11  seccomp(0x1, 0x3, 0x7f)             = 0
12  <... read resumed>)                 = 8
11  fcntl(0x3, 0x4, 0x800)              = 0
";

    #[test]
    fn what_workers_called_is_known_by_phase_and_thread() {
        let calls = calls(TRACE);
        let made =
            |name: &str, serving| calls.iter().any(|call| call.name == name && call.serving == serving);
        assert!(made("brk", false) && made("read", false) && made("fcntl", true) && made("seccomp", false));
        assert!(!calls.iter().any(|call| ["mmap", "close", "execveat"].contains(&&*call.name)));
    }

    #[test]
    fn an_entry_that_nobody_needs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.policy");
        std::fs::write(folder.path().join("shared.policy"), "[start]\nbrk\nclone3\nread\n").unwrap();
        let policy = "include shared.policy\n[start]\nmunmap # rare: never here\n[serve]\nfcntl: arg1.low == F_GETFL || arg1.low == F_SETFL && arg2 == O_NONBLOCK\nread\nbrk\n";
        std::fs::write(&path, policy).unwrap();
        let found = unused(&[(path, vec![TRACE.to_owned()])]).unwrap();
        let found: Vec<_> = found.iter().map(|entry| (entry.line, entry.text.as_str())).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].1.contains("(alternative 1)") && found[0].1.starts_with("fcntl"), "{found:?}");
        assert_eq!(found[1..], [(6, "read (alternative 1)"), (7, "brk (alternative 1)")]);
    }
}
