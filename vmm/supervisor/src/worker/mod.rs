//! The worker actor: one device's process, its ring, and its state. Runs on the loop thread.
//!
//! Everything a worker sends is a stranger's word: a message that does not decode, or comes in the wrong state, ends
//! the worker.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cellblock_channel::Requester;
use cellblock_channel::doorbell::{self, Bell, Ringer};
use cellblock_channel::memory::{self, ReadOnly, Sealed, Writable};
use cellblock_channel::socket::{self, Control};
use cellblock_memory::GuestRam;
use cellblock_ring::layout;
use cellblock_ring::state_page::Shape;
use cellblock_spawner::client::Client;
use cellblock_spawner::protocol::Cause;
use cellblock_wire::control::Counters;
use cellblock_wire::device::{DeviceConfig, DeviceKind, IN_FLIGHT_BYTES, MAX_QUEUES, Role};

use crate::death::Death;
use crate::deaths::{Deaths, Verdict};
use crate::error::BuildError;
use crate::link::{DeviceState, DeviceStatus};
use crate::pace::Means;
use crate::plan::DevicePlan;

use crate::proxy::{self, CauseAnswers, Proxy, Successor};
use crate::shadow::Shadow;

/// How long a worker may take to serve.
const START_PATIENCE: Duration = Duration::from_secs(20);

mod back_off;
mod black_box;
mod failure;
mod grant;
mod hand_over;
mod messages;
mod obituary;
mod process;
mod progress;
mod rest;
mod watch;

use back_off::BackOff;
use black_box::{BlackBox, Deceased, Draft};
pub(crate) use black_box::{Blame, Ending};
use failure::Failure;
use grant::Resources;
pub(crate) use grant::Wires;
use hand_over::Candidate;
pub(crate) use hand_over::{CandidateNews, Stage};
pub(crate) use messages::News;
use obituary::Obituary;
pub(crate) use obituary::Told;
pub(crate) use process::Who;
use process::{Interruption, Process, Spare};
use rest::Rest;
use watch::Watch;
pub(crate) use watch::{Debt, Judgement};

/// A device worker.
pub(crate) struct Worker {
    /// What of it needs no question to the worker.
    causes: Option<CauseAnswers>,
    /// What the driver of a virtio device has written.
    shadow: Option<Arc<Shadow>>,
    config: DeviceConfig,
    generation: u32,
    lanes: u32,
    control: Control,
    requests: Sealed<Writable>,
    replies: Sealed<ReadOnly>,
    state_page: Sealed<ReadOnly>,
    ringer: Arc<Ringer>,
    deadline: Duration,
    /// How it and its vCPUs wait.
    means: Means,
    /// What each incarnation is granted beside its rings.
    bell: Bell,
    roles: Vec<(Role, OwnedFd)>,
    state: DeviceState,
    process: Process,
    /// Processes that wait to be the next worker.
    spares: VecDeque<Spare>,
    /// The last number that one of its processes was given.
    instances: u32,
    /// When it is to serve at the latest, if it does not yet.
    serve_by: Option<Instant>,
    /// When it began to serve.
    serves_since: Option<Instant>,
    interruption: Interruption,
    /// The process that is to take over.
    candidate: Option<Candidate>,
    /// How often another binary has taken over.
    upgrades: u16,
    /// Why it is not used any more, if that is known before its end is.
    verdict: Option<Blame>,
    deaths: Deaths,
    black_box: BlackBox,
    /// The one before it, of which it is not known how it ended.
    obituary: Option<Obituary>,
    /// When it is to be killed, if it has not ended by then.
    kill_at: Option<Instant>,
    failure: Failure,
    counters: Counters,
    log_lines: u32,
    watch: Watch,
    /// It was asked for a balloon's report, and has not given one.
    balloon_asked: bool,
    /// What a balloon was set to while it had no worker that served.
    balloon_pages: Option<u32>,
    /// The power button was pressed while nobody could take note of it.
    pressed: bool,
    /// Replies of the next incarnation, if they are made already.
    next_replies: Option<Sealed<ReadOnly>>,
    back_off: BackOff,
    /// When it is to have the spares that it lacks.
    recruit_at: Option<Instant>,
    /// A worker has died since the vCPUs were last told of a successor; `true`: as [`Successor::fell`].
    fell: Option<bool>,
    /// This incarnation begins with what the driver wrote to its registers, for the state page was of no use.
    on_registers: bool,
    /// Whether it is to rest, and does.
    rest: Rest,
}

