//! passt (<https://passt.top>): the network of its own user, translated to and from a guest's frames. A process of its own for
//! each device, jailed by itself, that ends when nobody holds the other end of its socket.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(5);

/// A passt of this VM's. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Passt(Child);

impl Drop for Passt {
    fn drop(&mut self) {
        // It ends by itself with its socket, which others may still hold.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Passt {
    /// Starts one for device `id`; returns with it the end of its stream.
    ///
    /// # Errors
    /// A sentence: it is not installed, or what it said.
    pub(crate) fn start(id: &str, mtu: Option<u16>) -> Result<(Passt, OwnedFd), String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("net {id}: {what}: {error}");
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|error| failed("a socket for passt cannot be made", &error))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
            .map_err(|error| failed("passt's socket cannot be passed on", &error))?;
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--fd", &theirs.as_raw_fd().to_string()]);
        command.args(mtu.map(|mtu| format!("--mtu={mtu}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("net {id}: passt is not there; install Debian's package passt, or take a tap")
            }
            _ => failed("passt cannot be started", &error),
        })?;
        drop(theirs);
        let mut passt = Passt(child);
        passt.wait_until_jailed().map_err(|why| failed("passt does not start", &why))?;
        // What it says from now on has no reader, and does not hold it up.
        drop(passt.0.stderr.take());
        Ok((passt, ours))
    }

    /// Waits until it has closed its sandbox, which is the last thing before it serves.
    fn wait_until_jailed(&mut self) -> Result<(), String> {
        let status = format!("/proc/{}/status", self.0.id());
        let end = Instant::now() + PATIENCE;
        loop {
            let ended = self.0.try_wait().map_err(|error| error.to_string())?;
            if let Some(ended) = ended {
                return Err(self.last_words().unwrap_or_else(|| ended.to_string()));
            }
            let status = fs::read_to_string(&status).unwrap_or_default();
            if status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("it is not ready after {} seconds", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The last line that it said of itself.
    fn last_words(&mut self) -> Option<String> {
        let mut said = String::new();
        // It has ended: the pipe has an end.
        self.0.stderr.take()?.take(4096).read_to_string(&mut said).ok()?;
        let mut lines = said.lines().filter(|line| !line.trim().is_empty() && !line.contains("syslog"));
        lines.next_back().map(str::to_owned)
    }
}
