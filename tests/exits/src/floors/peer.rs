//! The other process of a round trip.

use anyhow::{Context as _, Result};
use cellblock_channel::socket::Control;
use std::os::fd::AsFd as _;

use super::signal::Ends;
use super::{Order, bind};

/// Answers as often as the order on standard input says.
///
/// # Errors
/// The order makes no sense.
pub(crate) fn serve() -> Result<()> {
    let control = Control::from_fd(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (order, descriptors) = control.recv_message::<Order>(3)?;
    let mut ends = Ends::received(order.way, descriptors).context("the floor's descriptors")?;
    bind(&[order.cpu])?;
    (0..order.rounds).for_each(|_| ends.answer());
    Ok(())
}
