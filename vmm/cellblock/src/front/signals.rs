//! Signals as something to poll for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::Signal;

/// The signals that ask the front to end, and the terminal's change of size, blocked and queued.
///
/// The mask is inherited by the VM's processes: a Ctrl-C meant for the front does not reach them.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks TERM, INT, HUP, QUIT and WINCH for this thread, and queues them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        let ends = [NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGHUP, NixSignal::SIGQUIT];
        for signal in ends.into_iter().chain([NixSignal::SIGWINCH]) {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal that came.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::from_named_raw(i32::try_from(info.ssi_signo).ok()?)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
