//! The balloon's behaviour.

use cellblock_sdk::device::{Clock, Event, SECOND};
use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Interrupt, Kicker, QueueError, Queues, Space, Wait, Work};
use cellblock_wire::control::BalloonReport;
use cellblock_wire::device::BalloonConfig;

use crate::pages::{Pages, Released};
use crate::spec::{QUEUE_SIZE, config, feature, queue};
use crate::statistics::{self, Desk};

/// Requests of one queue that are served in a turn.
const TURN: usize = 16;
/// How long the guest may take to tell its statistics.
pub const PATIENCE: u64 = SECOND / 2;

/// The device as its driver finds it. `space` is its configuration space.
pub fn identity(balloon: &BalloonConfig, space: Space) -> Identity {
    let offered = [
        (balloon.statistics, feature::STATS_VQ),
        (balloon.deflate_on_oom, feature::DEFLATE_ON_OOM),
        (balloon.reporting, feature::PAGE_REPORTING),
    ];
    let features = offered.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
    Identity {
        id: device_id::BALLOON,
        features,
        queues: balloon.queues(),
        queue_size: QUEUE_SIZE,
        config: space,
    }
}

/// The configuration space of a balloon that is empty, and shall have `balloon`'s size, or all of `pages` if that is less.
pub fn space(balloon: &BalloonConfig, pages: &Pages) -> Space {
    let mut bytes = vec![0; config::BYTES];
    let target = balloon.pages.min(pages.count()).to_le_bytes();
    bytes.iter_mut().zip(target).for_each(|(byte, value)| *byte = value);
    Space::with_writable(bytes, config::ACTUAL..config::BYTES).changed_on_request()
}

/// The register thread's part: what the supervisor says, and what it is told.
#[derive(Debug, Clone)]
pub struct Front {
    space: Space,
    interrupt: Interrupt,
    desk: Desk,
    /// Wakes the post.
    kicker: Kicker,
    /// Pages that there are.
    most: u32,
}

impl Front {
    /// Of the device with this `space` and `interrupt`, whose post has the other end of `desk` and is woken by `kicker`.
    pub fn new(space: Space, interrupt: Interrupt, desk: Desk, kicker: Kicker, pages: &Pages) -> Self {
        Front { space, interrupt, desk, kicker, most: pages.count() }
    }

    /// Takes what the supervisor says.
    pub fn event(&self, event: Event) {
        match event {
            Event::Balloon { pages } => {
                let target = pages.min(self.most);
                self.space.set(config::NUM_PAGES, &target.to_le_bytes(), &self.interrupt);
            }
            Event::ReportBalloon => {
                self.desk.ask();
                self.kicker.kick();
            }
            _ => {}
        }
    }

    /// The answer to [`Event::ReportBalloon`], once it is there.
    pub fn report(&self) -> Option<BalloonReport> {
        let (statistics, fresh) = self.desk.answer()?;
        let field = |offset| {
            let mut bytes = [0; 4];
            self.space.get(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let (target, actual) = (field(config::NUM_PAGES), field(config::ACTUAL));
        Some(BalloonReport { target, actual, fresh, statistics })
    }
}

/// Serves all queues: one thread is enough for what a guest does a few times a second.
#[derive(Debug)]
pub struct Balloon<C, W> {
    pages: Pages,
    desk: Desk,
    clock: C,
    /// Tells the register thread that the desk has an answer.
    wake: W,
    features: u64,
    /// The request by which the guest waits to be asked for statistics.
    asked_by: Option<u16>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

impl<C: Clock, W: Fn()> Balloon<C, W> {
    /// A balloon in `pages`.
    pub fn new(pages: Pages, desk: Desk, clock: C, wake: W) -> Self {
        Balloon { pages, desk, clock, wake, features: 0, asked_by: None }
    }

    /// With reporting, each queue past those that are something else: see [`BalloonConfig::queues`].
    fn purpose(&self, slot: usize) -> Option<Purpose> {
        let has = |bit| self.features & bit != 0;
        match slot {
            queue::INFLATE => Some(Purpose::Inflate),
            queue::DEFLATE => Some(Purpose::Deflate),
            queue::STATISTICS if has(feature::STATS_VQ) => Some(Purpose::Statistics),
            _ if has(feature::PAGE_REPORTING) => Some(Purpose::Reporting),
            _ => None,
        }
    }

    /// Serves some requests of a queue; whether there may be more.
    fn serve(&mut self, slot: usize, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(purpose) = self.purpose(slot) else { return Ok(false) };
        match queues.get(slot) {
            Some(queue) => queue.silence()?,
            None => return Ok(false),
        }
        for _ in 0..TURN {
            if queues.stopping(slot) {
                return Ok(false);
            }
            let Some(queue) = queues.get(slot) else { return Ok(false) };
            let Some(head) = queue.pop()? else { return queue.listen() };
            let mut chain = queue.chain();
            let released = match purpose {
                Purpose::Inflate => self.pages.release_numbered(&mut chain),
                Purpose::Reporting => self.pages.release_reported(&mut chain),
                // A page is there again when the guest touches it.
                Purpose::Deflate => Released::default(),
                Purpose::Statistics => {
                    if self.desk.told(statistics::read(&mut chain)) {
                        (self.wake)();
                    }
                    // One at a time is what there may be; another goes back at once.
                    if let Some(before) = self.asked_by.replace(head) {
                        queue.push(before, 0)?;
                        queues.signal(slot)?;
                    }
                    continue;
                }
            };
            if released.refused > 0 {
                queue.count_failure();
            }
            queue.push(head, 0)?;
            queues.signal(slot)?;
        }
        Ok(true)
    }

    /// Asks the guest for statistics, if somebody wants them: by giving its request back.
    fn ask(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let until = self.clock.monotonic().saturating_add(PATIENCE);
        if !self.desk.take_question(until) {
            return Ok(());
        }
        if let (Some(head), Some(queue)) = (self.asked_by.take(), queues.get(queue::STATISTICS)) {
            queue.push(head, 0)?;
            queues.signal(queue::STATISTICS)?;
        }
        Ok(())
    }
}

impl<C: Clock, W: Fn()> Work for Balloon<C, W> {
    fn begin(&mut self, slot: usize, features: u64) {
        self.features = features;
        if self.purpose(slot) == Some(Purpose::Statistics) {
            self.asked_by = None;
            self.desk.set_open(true);
        }
    }

    fn end(&mut self, slot: usize) {
        if self.purpose(slot) == Some(Purpose::Statistics) {
            self.asked_by = None;
            if self.desk.set_open(false) {
                (self.wake)();
            }
        }
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let mut again = false;
        for slot in 0..queues.len() {
            again |= self.serve(slot, queues)?;
        }
        self.ask(queues)?;
        let (until, answered) = self.desk.patience(self.clock.monotonic());
        if answered {
            (self.wake)();
        }
        Ok(Wait { until, again, ..Wait::default() })
    }
}
