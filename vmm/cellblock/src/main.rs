//! The cellblock program: the front process of a VM, and what a person asks of VMs and hosts.
//!
//! The front parses, opens and checks everything, then forks the VM's other processes ([`launch`]) and stays as their
//! link to the terminal and to `cellblock ps` ([`front`]). It holds no KVM descriptor and no guest memory afterwards.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)] // They panic where nobody listens: `words` does not.

#[macro_use]
mod words;

mod balloon;
mod blackbox;
mod board;
mod cli;
mod disk;
mod doctor;
mod front;
mod launch;
mod net;
mod pause;
mod process_facts;
mod ps;
mod restart;
mod run;
mod security;
mod status;
mod upgrade;
mod vhost_user;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use status::Status;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => return run::run(*args).into(),
        Command::VhostUser(args) => return vhost_user::vhost_user(*args).into(),
        Command::Ps(args) => ps::ps(&args).map(|()| Status::Success),
        Command::Blackbox(args) => blackbox::blackbox(&args).map(|()| Status::Success),
        Command::Upgrade(args) => upgrade::upgrade(&args).map(|()| Status::Success),
        Command::Restart(args) => restart::restart(&args).map(|()| Status::Success),
        Command::Revive(args) => restart::revive(&args).map(|()| Status::Success),
        Command::Pause(args) => pause::pause(&args).map(|()| Status::Success),
        Command::Resume(args) => pause::resume(&args).map(|()| Status::Success),
        Command::Balloon(args) => balloon::balloon(&args).map(|()| Status::Success),
        Command::Tap(args) => net::tap::tap(&args.command).map(|()| Status::Success),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    match result {
        Ok(status) => status.into(),
        Err(error) => {
            note!("cellblock: {error:#}");
            Status::Failure.into()
        }
    }
}
