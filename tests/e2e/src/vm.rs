//! One `cellblock` process with its output, under deadlines.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::line::{Heard, position};
use crate::processes::Tree;
use crate::terminal::Terminal;
use crate::user::User;

/// How long a step may take before a test fails: far longer than any does, also in the emulated host and on a busy machine.
pub fn patience() -> Duration {
    Duration::from_secs(60)
}

/// How a `cellblock` process ended, and all that it said.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Standard output: the guest's serial port, when that is on stdio.
    pub output: String,
    /// Standard error: the program's own lines.
    pub messages: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Ended {
    /// The exit status, or 128 plus the signal that ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// The value of the first `name=…` in what the guest printed, up to the next blank; `nothing` if there is none.
    pub fn told(&self, name: &str) -> &str {
        let words = self.output.split_whitespace();
        words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next().unwrap_or("nothing")
    }

    /// Fails, with all output, unless the status is `code` and standard error holds `message`.
    #[track_caller]
    pub fn assert(&self, code: i32, message: &str) {
        assert!(
            self.code() == code && self.messages.contains(message),
            "wanted status {code} and {message:?}, got {self}"
        );
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            to,
            "status {} after {:?}\n--- output\n{}\n--- messages\n{}",
            self.code(),
            self.took,
            self.output,
            self.messages
        )
    }
}

/// A running `cellblock` process; killed when dropped.
pub struct Vm {
    child: Child,
    stdin: Option<Box<dyn Write + Send>>,
    output: Arc<Heard>,
    messages: Arc<Heard>,
    read_to: usize,
    messages_read_to: usize,
    started: Instant,
    program: std::path::PathBuf,
    patience: Duration,
}

