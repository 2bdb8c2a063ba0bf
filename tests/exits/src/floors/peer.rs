//! The other process of a round trip.

use anyhow::{Context as _, Result};
use cellblock_channel::socket::Control;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::fd::AsFd as _;

use super::signal::Ends;
use super::{Order, bind};

/// Answers as often as the order on standard input says.
///
/// # Errors
/// The order makes no sense, or who gave it has gone.
pub(crate) fn serve() -> Result<()> {
    // Who asks may end at any time. If it has already, there is no order.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let control = Control::from_fd(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (order, descriptors) = control.recv_message::<Order>(3)?;
    let mut ends = Ends::received(order.way, descriptors).context("the floor's descriptors")?;
    bind(&[order.cpu])?;
    for _ in 0..order.rounds {
        ends.answer()?;
    }
    Ok(())
}
