//! What strace wrote of workers, and of the VMM's own processes: which calls each made under which of its programs.
//!
//! Read is the output of `strace -f --seccomp-bpf --decode-pids=pidns -e 'raw=!seccomp,clone3,execveat'`. A worker is known by the
//! name under which its binary is executed by its descriptor (`jail::worker`); its calls count from then on, and those of
//! its threads. Which of its own programs a thread of the VMM installs is known by the program's length.

use std::collections::{BTreeMap, BTreeSet};

use crate::constants;

/// How a worker is executed.
const EXEC: &str = "execveat";
/// How a program is installed.
const INSTALL: &str = "seccomp";
/// How a thread or a process is made.
const CLONE: &str = "clone3";

/// Under what a call was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Under {
    /// The policy of the worker of this name.
    Worker(String),
    /// The policy of the VMM's own process, or thread, of this name.
    Own(String),
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: [u64; 6],
    /// Of a worker: after its sandbox was closed.
    pub(crate) serving: bool,
}

/// Calls by what they were made under.
pub(crate) type Calls = BTreeMap<Under, BTreeSet<Call>>;

/// What a thread inherits.
#[derive(Debug, Clone, Default)]
struct Thread {
    own: Vec<String>,
    /// The worker's name, and its first thread.
    worker: Option<(String, u32)>,
}

/// Adds the calls in `trace` to `calls`. `lengths` are those of the VMM's own programs, in instructions.
pub(crate) fn read(trace: &str, lengths: &BTreeMap<usize, String>, calls: &mut Calls) {
    let events: Vec<(u32, &str)> = trace.lines().filter_map(event).collect();
    let Outcomes { children, executed } = outcomes(&events);
    let mut threads = BTreeMap::<u32, Thread>::new();
    let mut closed = BTreeSet::<u32>::new();
    for (index, (number, text)) in events.iter().enumerate() {
        let thread = threads.entry(*number).or_default().clone();
        if let Some(name) = executed.get(&index) {
            threads.entry(*number).or_default().worker = Some((name.clone(), *number));
            closed.remove(number);
        }
        let Some((name, rest)) = text.split_once('(').filter(|_| !text.starts_with('<')) else { continue };
        let mut arguments = [0; 6];
        for (to, word) in arguments.iter_mut().zip(rest.split([',', ')'])) {
            *to = value(word).unwrap_or(0);
        }
        let serving = thread.worker.as_ref().is_some_and(|(_, process)| closed.contains(process));
        let call = Call { name: name.to_owned(), arguments, serving };
        let own = thread.own.iter().map(|own| Under::Own(own.clone()));
        let worker = thread.worker.iter().map(|(worker, _)| Under::Worker(worker.clone()));
        for under in own.chain(worker) {
            calls.entry(under).or_default().insert(call.clone());
        }
        match (name, &thread.worker) {
            (CLONE, _) => {
                if let Some(child) = children.get(&index) {
                    threads.insert(*child, thread);
                }
            }
            (INSTALL, Some((_, process))) => {
                closed.insert(*process);
            }
            (INSTALL, None) => {
                // Whoever goes on to execute a worker installs that one's.
                let becomes_worker = events
                    .iter()
                    .zip(0..)
                    .skip(index)
                    .any(|((other, _), later)| other == number && executed.contains_key(&later));
                if let Some(own) = length(rest).and_then(|length| lengths.get(&length))
                    && !becomes_worker
                {
                    threads.entry(*number).or_default().own.push(own.clone());
                }
            }
            _ => {}
        }
    }
}

/// What came of those calls that make and change threads.
struct Outcomes {
    /// By the event that began the clone: the thread that it made.
    children: BTreeMap<usize, u32>,
    /// By the event that told the success: the worker's name.
    executed: BTreeMap<usize, String>,
}

fn outcomes(events: &[(u32, &str)]) -> Outcomes {
    let mut begun = BTreeMap::<u32, usize>::new();
    let mut found = Outcomes { children: BTreeMap::new(), executed: BTreeMap::new() };
    for (index, (thread, text)) in events.iter().enumerate() {
        let start = match text.starts_with("<... ") {
            true => begun.remove(thread),
            false => Some(index),
        };
        let Some(start) = start else { continue };
        if text.ends_with("<unfinished ...>") {
            begun.insert(*thread, start);
            continue;
        }
        let Some((_, result)) = text.rsplit_once(" = ") else { continue };
        let (_, made) = events[start];
        if made.starts_with(CLONE) {
            // `3 /* 21804 in strace's PID NS */`, if the maker numbers it otherwise.
            let here = result.split_once("/* ").map_or(result, |(_, here)| here);
            if let Some(child) = number(here).filter(|child| *child > 0) {
                found.children.insert(start, child as u32);
            }
        } else if made.starts_with(EXEC) && number(result) == Some(0) {
            let name = made.split_once("[\"").and_then(|(_, rest)| rest.split('"').next());
            found.executed.insert(index, name.unwrap_or_default().to_owned());
        }
    }
    found
}

