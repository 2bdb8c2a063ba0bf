//! Workers that die, hang and stumble, as a test wants it. Each is the init of a pid namespace of its own, so that of all signals from
//! outside only SIGKILL and SIGSTOP mean anything to it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// What befalls a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// SIGKILL.
    Killed,
    /// Its register thread's next instruction accesses address 0: a SIGSEGV of its own, when it next wakes.
    Crashed,
    /// It is stopped, and stays so.
    Stopped,
    /// It is stopped for so many milliseconds.
    Paused(u64),
}

impl Fate {
    /// Has it befall process `pid`.
    ///
    /// # Errors
    /// The process is gone, or not ours.
    pub fn befall(self, pid: i32) -> Result<()> {
        let process = Pid::from_raw(pid).context("pid 0")?;
        match self {
            Fate::Killed => kill_process(process, Signal::KILL)?,
            Fate::Stopped => kill_process(process, Signal::STOP)?,
            Fate::Crashed => crash(pid)?,
            Fate::Paused(milliseconds) => {
                kill_process(process, Signal::STOP)?;
                thread::sleep(Duration::from_millis(milliseconds));
                kill_process(process, Signal::CONT)?;
            }
        }
        Ok(())
    }
}

/// Writes `xor eax, eax; mov [rax], eax` to where the thread goes on once its system call is over.
fn crash(pid: i32) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    // The last word, but for a thread that is running.
    let place = text.split_whitespace().last().and_then(|word| word.strip_prefix("0x"));
    let Some(place) = place.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else {
        return Ok(kill_process(Pid::from_raw(pid).context("pid 0")?, Signal::KILL)?);
    };
    let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"))?;
    Ok(memory.write_all_at(&[0x31, 0xc0, 0x89, 0x00], place)?)
}