impl Worker {
    /// The shared memory, doorbell, control socket and interrupts of one device, for `lanes` vCPUs.
    pub(crate) fn new(
        mut plan: DevicePlan,
        lanes: u32,
        ram: Option<&GuestRam>,
        means: Means,
    ) -> Result<(Self, Wires, Control), BuildError> {
        let kind = plan.config.kind();
        let failed = |what| move |source| BuildError::Worker { device: kind, what, source };
        let failed_memory = |memory| move |source| BuildError::Memory { device: kind, memory, source };
        let name = kind.name();
        let requests = memory::create_requests(name, memory::bytes(layout::request_words(lanes)))
            .map_err(failed_memory("requests"))?;
        let replies = memory::create_replies(name, memory::bytes(layout::reply_words(lanes)))
            .map_err(failed_memory("replies"))?;
        let shape = Shape::new(lanes, kind.state_bytes());
        let state_page =
            memory::create_state(name, memory::bytes(shape.words())).map_err(failed_memory("state page"))?;
        let (ringer, bell) = doorbell::pair().map_err(failed("doorbell"))?;
        let (control, theirs) = socket::pair().map_err(failed("control socket"))?;

        let Resources { roles, wires, causes } = grant::resources(&mut plan, ram)?;
        let worker = Worker {
            causes,
            shadow: (!plan.kicks.is_empty()).then(|| Arc::new(Shadow::new(plan.kicks.len()))),
            config: plan.config,
            generation: 1,
            lanes,
            control,
            requests,
            replies,
            state_page,
            ringer: Arc::new(ringer),
            deadline: plan.deadline,
            means,
            bell,
            roles,
            state: DeviceState::Starting,
            process: Process::default(),
            spares: VecDeque::new(),
            instances: 0,
            serve_by: Some(Instant::now() + START_PATIENCE),
            serves_since: None,
            interruption: Interruption::default(),
            candidate: None,
            upgrades: 0,
            verdict: None,
            deaths: Deaths::default(),
            black_box: BlackBox::new(lanes),
            obituary: None,
            kill_at: None,
            failure: Failure::default(),
            counters: Counters::default(),
            log_lines: 0,
            watch: Watch::default(),
            balloon_asked: false,
            balloon_pages: None,
            pressed: false,
            next_replies: None,
            back_off: BackOff::default(),
            recruit_at: None,
            fell: None,
            on_registers: false,
            rest: Rest::default(),
        };
        worker.grant()?;
        Ok((worker, wires, theirs))
    }

    /// A new incarnation, in a process that was waiting or that `spawner` starts for device number `index`. Rings and control
    /// socket are new, for the old ones may hold anything; all else is as it was. Only when the old process is gone; [`grant`]
    /// follows, once everybody knows of the new rings.
    ///
    /// [`grant`]: Self::grant
    pub(crate) fn succeed(&mut self, index: usize, spawner: &Client) -> Result<(), BuildError> {
        self.back_off.begin();
        self.change_process(index, spawner)?;
        self.replies = match self.next_replies.take() {
            Some(replies) => replies,
            None => self.fresh_replies()?,
        };
        self.generation += 1;
        self.state = DeviceState::Starting;
        self.balloon_asked = false;
        self.rest = Rest::default();
        self.watch = Watch::default();
        (self.serve_by, self.serves_since) = (Some(Instant::now() + START_PATIENCE), None);
        Ok(())
    }

    fn fresh_replies(&self) -> Result<Sealed<ReadOnly>, BuildError> {
        let device = self.kind();
        let bytes = memory::bytes(layout::reply_words(self.lanes));
        memory::create_replies(device.name(), bytes).map_err(|source| BuildError::Memory {
            device,
            memory: "replies",
            source,
        })
    }

    /// As [`succeed`](Self::succeed), for the front end of another VMM at the other end of `stream`.
    pub(crate) fn serve_front_end(
        &mut self,
        stream: OwnedFd,
        index: usize,
        spawner: &Client,
    ) -> Result<(), BuildError> {
        let device = self.kind();
        let pages = memory::create_replies(device.name(), usize::from(MAX_QUEUES) * IN_FLIGHT_BYTES);
        let memory = "memory of requests in flight";
        let pages = pages.map_err(|source| BuildError::Memory { device, memory, source })?;
        self.roles.retain(|(role, _)| !matches!(role, Role::VhostUser | Role::InFlight));
        self.roles.extend([(Role::VhostUser, stream), (Role::InFlight, pages.fd)]);
        self.succeed(index, spawner)?;
        self.grant()
    }

    /// The connection to the front end.
    pub(crate) fn front_end(&self) -> Option<&OwnedFd> {
        self.roles.iter().find(|(role, _)| *role == Role::VhostUser).map(|(_, stream)| stream)
    }

    /// Gives the connection to the front end away: once it is closed here too, the front end sees the worker's end.
    pub(crate) fn dismiss_front_end(&mut self) -> Option<OwnedFd> {
        let index = self.roles.iter().position(|(role, _)| *role == Role::VhostUser)?;
        Some(self.roles.swap_remove(index).1)
    }

    /// Its rings, as the vCPUs are told of them.
    ///
    /// Each death is told with one successor only: one whose start has to be tried again follows no other death.
    pub(crate) fn successor(&mut self) -> Successor {
        let fell = self.fell.take();
        Successor {
            died: fell.is_some(),
            fell: fell == Some(true),
            requests: self.requests.map.clone(),
            replies: self.replies.map.clone(),
            generation: self.generation,
        }
    }

