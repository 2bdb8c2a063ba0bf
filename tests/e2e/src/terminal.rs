//! A terminal to run the program on, as a person has one.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A pseudo-terminal; the program gets its device, the test is who sits before it.
pub struct Terminal {
    master: OwnedFd,
    device: File,
}

impl Terminal {
    /// A terminal of this size.
    ///
    /// # Errors
    /// This machine has none to give.
    pub fn open(columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("no pseudo-terminal can be opened")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?.into_string()?;
        let device = File::options().read(true).write(true).open(&name).context(name)?;
        let terminal = Terminal { master, device };
        terminal.resize(columns, rows)?;
        Ok(terminal)
    }

    /// Gives it another size. Whoever runs on it is told by SIGWINCH only if it is their controlling terminal.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// For a program's standard streams.
    pub(crate) fn device(&self) -> Result<File> {
        Ok(self.device.try_clone()?)
    }

    /// What is shown, and what is typed.
    pub(crate) fn ends(&self) -> Result<(File, File)> {
        Ok((self.master.try_clone()?.into(), self.master.try_clone()?.into()))
    }
}
