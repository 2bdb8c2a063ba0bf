//! Which entries of policies a run needed: what strace wrote of it ([`crate::trace`]), held against the text.
//!
//! An entry is one alternative of one line. In `[start]` it must be needed before the worker's sandbox closes, in the other
//! sections afterwards. A line whose comment has `rare: reason` need not be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::compile::files_of;
use crate::parse::{self, Alternative, Comparison, Condition, Line};
use crate::trace::{self, Call, Calls, Under};
use crate::{Arch, INSTRUCTION_BYTES, PolicyError, Section, compile_file};

/// How a rare path is marked.
const RARE: &str = "rare:";
/// The policy that workers are under as well as under their own.
const OVER_WORKERS: &str = "spawner";
/// What every file is taken to end with, and what must be found of it, so that a comparison that finds nothing has looked.
const PLANTED: [(&str, Finding); 2] =
    [("kexec_load", Finding::Unused), ("delete_module # rare:", Finding::NoReason)];

/// Whose policy it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// A device's worker, by its name.
    Worker(String),
    /// A process or thread of the VMM itself.
    Own(String),
}

/// What is wrong with an entry, or worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Nobody needed it.
    Unused,
    /// It is marked as rare, and the mark does not say why.
    NoReason,
    /// It is marked as rare, and somebody needed it. Not wrong: it need not be so the next time.
    RareButUsed,
}

/// An entry, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The policy's file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// The line, and which of its alternatives (from 1).
    pub text: String,
    /// What is to be said of it.
    pub finding: Finding,
}

/// What a run was compared with.
#[derive(Debug)]
pub struct Compared {
    /// Entries that are not as they should be, or that are worth knowing.
    pub found: BTreeSet<Found>,
    /// How many entries there are.
    pub entries: usize,
    /// How many of them somebody needed.
    pub needed: usize,
    /// Those of the policies' owners that did not appear in the run.
    pub absent: Vec<String>,
    /// The files in which what is wrong on purpose was not found.
    pub blind: Vec<PathBuf>,
}

/// One alternative of one line.
#[derive(Debug)]
struct Entry {
    file: PathBuf,
    line: usize,
    text: String,
    call: String,
    alternative: Alternative,
    /// `None`: before the first section, which belongs to all.
    starting: Option<bool>,
    /// The reason, if it is marked.
    rare: Option<String>,
}

/// Holds what strace wrote (`traces`) against `policies` and what they include. An entry is needed if anybody needs it whose
/// policy has it; workers are under the spawner's, too.
///
/// # Errors
/// A policy cannot be read, or two of the VMM's own have programs of one length, by which they could not be told apart.
pub fn compare(
    arch: Arch,
    policies: &[(Whose, PathBuf)],
    traces: &[String],
) -> Result<Compared, PolicyError> {
    let lengths = lengths(arch, policies)?;
    let mut calls = Calls::new();
    traces.iter().for_each(|trace| trace::read(trace, &lengths, &mut calls));
    let of_workers: BTreeSet<Call> = calls
        .iter()
        .filter(|(under, _)| matches!(under, Under::Worker(_)))
        .flat_map(|(_, calls)| calls.iter().cloned())
        .collect();
    let (mut entries, mut needed, mut absent) = (BTreeMap::new(), BTreeSet::new(), vec![]);
    for (whose, policy) in policies {
        let (under, name) = match whose {
            Whose::Worker(name) => (Under::Worker(name.clone()), name),
            Whose::Own(name) => (Under::Own(name.clone()), name),
        };
        let mut made = calls.get(&under).cloned().unwrap_or_default();
        if made.is_empty() {
            absent.push(name.clone());
        }
        if under == Under::Own(OVER_WORKERS.to_owned()) {
            made.extend(of_workers.iter().cloned());
        }
        for file in files_of(policy)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|source| PolicyError::Read { path: file.clone(), source })?;
            let text = PLANTED.iter().fold(text.trim_end().to_owned(), |text, (line, _)| text + "\n" + line);
            for entry in entries_of(&file.canonicalize().unwrap_or(file), &text) {
                let key = (entry.file.clone(), entry.line, entry.text.clone());
                if made.iter().any(|call| entry.is_needed_by(call)) {
                    needed.insert(key.clone());
                }
                entries.insert(key, entry);
            }
        }
    }
    let all = entries.len();
    let found = entries.iter().filter_map(|(key, entry)| entry.found(needed.contains(key)));
    let (planted, found): (BTreeSet<_>, BTreeSet<_>) = found.partition(Found::is_planted);
    let files: BTreeSet<_> = entries.into_values().map(|entry| entry.file).collect();
    let seen = |file: &PathBuf| planted.iter().filter(|found| &found.file == file).count() == PLANTED.len();
    let blind = files.iter().filter(|file| !seen(file)).cloned().collect();
    let entries = all - files.len() * PLANTED.len();
    Ok(Compared { found, entries, needed: needed.len(), absent, blind })
}

/// The lengths of the VMM's own programs, in instructions.
fn lengths(arch: Arch, policies: &[(Whose, PathBuf)]) -> Result<BTreeMap<usize, String>, PolicyError> {
    let mut lengths = BTreeMap::new();
    for (whose, policy) in policies {
        let Whose::Own(name) = whose else { continue };
        let length = compile_file(policy, arch, Section::Serve)?.len() / INSTRUCTION_BYTES;
        if let Some(other) = lengths.insert(length, name.clone()) {
            let what = format!("has {length} instructions, as {other}'s, so a trace cannot tell them apart");
            return Err(PolicyError::Program { file: policy.display().to_string(), what });
        }
    }
    Ok(lengths)
}

