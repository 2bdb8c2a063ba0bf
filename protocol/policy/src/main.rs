//! `cellblock-policy compile IN.policy --arch x86_64 --section start|serve|vhost-user -o OUT.bpf`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cellblock_policy::{Arch, PolicyError, Section, compile_file};

const USAGE: &str = "\
usage: cellblock-policy compile IN.policy --arch x86_64|aarch64 --section start|serve|vhost-user -o OUT.bpf
Compiles a seccomp policy to the BPF program of one section. The language is described in protocol/policy/src/lib.rs.";

/// What the command line asks for.
struct Request {
    input: PathBuf,
    output: PathBuf,
    arch: Arch,
    section: Section,
}

fn main() -> ExitCode {
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

fn section_named(name: &str) -> Option<Section> {
    [Section::Start, Section::Serve, Section::VhostUser].into_iter().find(|section| section.name() == name)
}

fn write(request: &Request) -> Result<(), PolicyError> {
    let program = compile_file(&request.input, request.arch, request.section)?;
    std::fs::write(&request.output, program)
        .map_err(|source| PolicyError::Write { path: request.output.clone(), source })
}
