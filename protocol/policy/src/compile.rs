//! Policy text to a BPF program: conditions by seccompiler, the way to them by [`dispatch`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use crate::dispatch;
use crate::parse::{self, Alternative, Comparison, Condition, Line};
use crate::shorten::shorten;

/// What the start program must allow besides the policy's own lines: the exec of the worker itself, and what
/// `seal::close_sandbox` calls. None of it is left once the serve program is in.
pub const SEAL: &str = "\
execveat: arg0 == 4 && arg4 == AT_EMPTY_PATH
prctl: arg0 == PR_SET_DUMPABLE && arg1 == SUID_DUMP_DISABLE || arg0 == PR_GET_SECCOMP || arg0 == PR_SET_NO_NEW_PRIVS
landlock_create_ruleset
landlock_restrict_self
close
fcntl: arg1.low == F_GETFD # std asks before it closes, in debug builds
seccomp: arg0 == SECCOMP_SET_MODE_FILTER && arg1 == SECCOMP_FILTER_FLAG_TSYNC|SECCOMP_FILTER_FLAG_LOG
";

/// Includes inside includes, at most.
const MAX_DEPTH: usize = 8;

/// Whose system call numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86; the x32 and 32-bit entries are refused.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The name in file names, `CARGO_CFG_TARGET_ARCH` and `--arch`.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// The architecture of that name.
    ///
    /// # Errors
    /// There is no such architecture here.
    pub fn named(name: &str) -> Result<Arch, PolicyError> {
        match name {
            "x86_64" => Ok(Arch::X86_64),
            "aarch64" => Ok(Arch::Aarch64),
            other => Err(PolicyError::Arch(other.to_owned())),
        }
    }

    const fn target(self) -> seccompiler::TargetArch {
        match self {
            Arch::X86_64 => seccompiler::TargetArch::x86_64,
            Arch::Aarch64 => seccompiler::TargetArch::aarch64,
        }
    }
}

/// Which of a policy's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// From before exec until the sandbox closes: all sections, and [`SEAL`].
    Start,
    /// Afterwards.
    Serve,
    /// In place of [`Section::Serve`] in a worker that serves another VMM: what that allows, and its own lines.
    VhostUser,
}

impl Section {
    /// The name in brackets.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Start => "start",
            Section::Serve => "serve",
            Section::VhostUser => "vhost-user",
        }
    }
}

