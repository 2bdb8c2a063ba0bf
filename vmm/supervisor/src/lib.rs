//! The process that owns guest memory and vCPUs, and trusts no worker.
//!
//! Threads: one for each vCPU ([`mod@vcpu`], [`proxy`]), and the loop thread for everything else ([`machine`], one
//! [`worker`] actor for each device). They talk over bounded channels; nothing on a vCPU's path takes a lock.
//!
//! It is forked from the front ([`Plan`] is what it gets), tells it how things go ([`link`]), and ends with the VM: its
//! last message is [`link::End`].
#![forbid(unsafe_code)]

mod back_end;
mod build;
pub mod death;
mod deaths;
mod error;
mod exit_stats;
mod exits;
pub mod link;
mod machine;
mod pace;
mod plan;
mod poller;
mod proxy;
mod shadow;
mod vcpu;
mod worker;

pub use back_end::{BackEndPlan, serve_front_ends};
pub use error::EMULATED;
pub use plan::{CauseRegisters, DevicePlan, Kick, Plan};

use std::os::fd::AsFd;

use cellblock_channel::socket::Control;
use link::{End, Event, cut};

/// Builds and runs the VM of `plan` to its end, in the supervisor's process. Returns the process's exit status.
pub fn run(plan: Plan) -> i32 {
    let Ok(link) = plan.link.as_fd().try_clone_to_owned().map(Control::from_fd) else { return 1 };
    match build::build(plan).and_then(machine::Machine::live) {
        Ok(()) => 0,
        Err(error) => {
            // A front that is gone needs no answer.
            let _ = link.send_message(&Event::Ended(End::Refused { reason: cut(error.to_string()) }), &[]);
            1
        }
    }
}