    /// The guest reads its registers without asking it: it must serve before the guest runs.
    pub(crate) fn shows_registers(&self) -> bool {
        self.causes.is_some()
    }

    /// Whether it is process number `instance` of its device.
    pub(crate) fn is_process(&self, instance: u32) -> bool {
        self.process.instance() == instance
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        self.config.kind()
    }

    /// Whether the supervisor knows what the guest has written to its registers.
    pub(crate) fn is_virtio(&self) -> bool {
        self.shadow.is_some()
    }

    /// The state; a worker may say that it serves before the spawner says which process it is, and counts as starting until
    /// both are known.
    pub(crate) fn state(&self) -> DeviceState {
        match (self.state, self.process.pid) {
            (DeviceState::Serving, None) => DeviceState::Starting,
            (state, _) => state,
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// How long a vCPU waits for one answer.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// When it is to serve at the latest, if it does not yet.
    pub(crate) fn serve_by(&self) -> Option<Instant> {
        self.serve_by
    }

    /// The way of vCPU `lane` to this worker.
    pub(crate) fn proxy(&self, lane: u32) -> Result<Proxy, BuildError> {
        let requester =
            Requester::new(self.requests.map.clone(), self.replies.map.clone(), lane, self.generation)
                .map_err(|error| BuildError::Ring { device: self.kind(), source: error })?;
        let exits = self.black_box.lanes.get(lane as usize).map(Arc::clone).unwrap_or_default();
        Ok(Proxy::new(
            self.causes.clone(),
            requester,
            Arc::clone(&self.ringer),
            exits,
            self.means,
            self.deadline,
        )
        .noting(self.shadow.clone())
        .allowing(proxy::actions(self.kind())))
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// It is not to be used any more, because of `reason`, and is to be killed. `false` = that was known.
    pub(crate) fn condemn(&mut self, reason: Option<Blame>) -> bool {
        if self.state == DeviceState::Gone {
            return false;
        }
        if self.state == DeviceState::Dying {
            // The first reason is the best one, but any is better than none.
            self.verdict = self.verdict.take().or(reason);
            return false;
        }
        (self.state, self.serve_by, self.verdict) = (DeviceState::Dying, None, reason);
        self.interruption.begin();
        // It takes its time to end.
        self.prepare();
        true
    }

    /// Makes what its successor will need, unless that is there already; what fails now is tried again.
    pub(super) fn prepare(&mut self) {
        if self.next_replies.is_none() {
            self.next_replies = self.fresh_replies().ok();
        }
    }

    /// How a process ended that the spawner has reaped.
    pub(crate) fn ending(&self, cause: Cause) -> Ending {
        Ending::reaped(cause, &self.replies.map)
    }

    /// The process is gone, as `ending` says: what became of it in one sentence, and what that leads to.
    pub(crate) fn gone(&mut self, ending: &Ending) -> (String, Verdict) {
        let fell = self.on_registers && ending.is_its_own(self.verdict.as_ref());
        let (draft, verdict) = self.pass(fell);
        (self.black_box.note(draft, ending), verdict)
    }

    /// The process is gone; `fell` as in [`Successor`].
    fn pass(&mut self, fell: bool) -> (Draft, Verdict) {
        let served = self.serves_since.take();
        (self.on_registers, self.fell, self.kill_at) = (false, Some(fell), None);
        let who = Deceased {
            generation: self.generation,
            pid: self.process.pid.unwrap_or(0),
            served: served.map(|since| since.elapsed()),
            answered: self.exits(),
        };
        let draft = self.black_box.draft(who, self.verdict.take());
        (self.state, self.serve_by, self.process.pid) = (DeviceState::Gone, None, None);
        self.interruption.reaped();
        let verdict = self.deaths.note(self.progress(), served, Instant::now());
        // One that never served will not serve the next time either.
        let first = self.generation == 1 && served.is_none();
        (draft, if first { Verdict::Stillborn } else { verdict })
    }

    fn exits(&self) -> u64 {
        self.black_box.lanes.iter().map(|lane| lane.count()).sum()
    }

    /// What is known of the death of the worker of `generation`.
    pub(crate) fn death(&self, generation: u32) -> Option<&Death> {
        self.black_box.death(generation)
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        DeviceStatus {
            device: self.kind(),
            pid: self.process.pid.unwrap_or(0),
            state: if self.has_failed() { DeviceState::Failed } else { self.state() },
            generation: self.generation,
            exits: self.exits(),
            restarts: self.generation - 1 - u32::from(self.upgrades),
            upgrades: self.upgrades,
            reasons: self.black_box.reasons,
            counters: self.counters,
            spares: self.ready_spares(),
            last_pause: self.interruption.last(),
        }
    }
}
