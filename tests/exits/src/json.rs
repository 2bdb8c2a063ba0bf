//! Devices behind JSON over a SEQPACKET socket: one datagram asks, one answers, and who waits blocks.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use cellblock_sdk::device::Action;
use cellblock_wire::slot::Space;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::{Deserialize, Serialize};

use crate::board::Devices;

/// The longest datagram, in bytes.
const MOST: usize = 512;

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    space: String,
    op: String,
    address: u64,
    size: u8,
    data: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    data: u64,
    action: String,
}

/// The VMM's side.
pub(crate) struct Proxy {
    socket: OwnedFd,
    _device: Kept,
}

/// A child that is ended with its owner.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// Starts a process that has the devices.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start() -> Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("json-device").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Ok(Proxy { socket: ours, _device: Kept(command.spawn()?) })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The other process is gone, or says what makes no sense.
    pub(crate) fn access(
        &mut self,
        space: Space,
        address: u64,
        size: u8,
        write: Option<u64>,
    ) -> Result<(u64, Action)> {
        let question = Question {
            space: if space == Space::Pio { "pio" } else { "mmio" }.to_owned(),
            op: if write.is_some() { "write" } else { "read" }.to_owned(),
            address,
            size,
            data: write.unwrap_or(0),
        };
        send(&self.socket, &serde_json::to_vec(&question)?, SendFlags::NOSIGNAL)?;
        let mut room = [0; MOST];
        let (bytes, _) = recv(&self.socket, &mut room, RecvFlags::empty())?;
        let answer: Answer = serde_json::from_slice(&room[..bytes]).context("the JSON device's answer")?;
        let action = match answer.action.as_str() {
            "power-off" => Action::PowerOff,
            "reset" => Action::Reset,
            _ => Action::None,
        };
        Ok((answer.data, action))
    }
}

/// The devices' side: standard input is the socket. Ends when that is closed.
///
/// # Errors
/// A datagram that makes no sense.
pub(crate) fn serve() -> Result<()> {
    let devices = Devices::new()?;
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let mut room = [0; MOST];
    loop {
        let (bytes, _) = recv(socket, &mut room, RecvFlags::empty())?;
        if bytes == 0 {
            return Ok(());
        }
        let question: Question = serde_json::from_slice(&room[..bytes]).context("a question")?;
        ensure!(question.size <= 8, "size {}", question.size);
        let space = if question.space == "pio" { Space::Pio } else { Space::Mmio };
        let write = (question.op == "write").then_some(question.data);
        let (data, action) = devices.access(space, question.address, question.size, write);
        let action = match action {
            Action::None => "none",
            Action::PowerOff => "power-off",
            Action::Reset => "reset",
        };
        let answer = Answer { data, action: action.to_owned() };
        send(socket, &serde_json::to_vec(&answer)?, SendFlags::NOSIGNAL)?;
    }
}
