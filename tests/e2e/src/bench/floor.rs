//! The floor of a restart with a spare: what this machine takes for a kill, the news of it, and one question to a process that
//! waits: as many wake-ups, and nothing jailed, restored or served. It explains figures, and changes none.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::others::Others;

/// Has this program play a part.
pub(crate) const PART: &str = "part";
/// Long enough for whoever is to wait to do so.
const CALM: Duration = Duration::from_millis(3);

/// One that is killed next, and the one that answers then.
pub(crate) struct Floor {
    worker: Player,
    spare: Player,
}

/// A process of two threads that answers each byte.
struct Player {
    process: Child,
    ask: ChildStdin,
    answer: ChildStdout,
}

/// The part of such a process.
pub(crate) fn play() -> Result<bool> {
    thread::spawn(|| {
        loop {
            thread::park();
        }
    });
    let (mut from, mut to) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
        to.flush()?;
    }
    Ok(true)
}

impl Player {
    fn begin() -> Result<Player> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(PART).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let (ask, answer) =
            (process.stdin.take().context("no pipe")?, process.stdout.take().context("no pipe")?);
        let mut player = Player { process, ask, answer };
        // It plays.
        player.ask()?;
        Ok(player)
    }

    fn ask(&mut self) -> Result<()> {
        self.ask.write_all(&[1])?;
        Ok(self.answer.read_exact(&mut [0])?)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Floor {
    pub(crate) fn new() -> Result<Floor> {
        Ok(Floor { worker: Player::begin()?, spare: Player::begin()? })
    }

    /// From the kill of one to the answer of the next; sleeps for `meanwhile`.
    pub(crate) fn cycle(&mut self, meanwhile: Duration) -> Result<Duration> {
        let pid = Pid::from_raw(self.worker.process.id() as i32).context("no process")?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        let spare = &mut self.spare;
        let took = thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<Instant> {
                poll(&mut [PollFd::new(&end, PollFlags::IN)], None)?;
                spare.ask()?;
                Ok(Instant::now())
            });
            thread::sleep(CALM);
            // As before each kill of a worker.
            drop(Others::now());
            let killed = Instant::now();
            kill_process(pid, Signal::KILL)?;
            thread::sleep(meanwhile);
            let answered = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
            Ok(answered.saturating_duration_since(killed))
        });
        self.worker = std::mem::replace(&mut self.spare, Player::begin()?);
        took
    }
}
