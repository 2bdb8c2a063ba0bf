//! `cellblock-policy compile IN.policy --arch x86_64 --section start|serve|vhost-user -o OUT.bpf`, and
//! `cellblock-policy unused IN.policy=TRACE[,TRACE]...`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cellblock_policy::used::{Unused, unused};
use cellblock_policy::{Arch, PolicyError, Section, compile_file};

const USAGE: &str = "\
usage: cellblock-policy compile IN.policy --arch x86_64|aarch64 --section start|serve|vhost-user -o OUT.bpf
       cellblock-policy unused IN.policy=TRACE[,TRACE]...
Compiles a seccomp policy to the BPF program of one section (the language is described in protocol/policy/src/lib.rs), or names the
entries that no worker needed in what `strace -f -e raw=all` wrote of it (scripts/policies).";

/// What the command line asks for.
struct Request {
    input: PathBuf,
    output: PathBuf,
    arch: Arch,
    section: Section,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, policies @ ..] = &arguments[..]
        && command == "unused"
        && !policies.is_empty()
    {
        return match tell_unused(policies) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
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

/// Prints the entries of `policies` that nobody needed; returns how many.
fn tell_unused(policies: &[String]) -> Result<usize, String> {
    let one = |argument: &String| {
        let (policy, traces) = argument.split_once('=').ok_or_else(|| USAGE.to_owned())?;
        let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let traces = traces.split(',').map(read).collect::<Result<Vec<_>, _>>()?;
        Ok((PathBuf::from(policy), traces))
    };
    let policies = policies.iter().map(one).collect::<Result<Vec<_>, String>>()?;
    let unused = unused(&policies).map_err(|error| error.to_string())?;
    for Unused { file, line, text } in &unused {
        println!(
            "{}:{line}: no worker needed {text}; take it out, or say in its comment `rare: why`",
            file.display()
        );
    }
    Ok(unused.len())
}

fn section_named(name: &str) -> Option<Section> {
    [Section::Start, Section::Serve, Section::VhostUser].into_iter().find(|section| section.name() == name)
}

fn write(request: &Request) -> Result<(), PolicyError> {
    let program = compile_file(&request.input, request.arch, request.section)?;
    std::fs::write(&request.output, program)
        .map_err(|source| PolicyError::Write { path: request.output.clone(), source })
}
