//! A hand-over: another process, of another binary, takes over from the worker while that one serves.
//!
//! The *candidate* starts and says what it is while the worker serves. Then the worker comes to rest; only now is the candidate
//! granted what the worker has, and restores its state, at rest too. When it is ready the worker is killed, and once that is
//! gone, so that nothing of it can write any more, the candidate is the worker and goes on. Whatever goes wrong before: the
//! candidate is killed, and once it is gone, if it had been granted anything, the worker goes on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use cellblock_channel::memory::{ReadOnly, Sealed};
use cellblock_channel::socket::{Control, SocketError};
use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::Program;
use cellblock_wire::control::{FromWorker, LogLevel};

use super::messages::{MESSAGES_PER_TURN, check_greeting, may_log, plain};
use super::process::Process;
use super::rest::Rest;
use super::watch::Watch;
use super::{Blame, Ending, Worker};
use crate::error::BuildError;
use crate::link::DeviceState;

/// How long the candidate may take to greet; the worker serves meanwhile.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// How long the worker may take to come to rest; it answers meanwhile.
const REST_PATIENCE: Duration = Duration::from_secs(2);
/// How long the candidate may take to restore, while vCPUs wait for their answers: long enough for a busy host.
const RESTORE_PATIENCE: Duration = Duration::from_secs(2);

/// The process that is to take over.
#[derive(Debug)]
pub(super) struct Candidate {
    pub process: Process,
    control: Control,
    /// The spawner knows its binary by that.
    offer: u32,
    replies: Option<Sealed<ReadOnly>>,
    stage: Stage,
    /// When its stage has to be over; without one it ends by itself.
    by: Option<Instant>,
    /// How the worker ended meanwhile.
    bereft: Option<Ending>,
}

/// How far a hand-over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The candidate has not said yet what it is.
    Greeting,
    /// The worker is to come to rest.
    Quiescing,
    /// The candidate restores the worker's state.
    Restoring,
    /// The worker is being killed.
    Retiring,
    /// The candidate is being killed.
    Withdrawing,
}

/// What a candidate has said.
#[derive(Debug)]
pub(crate) enum CandidateNews {
    /// What it is, which fits.
    Greeted,
    /// It has restored the state.
    Ready,
    /// A line for the log.
    Log(LogLevel, String),
    /// It cannot be the worker: why.
    Failed(String),
}

impl Worker {
    /// Has `spawner` start the binary that was offered for device number `device`, as offer number `offer`.
    ///
    /// # Errors
    /// Why there is no hand-over now.
    pub(crate) fn begin_hand_over(
        &mut self,
        device: usize,
        offer: u32,
        spawner: &Client,
    ) -> Result<(), String> {
        if self.state() != DeviceState::Serving {
            return Err(format!("its worker is {}", self.state().name()));
        }
        if self.has_failed() {
            return Err("it has failed; `cellblock revive` brings it back".to_owned());
        }
        if self.is_being_relieved() {
            return Err("it is being upgraded already".to_owned());
        }
        let (control, theirs) = self.socket().map_err(|error| error.to_string())?;
        let process = self.next_process();
        spawner
            .start(device as u32, process.instance(), Program::Offered { offer }, theirs)
            .map_err(|error| error.to_string())?;
        let by = Some(Instant::now() + GREETING_PATIENCE);
        let (stage, replies, bereft) = (Stage::Greeting, None, None);
        self.candidate = Some(Candidate { process, control, offer, replies, stage, by, bereft });
        Ok(())
    }

    /// How far the hand-over is, if there is one.
    pub(crate) fn hand_over(&self) -> Option<Stage> {
        self.candidate.as_ref().map(|candidate| candidate.stage)
    }

    /// The number of the offer that a hand-over is of.
    pub(crate) fn offer(&self) -> Option<u32> {
        self.candidate.as_ref().map(|candidate| candidate.offer)
    }

    /// Whether there is a hand-over.
    pub(crate) fn is_being_relieved(&self) -> bool {
        self.candidate.is_some()
    }

    /// When the stage has to be over.
    pub(crate) fn hand_over_by(&self) -> Option<Instant> {
        self.candidate.as_ref().and_then(|candidate| candidate.by)
    }

