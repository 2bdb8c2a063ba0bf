//! `cellblock pause` and `cellblock resume`.

use anyhow::{Context, bail};

use crate::cli::PauseArgs;
use crate::front::control_socket::{Answer, What, ask};
use crate::ps;

/// Stops everything that runs in the VM; returns when it is stopped.
///
/// # Errors
/// The VM does not exist, does not answer, or cannot be paused: then it runs on.
pub(crate) fn pause(args: &PauseArgs) -> anyhow::Result<()> {
    do_it(&args.id, What::Pause, "paused")
}

/// Lets it go on. A VM that is not paused is not disturbed.
///
/// # Errors
/// The VM does not exist, or does not answer.
pub(crate) fn resume(args: &PauseArgs) -> anyhow::Result<()> {
    do_it(&args.id, What::Resume, "runs")
}

fn do_it(id: &str, what: What, done: &str) -> anyhow::Result<()> {
    let (uid, id) = ps::one(id)?;
    match ask(uid, &id, what).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Done => say!("VM {id} {done}"),
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        _ => bail!("VM {id} answered something else"),
    }
}