/// A policy that does not compile.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A line is wrong.
    #[error("{file}:{line}: {what}")]
    Line {
        /// The file or fragment.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A file cannot be read.
    #[error("policy {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("program {path} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// seccompiler refuses it: an unknown call, or a program too long.
    #[error("policy {file} does not compile: {what}")]
    Program {
        /// The policy.
        file: String,
        /// Its words.
        what: String,
    },
    /// An architecture without policies.
    #[error("there are no policies for the architecture {0}, only for x86_64 and aarch64")]
    Arch(String),
    /// Cargo's environment is missing.
    #[error("{0} is not set; this function is for build scripts")]
    NotInBuildScript(&'static str),
}

/// System calls and when they are allowed.
type Rules = BTreeMap<String, Vec<Alternative>>;

/// Looks an included name up: `(including file, name) -> (the fragment's own name, its text)`.
type Lookup<'a> = &'a dyn Fn(&str, &str) -> Result<(String, String), String>;

/// The program of `section` as bytes ([`crate::INSTRUCTION_BYTES`] each). `fragments` are what `include` finds, by
/// name and text.
///
/// # Errors
/// The first line that is wrong.
pub fn compile(
    text: &str,
    fragments: &[(&str, &str)],
    arch: Arch,
    section: Section,
) -> Result<Vec<u8>, PolicyError> {
    let lookup = |_: &str, name: &str| {
        let found = fragments.iter().find(|(known, _)| *known == name);
        found
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .ok_or_else(|| format!("there is no fragment {name:?}"))
    };
    program("policy", text, &lookup, arch, section)
}

/// As [`compile`], from a file; `include` takes paths relative to the including file.
///
/// # Errors
/// A file that cannot be read, or the first line that is wrong.
pub fn compile_file(path: &Path, arch: Arch, section: Section) -> Result<Vec<u8>, PolicyError> {
    let text =
        fs::read_to_string(path).map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
    let lookup = |from: &str, name: &str| {
        let path = Path::new(from).parent().unwrap_or(Path::new("")).join(name);
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Ok((path.display().to_string(), text))
    };
    program(&path.display().to_string(), &text, &lookup, arch, section)
}

/// The files that `path` is made of, itself first: what a build script must watch.
pub(crate) fn files_of(path: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    let mut files = vec![path.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        let text =
            fs::read_to_string(&file).map_err(|source| PolicyError::Read { path: file.clone(), source })?;
        for line in text.lines() {
            if let Ok(Line::Include(name)) = parse::line(line) {
                let included = file.parent().unwrap_or(Path::new("")).join(name);
                if !files.contains(&included) {
                    files.push(included);
                }
            }
        }
        next += 1;
    }
    Ok(files)
}

fn program(
    file: &str,
    text: &str,
    lookup: Lookup,
    arch: Arch,
    section: Section,
) -> Result<Vec<u8>, PolicyError> {
    let mut rules = Rules::new();
    collect(&mut rules, file, text, lookup, section, 0)?;
    if section == Section::Start {
        collect(&mut rules, "the compiler's SEAL", SEAL, lookup, section, 0)?;
    }
    assemble(file, &rules, arch, shorten)
}

/// Adds the lines of `text` that count for `section` to `rules`.
fn collect(
    rules: &mut Rules,
    file: &str,
    text: &str,
    lookup: Lookup,
    section: Section,
    depth: usize,
) -> Result<(), PolicyError> {
    let mut counts = true;
    for (index, line) in text.lines().enumerate() {
        let wrong = |what| PolicyError::Line { file: file.to_owned(), line: index + 1, what };
        match parse::line(line).map_err(wrong)? {
            Line::Blank => {}
            Line::Section(name) => match name.as_str() {
                "start" => counts = section == Section::Start,
                // What is allowed while serving is allowed before, too: the programs stack.
                "serve" => counts = true,
                "vhost-user" => counts = section != Section::Serve,
                other => {
                    return Err(wrong(format!(
                        "there is no section [{other}], only [start], [serve] and [vhost-user]"
                    )));
                }
            },
            Line::Include(_) if depth == MAX_DEPTH => {
                return Err(wrong(format!("more than {MAX_DEPTH} files include each other")));
            }
            Line::Include(name) if counts => {
                let (name, text) = lookup(file, &name).map_err(wrong)?;
                collect(rules, &name, &text, lookup, section, depth + 1)?;
            }
            Line::Allow { call, alternatives } if counts => {
                rules.entry(call).or_default().extend(alternatives)
            }
            Line::Include(_) | Line::Allow { .. } => {}
        }
    }
    Ok(())
}

fn assemble(
    file: &str,
    rules: &Rules,
    arch: Arch,
    shorten: fn(Vec<dispatch::Instruction>) -> Vec<dispatch::Instruction>,
) -> Result<Vec<u8>, PolicyError> {
    let mut calls = Vec::new();
    let mut header = single(file, "read", &[Alternative::new()], arch)?;
    header.truncate(dispatch::HEADER);
    for (call, alternatives) in rules {
        let program = single(file, call, alternatives, arch)?;
        let always = alternatives.iter().any(Vec::is_empty);
        calls.push(dispatch::Call::cut(&program, always).ok_or_else(|| PolicyError::Program {
            file: file.to_owned(),
            what: format!("seccompiler's program for {call} has an unknown shape"),
        })?);
    }
    let program = dispatch::program(&header, calls, shorten).ok_or_else(|| PolicyError::Program {
        file: file.to_owned(),
        what: format!("it is longer than the {} instructions that Linux takes", crate::MAX_INSTRUCTIONS),
    })?;
    Ok(program.iter().flat_map(dispatch::Instruction::bytes).collect())
}

/// seccompiler's program that allows nothing but `call`.
fn single(
    file: &str,
    call: &str,
    alternatives: &[Alternative],
    arch: Arch,
) -> Result<Vec<dispatch::Instruction>, PolicyError> {
    let wrong = |what: String| PolicyError::Program { file: file.to_owned(), what };
    let document = json!({
        "policy": { "mismatch_action": "kill_process", "match_action": "allow", "filter": rows(call, alternatives) }
    });
    let programs = seccompiler::compile_from_json(document.to_string().as_bytes(), arch.target())
        .map_err(|error| wrong(error.to_string()))?;
    let program =
        programs.get("policy").ok_or_else(|| wrong("seccompiler returned no program".to_owned()))?;
    let plain =
        |i: &seccompiler::sock_filter| dispatch::Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
    Ok(program.iter().map(plain).collect())
}

/// seccompiler's rules for one call. One alternative without conditions makes the others moot, and must stand alone
/// there.
fn rows(call: &str, alternatives: &[Alternative]) -> Vec<Value> {
    if alternatives.iter().any(Vec::is_empty) {
        return vec![json!({ "syscall": call })];
    }
    let args = |alternative: &Alternative| alternative.iter().map(argument).collect::<Vec<_>>();
    alternatives.iter().map(|alternative| json!({ "syscall": call, "args": args(alternative) })).collect()
}

fn argument(condition: &Condition) -> Value {
    let width = if condition.low { u64::from(u32::MAX) } else { u64::MAX };
    let operator = match condition.comparison {
        Comparison::Equal => json!("eq"),
        Comparison::NotEqual => json!("ne"),
        Comparison::Less => json!("lt"),
        Comparison::LessOrEqual => json!("le"),
        Comparison::Greater => json!("gt"),
        Comparison::GreaterOrEqual => json!("ge"),
        Comparison::MaskedEqual(mask) => json!({ "masked_eq": mask & width }),
    };
    json!({
        "index": condition.argument,
        "type": if condition.low { "dword" } else { "qword" },
        "op": operator,
        "val": condition.value & width,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{AUDIT_AARCH64, AUDIT_X86_64, verdict};

    /// Every policy of this repository for `arch`.
    fn policies(arch: Arch) -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let devices = fs::read_dir(root.join("device-procs")).unwrap();
        let devices =
            devices.map(|entry| entry.unwrap().path().join(format!("policy/{}.policy", arch.name())));
        let own = fs::read_dir(root.join("vmm/jail/policy").join(arch.name())).unwrap();
        let found: Vec<_> = devices.filter(|path| path.exists()).collect();
        assert!(found.len() > 8, "{found:?}");
        found.into_iter().chain(own.map(|entry| entry.unwrap().path())).collect()
    }

    /// By their numbers, when they are allowed.
    type Calls = BTreeMap<u32, Vec<Alternative>>;

    /// The program of `path` as it ships, as it would be without `shorten`, and what both allow.
    fn both(path: &Path, arch: Arch, section: Section) -> (Vec<u8>, Vec<u8>, Calls) {
        let file = path.display().to_string();
        let lookup = |from: &str, name: &str| {
            let path = Path::new(from).parent().unwrap().join(name);
            Ok((path.display().to_string(), fs::read_to_string(path).unwrap()))
        };
        let text = fs::read_to_string(path).unwrap();
        let mut rules = Rules::new();
        collect(&mut rules, &file, &text, &lookup, section, 0).unwrap();
        if section == Section::Start {
            collect(&mut rules, "SEAL", SEAL, &lookup, section, 0).unwrap();
        }
        let whole = assemble(&file, &rules, arch, |same| same).unwrap();
        let number =
            |call: &str| single(&file, call, &[Alternative::new()], arch).unwrap()[dispatch::HEADER].k;
        let calls = rules.iter().map(|(call, alternatives)| (number(call), alternatives.clone())).collect();
        (compile_file(path, arch, section).unwrap(), whole, calls)
    }

    /// What of `argument` has to be otherwise for `condition` to hold.
    fn met(condition: &Condition, argument: u64) -> u64 {
        let value = condition.value;
        match condition.comparison {
            Comparison::Equal | Comparison::LessOrEqual | Comparison::GreaterOrEqual => value,
            Comparison::NotEqual | Comparison::Greater => value.wrapping_add(1),
            Comparison::Less => value.wrapping_sub(1),
            Comparison::MaskedEqual(mask) => argument & !mask | value & mask,
        }
    }

    /// For each number that any of the two compares with, and what is around it, and arguments of which each is such a number, too, or one
    /// that differs in a bit; half of the time those that one alternative of the call wants, or all but a bit of one.
    #[test]
    fn a_shortened_program_says_the_same_of_every_call() {
        let (mut short, mut long) = (0, 0);
        for (arch, audit) in [(Arch::X86_64, AUDIT_X86_64), (Arch::Aarch64, AUDIT_AARCH64)] {
            for path in policies(arch) {
                for section in [Section::Start, Section::Serve, Section::VhostUser] {
                    let (shortened, whole, calls) = both(&path, arch, section);
                    (short, long) = (short + shortened.len(), long + whole.len());
                    same(&shortened, &whole, &calls, audit, &path);
                }
            }
        }
        assert!(short * 10 < long * 6, "{short} of {long} bytes are left");
    }

    fn same(shortened: &[u8], whole: &[u8], calls: &Calls, audit: u32, path: &Path) {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        let constants: Vec<u32> = whole.chunks_exact(crate::INSTRUCTION_BYTES).map(word).collect();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random >> 8
        };
        let ask = |audit, number, arguments| {
            let answers = [shortened, whole].map(|program| verdict(program, audit, number, arguments));
            assert_eq!(answers[0], answers[1], "{}: {number} {arguments:x?}", path.display());
            answers[0]
        };
        ask(!audit, 0, [0; 6]);
        for number in 0..512 {
            ask(audit, number, [0; 6]);
            if !constants.contains(&number) {
                continue;
            }
            let alternatives = calls.get(&number).map_or(&[][..], Vec::as_slice);
            let mut allowed = vec![false; alternatives.len()];
            for round in 0..40 * alternatives.len().max(1) {
                let mut argument = || {
                    let chosen = constants[next() as usize % constants.len()];
                    u64::from(chosen) ^ if next() % 4 == 0 { 1 << (next() % 64) } else { 0 }
                };
                let mut arguments = [(); 6].map(|()| argument());
                if round % 2 == 0 || alternatives.is_empty() {
                    ask(audit, number, arguments);
                    continue;
                }
                let chosen = round / 2 % alternatives.len();
                for condition in &alternatives[chosen] {
                    let argument = &mut arguments[usize::from(condition.argument)];
                    *argument = met(condition, *argument);
                }
                if next() % 2 == 0 && !alternatives[chosen].is_empty() {
                    let condition = &alternatives[chosen][next() as usize % alternatives[chosen].len()];
                    arguments[usize::from(condition.argument)] ^= 1 << (next() % 64);
                }
                allowed[chosen] |= ask(audit, number, arguments) == crate::simulate::Verdict::Allow;
            }
            assert!(
                allowed.iter().all(|once| *once),
                "{}: {number} {alternatives:?} {allowed:?}",
                path.display()
            );
        }
    }
}