impl Vm {
    /// Starts `program` with `arguments` as `user`.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        user: &User,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut command = user.command(program);
        command.args(arguments);
        Self::spawn(command, program)
    }

    fn spawn(mut command: Command, program: &Path) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
        let stdin: Option<Box<dyn Write + Send>> = match child.stdin.take() {
            Some(pipe) => Some(Box::new(pipe)),
            None => None,
        };
        let output = Heard::listen(child.stdout.take().context("no stdout")?);
        let messages = Heard::listen(child.stderr.take().context("no stderr")?);
        Ok(Vm {
            child,
            stdin,
            output,
            messages,
            read_to: 0,
            messages_read_to: 0,
            started,
            program: program.to_owned(),
            patience: patience(),
        })
    }

    /// Waits `patience` for each step from now on.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// As [`start`](Self::start), on a terminal.
    ///
    /// # Errors
    /// As there.
    pub fn start_on_terminal<S: AsRef<OsStr>>(
        program: &Path,
        user: &User,
        arguments: impl IntoIterator<Item = S>,
        terminal: &Terminal,
    ) -> Result<Self> {
        let mut command = user.command(program);
        command.args(arguments).stdin(terminal.device()?).stdout(terminal.device()?).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let (reader, writer) = terminal.ends()?;
        let output = Heard::listen(reader);
        let messages = Heard::listen(child.stderr.take().context("no stderr")?);
        let stdin: Option<Box<dyn Write + Send>> = Some(Box::new(writer));
        let (patience, program) = (patience(), program.to_owned());
        Ok(Vm { child, stdin, output, messages, read_to: 0, messages_read_to: 0, started, program, patience })
    }

    /// The pid of the process, which is the VM's front process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits until the guest has written `text`, after what an earlier call found.
    ///
    /// # Errors
    /// It has not within [`patience`], or the output ended; the error holds all output.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        self.expect_within(text, self.patience).map(drop)
    }

    /// As [`expect`](Self::expect), for at most `time`; returns what came before `text`.
    ///
    /// # Errors
    /// It has not by then, or the output ended; the error holds all output.
    pub fn expect_within(&mut self, text: &str, time: Duration) -> Result<String> {
        let (from, wanted) = (self.read_to, text.as_bytes());
        let found = |bytes: &[u8]| position(&bytes[from.min(bytes.len())..], wanted);
        if self.output.wait(Instant::now() + time, |bytes| found(bytes).is_some()) {
            let bytes = self.output.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            let at = from + found(&bytes.0).unwrap_or(0);
            self.read_to = at + wanted.len();
            return Ok(String::from_utf8_lossy(&bytes.0[from..at]).into_owned());
        }
        bail!(
            "the guest did not write {text:?}\n--- output\n{}\n--- messages\n{}",
            self.output.text(),
            self.messages.text()
        )
    }

    /// `result`, of something that goes on beside the VM; an error tells what the VM has said, too.
    ///
    /// # Errors
    /// That of `result`.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| {
            format!("--- output\n{}\n--- messages\n{}", self.output.text(), self.messages.text())
        })
    }

    /// Waits until the guest has written a line with `start` in it, after what an earlier call found, and returns the rest
    /// of that line.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn expect_line(&mut self, start: &str) -> Result<String> {
        self.expect(start)?;
        let from = self.read_to;
        self.expect("\n")?;
        let bytes = self.output.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = bytes.0.get(from..self.read_to).unwrap_or_default();
        Ok(String::from_utf8_lossy(rest).trim_end().to_owned())
    }

    /// Waits until the first byte of output is there.
    ///
    /// # Errors
    /// None came within [`patience`].
    pub fn expect_any(&self) -> Result<Duration> {
        if self.output.wait(Instant::now() + self.patience, |bytes| !bytes.is_empty()) {
            return Ok(self.started.elapsed());
        }
        bail!("the guest wrote nothing\n--- messages\n{}", self.messages.text())
    }

    /// Waits until a message has `text`, and returns the rest of its line.
    ///
    /// # Errors
    /// None has within [`patience`].
    pub fn expect_message_rest(&self, text: &str) -> Result<String> {
        self.expect_message(text)?;
        let whole = |bytes: &[u8]| {
            position(bytes, text.as_bytes())
                .is_some_and(|at| bytes.iter().skip(at).any(|byte| *byte == b'\n'))
        };
        self.messages.wait(Instant::now() + patience(), whole);
        let messages = self.messages.text();
        let rest = messages.split_once(text).and_then(|(_, rest)| rest.lines().next());
        Ok(rest.unwrap_or_default().to_owned())
    }

    /// Waits until the program itself has said `text` on standard error.
    ///
    /// # Errors
    /// It has not within [`patience`].
    pub fn expect_message(&self, text: &str) -> Result<()> {
        if self
            .messages
            .wait(Instant::now() + self.patience, |bytes| position(bytes, text.as_bytes()).is_some())
        {
            return Ok(());
        }
        bail!(
            "no message {text:?}\n--- output\n{}\n--- messages\n{}",
            self.output.text(),
            self.messages.text()
        )
    }

    /// As [`expect_message`](Self::expect_message), after what an earlier call of this found.
    ///
    /// # Errors
    /// As there.
    pub fn next_message(&mut self, text: &str) -> Result<()> {
        let (from, wanted) = (self.messages_read_to, text.as_bytes());
        let found = |bytes: &[u8]| position(bytes.get(from..).unwrap_or_default(), wanted);
        if !self.messages.wait(Instant::now() + self.patience, |bytes| found(bytes).is_some()) {
            bail!("no further message {text:?}\n--- messages\n{}", self.messages.text());
        }
        let bytes = self.messages.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        self.messages_read_to = from + found(&bytes.0).unwrap_or(0) + wanted.len();
        Ok(())
    }

    /// Lets [`next_message`](Self::next_message) find only what is still to come.
    pub fn skip_messages(&mut self) {
        let bytes = self.messages.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        self.messages_read_to = bytes.0.len();
    }

    /// Types `text` on the guest's console.
    ///
    /// # Errors
    /// The pipe is closed.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input was closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Sends `signal` to the front process.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }

    /// The VM's processes, by `cellblock ps --json` as the same user.
    /// Waits until all workers serve.
    ///
    /// # Errors
    /// `ps` fails, or does not know this VM; a worker does not serve within [`patience`].
    pub fn processes(&self, id: &str) -> Result<Tree> {
        let deadline = Instant::now() + self.patience;
        loop {
            let tree = Tree::of_vm(&self.program, id)?;
            if tree.serves() {
                return Ok(tree);
            }
            if Instant::now() >= deadline {
                bail!("a worker still starts: {:?}", tree.processes);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the program has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything that the guest has written so far.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// Everything that the program itself has said so far.
    pub fn messages(&self) -> String {
        self.messages.text()
    }

    /// Waits for the end within [`patience`].
    ///
    /// # Errors
    /// It goes on; it is then killed.
    pub fn wait(self) -> Result<Ended> {
        let patience = self.patience;
        self.wait_for(patience)
    }

    /// Waits for the end for at most `time`.
    ///
    /// # Errors
    /// It goes on; it is then killed.
    pub fn wait_for(mut self, time: Duration) -> Result<Ended> {
        let deadline = Instant::now() + time;
        drop(self.stdin.take());
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!(
                    "it did not end\n--- output\n{}\n--- messages\n{}",
                    self.output.text(),
                    self.messages.text()
                );
            }
            thread::sleep(Duration::from_millis(1));
        };
        let took = self.started.elapsed();
        let closed = Instant::now() + Duration::from_secs(2);
        self.output.wait(closed, |_| false);
        self.messages.wait(closed, |_| false);
        Ok(Ended { status, output: self.output.text(), messages: self.messages.text(), took })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // The child is not yet reaped, so its pid is still its own.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_expected_in_order_and_the_status_is_kept() {
        let mut vm = Vm::start(
            Path::new("/bin/sh"),
            &User::Own,
            ["-c", "echo one; read x; echo got $x; echo no >&2; exit 3"],
        )
        .unwrap();
        vm.expect("one").unwrap();
        vm.type_in("two\n").unwrap();
        assert_eq!(vm.expect_line("got ").unwrap(), "two");
        vm.wait().unwrap().assert(3, "no");
    }

    #[test]
    fn an_expectation_that_cannot_come_true_ends_with_the_stream() {
        let mut vm = Vm::start(Path::new("/bin/echo"), &User::Own, ["one"]).unwrap();
        assert!(vm.expect("two").unwrap_err().to_string().contains("one"));
    }
}
