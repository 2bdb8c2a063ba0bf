//! `cellblock-policy compile IN.policy --arch x86_64 --section start|serve|vhost-user -o OUT.bpf`, and
//! `cellblock-policy compare --arch x86_64 worker:NAME=POLICY... own:NAME=POLICY... TRACE...`
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cellblock_policy::used::{Finding, Whose, compare};
use cellblock_policy::{Arch, PolicyError, Section, compile_file};

const USAGE: &str = "\
usage: cellblock-policy compile IN.policy --arch x86_64|aarch64 --section start|serve|vhost-user -o OUT.bpf
       cellblock-policy compare --arch x86_64|aarch64 (worker:NAME=POLICY | own:NAME=POLICY | TRACE)...
Compiles a seccomp policy to the BPF program of one section (the language is described in protocol/policy/src/lib.rs), or holds
policies against what strace wrote of who runs under them (scripts/policies): it fails with the name of every entry that
nobody needed and that is not marked as rare, and of every mark that gives no reason.";

/// What the command line asks for.
struct Request {
    input: PathBuf,
    output: PathBuf,
    arch: Arch,
    section: Section,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, flag, arch, rest @ ..] = &arguments[..]
        && (command, flag) == (&"compare".to_owned(), &"--arch".to_owned())
    {
        return match tell(arch, rest) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("cellblock-policy: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let Some(request) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match write(&request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cellblock-policy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Request> {
    if arguments.next()? != "compile" {
        return None;
    }
    let (mut input, mut output, mut arch, mut section) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--arch" => arch = Some(Arch::named(&arguments.next()?).ok()?),
            "--section" => section = Some(section_named(&arguments.next()?)?),
            "-o" => output = Some(PathBuf::from(arguments.next()?)),
            path if input.is_none() && !path.starts_with('-') => input = Some(Path::new(path).to_owned()),
            _ => return None,
        }
    }
    Some(Request { input: input?, output: output?, arch: arch?, section: section? })
}

/// Prints what is not as it should be with the policies among `arguments`, in view of the traces among them; whether all is.
fn tell(arch: &str, arguments: &[String]) -> Result<bool, String> {
    let (mut policies, mut traces) = (vec![], vec![]);
    for argument in arguments {
        let policy = argument.split_once('=').and_then(|(whose, path)| {
            let (kind, name) = whose.split_once(':')?;
            Some((whose_named(kind, name)?, PathBuf::from(path)))
        });
        match policy {
            Some(policy) => policies.push(policy),
            None => traces
                .push(std::fs::read_to_string(argument).map_err(|error| format!("{argument}: {error}"))?),
        }
    }
    let arch = Arch::named(arch).map_err(|error| error.to_string())?;
    let compared = compare(arch, &policies, &traces).map_err(|error| error.to_string())?;
    let mut good = compared.absent.is_empty() && compared.blind.is_empty();
    for file in &compared.blind {
        println!(
            "FAIL: {}: an entry that nobody needs and a mark without a reason were put into it and not found",
            file.display()
        );
    }
    for name in &compared.absent {
        println!("FAIL: no {name} ran");
    }
    for found in &compared.found {
        let (grade, what) = match found.finding {
            Finding::Unused => ("FAIL", "nobody needed it; take it out, or say in its comment `rare: why`"),
            Finding::NoReason => ("FAIL", "it is marked as rare, without a reason"),
            Finding::RareButUsed => ("note", "it is marked as rare, and was needed this time"),
        };
        good &= grade != "FAIL";
        println!("{grade}: {}:{}: {}: {what}", found.file.display(), found.line, found.text);
    }
    println!("{} entries, {} of them needed in this run", compared.entries, compared.needed);
    Ok(good)
}

fn whose_named(kind: &str, name: &str) -> Option<Whose> {
    match kind {
        "worker" => Some(Whose::Worker(name.to_owned())),
        "own" => Some(Whose::Own(name.to_owned())),
        _ => None,
    }
}

fn section_named(name: &str) -> Option<Section> {
    [Section::Start, Section::Serve, Section::VhostUser].into_iter().find(|section| section.name() == name)
}

fn write(request: &Request) -> Result<(), PolicyError> {
    let program = compile_file(&request.input, request.arch, request.section)?;
    std::fs::write(&request.output, program)
        .map_err(|source| PolicyError::Write { path: request.output.clone(), source })
}