impl Found {
    fn is_planted(&self) -> bool {
        PLANTED.iter().any(|(line, finding)| {
            let call = line.split(' ').next().unwrap_or_default();
            self.finding == *finding && self.text == text_of(call, 1)
        })
    }
}

/// How an entry is named.
fn text_of(code: &str, alternative: usize) -> String {
    format!("{} (alternative {alternative})", code.trim())
}

impl Entry {
    fn is_needed_by(&self, made: &Call) -> bool {
        made.name == self.call
            && self.starting.is_none_or(|starting| made.serving != starting)
            && self.alternative.iter().all(|condition| holds(condition, &made.arguments))
    }

    fn found(&self, needed: bool) -> Option<Found> {
        let finding = match (&self.rare, needed) {
            (Some(reason), _) if reason.is_empty() => Finding::NoReason,
            (Some(_), true) => Finding::RareButUsed,
            (None, false) => Finding::Unused,
            (Some(_), false) | (None, true) => return None,
        };
        Some(Found { file: self.file.clone(), line: self.line, text: self.text.clone(), finding })
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

/// The entries of one file.
fn entries_of(file: &Path, text: &str) -> Vec<Entry> {
    let mut starting = None;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match parse::line(line) {
            Ok(Line::Section(name)) => starting = Some(name == "start"),
            Ok(Line::Allow { call, alternatives }) => {
                let (code, comment) = line.split_once('#').unwrap_or((line, ""));
                for (which, alternative) in (1..).zip(alternatives) {
                    found.push(Entry {
                        file: file.to_owned(),
                        line: number,
                        text: text_of(code, which),
                        call: call.clone(),
                        alternative,
                        starting,
                        rare: comment.split_once(RARE).map(|(_, reason)| reason.trim().to_owned()),
                    });
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
11  execveat(4, \"\", [\"serial\"], 0x7f /* 0 vars */, AT_EMPTY_PATH) = 0
11  brk(0)                              = 0x5555
11  clone3({flags=CLONE_VM, exit_signal=0} <unfinished ...>
12  read(0x7, 0x7f, 0x8 <unfinished ...>
11  <... clone3 resumed> => {parent_tid=[12]}, 88) = 12
11  seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=61, filter=0x7f}) = 0
11  fcntl(0x3, 0x4, 0x800)              = 0
";

    /// What is found of a worker called `name` with this policy, as line, text and finding; and who is absent.
    fn found(name: &str, policy: &str) -> (Vec<(usize, String, Finding)>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.policy");
        std::fs::write(folder.path().join("shared.policy"), "[start]\nbrk\nclone3\nread\n").unwrap();
        std::fs::write(&path, policy).unwrap();
        let policies = [(Whose::Worker(name.to_owned()), path)];
        let compared = compare(Arch::X86_64, &policies, &[TRACE.to_owned()]).unwrap();
        let found = compared.found.into_iter().map(|found| (found.line, found.text, found.finding));
        (found.collect(), compared.absent)
    }

    #[test]
    fn an_entry_that_nobody_needs_is_named() {
        let policy = "include shared.policy\n[start]\nmunmap # rare: never here\n[serve]\n\
            fcntl: arg1.low == F_GETFL || arg1.low == F_SETFL && arg2 == O_NONBLOCK\nread\nbrk\n";
        let (found, absent) = found("serial", policy);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|(_, _, finding)| *finding == Finding::Unused), "{found:?}");
        assert!(found[0].1.contains("(alternative 1)") && found[0].1.starts_with("fcntl"), "{found:?}");
        assert_eq!((found[1].0, found[1].1.as_str()), (6, "read (alternative 1)"));
        assert_eq!((found[2].0, found[2].1.as_str()), (7, "brk (alternative 1)"));
        assert!(absent.is_empty());
    }

    #[test]
    fn a_mark_needs_its_reason_and_may_be_wrong() {
        let (found, _) = found(
            "serial",
            "[serve]\nread # rare:  \nbrk # why; rare:\nfcntl # rare: why\nsync # rare: why\n",
        );
        let findings: Vec<_> = found.into_iter().map(|(line, _, finding)| (line, finding)).collect();
        assert_eq!(findings, [(2, Finding::NoReason), (3, Finding::NoReason), (4, Finding::RareButUsed)]);
    }

    #[test]
    fn who_did_not_run_is_named() {
        let (found, absent) = found("rtc", "[serve]\nfcntl\n");
        assert_eq!((found.len(), absent), (1, vec!["rtc".to_owned()]));
    }

    /// Who makes every call, also the one that is planted.
    #[test]
    fn what_finds_nothing_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.policy");
        std::fs::write(&path, "[serve]\nfcntl\n").unwrap();
        let trace = format!("{TRACE}11  kexec_load(0, 0, 0, 0)              = 0\n");
        let policies = [(Whose::Worker("serial".to_owned()), path.clone())];
        let compared = |trace: &str| compare(Arch::X86_64, &policies, &[trace.to_owned()]).unwrap();
        let (seeing, blind) = (compared(TRACE), compared(&trace));
        assert_eq!((seeing.found.len(), seeing.entries, seeing.needed, seeing.blind), (0, 1, 1, vec![]));
        assert_eq!(blind.blind, [path.canonicalize().unwrap()]);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let policies = ["spawner", "loader"].map(|name| {
            let path = folder.path().join(name);
            std::fs::write(&path, "read\n").unwrap();
            (Whose::Own(name.to_owned()), path)
        });
        let error = compare(Arch::X86_64, &policies, &[]).unwrap_err();
        assert!(error.to_string().contains("cannot tell them apart"), "{error}");
    }
}