    /// The candidate's control socket.
    pub(crate) fn candidate_control(&self) -> Option<BorrowedFd<'_>> {
        self.candidate.as_ref().map(|candidate| candidate.control.as_fd())
    }

    /// What the candidate has sent, a bounded part of it.
    pub(crate) fn take_candidate_news(&mut self) -> Vec<CandidateNews> {
        let kind = self.kind();
        let Some(candidate) = &mut self.candidate else { return Vec::new() };
        let mut news = Vec::new();
        for _ in 0..MESSAGES_PER_TURN {
            let one = match candidate.control.try_recv_message::<FromWorker>(0) {
                Err(SocketError::NotReady) => break,
                // The spawner says how it ended, which is the better reason.
                Err(SocketError::Closed) => CandidateNews::Failed(String::new()),
                Err(error) => CandidateNews::Failed(error.to_string()),
                Ok((message, _)) => match (message, candidate.stage) {
                    (FromWorker::Hello { version, device }, Stage::Greeting) => {
                        let greeted = check_greeting(version, device, kind);
                        greeted.map_or_else(CandidateNews::Failed, |()| CandidateNews::Greeted)
                    }
                    (FromWorker::Ready, Stage::Restoring) => CandidateNews::Ready,
                    (FromWorker::Log { level, text }, _) => {
                        if !may_log(&mut self.log_lines) {
                            continue;
                        }
                        CandidateNews::Log(level, plain(&text))
                    }
                    (FromWorker::Refused { reason }, _) => CandidateNews::Failed(plain(&reason)),
                    (other, stage) => CandidateNews::Failed(format!("it sent {other:?} while {stage:?}")),
                },
            };
            let last = !matches!(one, CandidateNews::Log(..));
            news.push(one);
            if last {
                break;
            }
        }
        news
    }

    /// The candidate is one: the worker is to come to rest. The pause begins.
    pub(crate) fn candidate_greeted(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.process.greeted = true;
            (candidate.stage, candidate.by) = (Stage::Quiescing, Some(Instant::now() + REST_PATIENCE));
            self.interruption.begin();
            self.quiesce();
        }
    }

    /// The worker rests: the candidate gets what it has, but for the replies, which are its own.
    pub(crate) fn grant_candidate(&mut self) -> Result<(), BuildError> {
        let replies = self.fresh_replies()?;
        let Some(candidate) = &self.candidate else { return Ok(()) };
        self.send_grant(&candidate.control, &replies, self.generation + 1, true)?;
        if let Some(candidate) = &mut self.candidate {
            candidate.replies = Some(replies);
            (candidate.stage, candidate.by) = (Stage::Restoring, Some(Instant::now() + RESTORE_PATIENCE));
        }
        Ok(())
    }

    /// The candidate is ready: the worker is to be killed.
    pub(crate) fn retire(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            (candidate.stage, candidate.by) = (Stage::Retiring, None);
        }
        (self.state, self.serve_by) = (DeviceState::Dying, None);
        self.interruption.killed();
    }

    /// Whether the worker can still go on, and has not begun to.
    pub(crate) fn may_withdraw(&self) -> bool {
        matches!(self.hand_over(), Some(Stage::Greeting | Stage::Quiescing | Stage::Restoring))
    }

    /// Kills the candidate, whose end follows. A spawner that is gone is seen by its socket.
    pub(crate) fn kill_candidate(&self, device: usize, spawner: &Client) {
        if let Some(candidate) = &self.candidate {
            let _ = spawner.kill(device as u32, candidate.process.instance());
        }
    }

    /// The candidate is to be killed, by `spawner`. `true` = the worker cannot go on before it is gone.
    pub(crate) fn withdraw(&mut self, device: usize, spawner: &Client) -> bool {
        self.kill_candidate(device, spawner);
        let Some(candidate) = &mut self.candidate else { return false };
        let _ = spawner.settle(device as u32, candidate.offer, false);
        let granted = candidate.stage == Stage::Restoring;
        if granted {
            (candidate.stage, candidate.by) = (Stage::Withdrawing, None);
        } else {
            self.candidate = None;
        }
        granted
    }

    /// The worker has ended, as `ending` says, and the candidate is not gone yet.
    pub(crate) fn bereave(&mut self, ending: Ending) {
        if let Some(candidate) = &mut self.candidate {
            candidate.bereft = Some(ending);
        }
    }

    /// There is no candidate any more. How the worker ended meanwhile, if it did.
    pub(crate) fn forget_candidate(&mut self) -> Option<Ending> {
        self.candidate.take().and_then(|candidate| candidate.bereft)
    }

    /// The candidate has ended while the worker is being killed for it.
    pub(crate) fn retire_for_nobody(&mut self, device: usize, spawner: &Client) {
        if let Some(candidate) = self.candidate.take() {
            let _ = spawner.settle(device as u32, candidate.offer, false);
        }
        self.verdict = Some(Blame::Asked);
    }

    /// The worker is gone, as it was to be: the candidate is the worker, at rest. Its spares are of the old binary, and end.
    pub(crate) fn take_over(&mut self, device: usize, spawner: &Client) {
        let Some(Candidate { process, control, offer, replies: Some(replies), .. }) = self.candidate.take()
        else {
            return;
        };
        (self.process, self.control, self.replies) = (process, control, replies);
        self.interruption.reaped();
        self.generation += 1;
        self.upgrades = self.upgrades.saturating_add(1);
        self.state = DeviceState::Serving;
        self.failure.note_service();
        (self.serves_since, self.verdict) = (Some(Instant::now()), None);
        (self.watch, self.balloon_asked) = (Watch::default(), false);
        self.rest = Rest::resting();
        let _ = spawner.settle(device as u32, offer, true);
        for spare in self.spares.drain(..) {
            let _ = spawner.kill(device as u32, spare.instance());
        }
    }

    /// It goes on.
    pub(crate) fn go_on(&mut self) {
        self.interruption.handed_over(&self.process);
        self.resume();
        // What the host has said since it was granted all this went to the one before it.
        self.tell_host_settings();
    }
}