/// `PID  text`.
fn event(line: &str) -> Option<(u32, &str)> {
    let (thread, text) = line.split_once(' ')?;
    Some((thread.parse().ok()?, text.trim_start()))
}

/// `…, {len=194, filter=0x…})`.
fn length(arguments: &str) -> Option<usize> {
    let (_, rest) = arguments.split_once("{len=")?;
    rest.split(',').next()?.parse().ok()
}

/// A number, or names joined by `|`.
fn value(word: &str) -> Option<u64> {
    let word = word.split_whitespace().next()?;
    number(word).or_else(|| word.split('|').try_fold(0, |all, name| Some(all | constants::value_of(name)?)))
}

fn number(word: &str) -> Option<u64> {
    let word = word.split_whitespace().next()?;
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
10  mmap(0, 0x1000, 0x7, 0x22, 0xffffffff, 0) = 0x7f0000000000
11  execveat(4, \"\", [\"serial\"], 0x7f /* 0 vars */, AT_EMPTY_PATH <unfinished ...>
10  close(0x9)                          = 0
11  <... execveat resumed>)             = 0
11  brk(0)                              = 0x5555
11  clone3({flags=CLONE_VM, exit_signal=0} <unfinished ...>
12  read(0x7, 0x7f, 0x8 <unfinished ...>
11  <... clone3 resumed> => {parent_tid=[2 /* 12 in strace's PID NS */]}, 88) = 2 /* 12 in strace's PID NS */
11  seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=61, filter=0x7f}) = 0
12  <... read resumed>)                 = 8
12  fcntl(0x3, 0x4, 0x800)              = 0
";

    const VMM: &str = "\
20  ppoll(0x7f, 0x1, 0, 0, 0x8)         = 1
20  clone3({flags=CLONE_PIDFD, exit_signal=SIGCHLD} => {pidfd=[12]}, 88) = 30
20  seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=98, filter=0x7f}) = 0
20  clone3({flags=CLONE_PIDFD, exit_signal=SIGCHLD} => {pidfd=[12]}, 88) = 2 /* 21 in strace's PID NS */
20  recvmsg(0x7, 0x7f, 0)               = 8
21  seccomp(SECCOMP_SET_MODE_FILTER, 0, {len=61, filter=0x7f}) = 0
21  execveat(4, \"\", [\"serial\"], 0x7f /* 0 vars */, AT_EMPTY_PATH) = 0
21  brk(0)                              = 0x5555
30  getpid()                            = 30
";

    fn read_all(traces: &[&str]) -> Calls {
        let lengths = [(98, "spawner".to_owned()), (61, "loader".to_owned())].into();
        let mut calls = Calls::new();
        traces.iter().for_each(|trace| read(trace, &lengths, &mut calls));
        calls
    }

    fn made(calls: &Calls, under: &Under) -> Vec<(String, bool)> {
        calls.get(under).into_iter().flatten().map(|call| (call.name.clone(), call.serving)).collect()
    }

    #[test]
    fn what_workers_called_is_known_by_phase_and_thread() {
        let calls = read_all(&[TRACE]);
        let wanted =
            [("brk", false), ("clone3", false), ("fcntl", true), ("read", false), ("seccomp", false)];
        let wanted: Vec<_> = wanted.map(|(name, serving)| (name.to_owned(), serving)).into();
        assert_eq!(made(&calls, &Under::Worker("serial".to_owned())), wanted);
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn the_vmms_own_are_known_by_their_programs_lengths() {
        let calls = read_all(&[VMM]);
        let names = |under| made(&calls, &under).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let spawner = ["brk", "clone3", "execveat", "recvmsg", "seccomp"];
        assert_eq!(names(Under::Own("spawner".to_owned())), spawner);
        assert_eq!(names(Under::Worker("serial".to_owned())), ["brk"]);
        assert_eq!(calls.len(), 2, "whoever becomes a worker has no program of the VMM's: {calls:?}");
    }

    #[test]
    fn names_are_numbers() {
        let calls = read_all(&[VMM]);
        let exec = calls[&Under::Own("spawner".to_owned())].iter().find(|call| call.name == EXEC).unwrap();
        assert_eq!((exec.arguments[0], exec.arguments[4]), (4, 0x1000));
    }
}
