//! The Debian of `scripts/debian` in a VM, through its serial port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::lab::Plan;
use crate::{Ended, Vm};

/// How long a boot, a command or a shutdown may take. In the emulated host, on a machine with nothing else to do, a boot to
/// the login takes half a minute.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A running Debian; killed when dropped.
pub struct Debian {
    vm: Vm,
    commands: u32,
}

impl Debian {
    /// Boots `plan` to the login prompt.
    ///
    /// # Errors
    /// There is none within [`PATIENCE`].
    pub fn boot(plan: &Plan<'_>) -> Result<Self> {
        let mut vm = plan.start();
        vm.expect_within("cellblock login: ", PATIENCE)?;
        Ok(Debian { vm, commands: 0 })
    }

    /// Logs in as root, and asks the shell to be quiet.
    ///
    /// # Errors
    /// No shell answers.
    pub fn log_in(&mut self) -> Result<()> {
        self.vm.type_in("root\n")?;
        self.vm.expect_within(":~# ", PATIENCE)?;
        self.vm
            .type_in("stty -echo; PS1= PS2= TERM=dumb; bind 'set enable-bracketed-paste off'; echo =$?=\n")?;
        self.vm.expect_within("=0=", PATIENCE).map(drop)
    }

    /// Runs `command` in the shell and returns its exit status and what it printed.
    ///
    /// # Errors
    /// It goes on for longer than [`PATIENCE`], or the VM ended.
    pub fn run(&mut self, command: &str) -> Result<(u32, String)> {
        self.commands += 1;
        let mark = format!("=end {}=", self.commands);
        // By a file: a program that finds a terminal tells of its progress.
        self.vm.type_in(&format!(
            "{{ {command}; }} >/tmp/said 2>&1; s=$?; cat /tmp/said; echo '=end' '{}='$s=\n",
            self.commands
        ))?;
        let text = self.vm.expect_within(&mark, PATIENCE)?;
        let status = self.vm.expect_within("=", PATIENCE)?;
        let status = status.parse().with_context(|| format!("the shell's status {status:?}"))?;
        Ok((status, text.replace('\r', "").trim().to_owned()))
    }

    /// Runs `command`, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// As [`run`](Self::run), or its exit status is not 0.
    pub fn must(&mut self, command: &str) -> Result<String> {
        let (status, text) = self.run(command)?;
        ensure!(status == 0, "in Debian, {command:?} ended with status {status}: {text}");
        Ok(text)
    }

    /// Has the guest shut itself down, and waits for its end.
    ///
    /// # Errors
    /// It goes on for longer than [`PATIENCE`].
    pub fn power_off(mut self) -> Result<Ended> {
        self.vm.type_in("poweroff\n")?;
        self.vm.wait_for(PATIENCE)
    }

    /// Presses the power button by SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It goes on for longer than [`PATIENCE`].
    pub fn press_power_button(self) -> Result<Ended> {
        self.vm.signal(Signal::TERM)?;
        self.vm.wait_for(PATIENCE)
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }
}
