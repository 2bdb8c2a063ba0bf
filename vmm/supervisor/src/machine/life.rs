//! Whether workers live: those that a vCPU waits for by their answers, the others by a sign of life now and then. So one that
//! only a virtqueue has to do with, and that no exit would find silent, is noticed, too.

use std::time::{Duration, Instant};

use cellblock_spawner::protocol::Activity;

use super::Machine;
use crate::worker::{Blame, Debt, Judgement, Worker};

/// Between two signs of life. Each costs a worker some ten microseconds.
const BEAT: Duration = Duration::from_secs(2);

impl Machine {
    /// A vCPU has no answer in time.
    pub(super) fn answers_late(
        &mut self,
        index: usize,
        generation: u32,
        (vcpu, answers): (u32, u64),
        request: &str,
    ) {
        let Some(worker) = self.workers.get_mut(index).filter(|worker| worker.generation() == generation)
        else {
            return;
        };
        let debt = Debt::Access { vcpu, answers };
        if worker.answers_to(vcpu) != answers {
            // It came after all, before we heard of it.
            return;
        }
        let what = format!("no answer to {request} within {} s", worker.deadline().as_secs_f32());
        if self.spawner_lost {
            // Nobody can look at it, nor end it.
            return self.condemn(index, None, Some(Blame::Hung(what)));
        }
        worker.look_at(debt, &what, index, &self.spawner);
    }

    /// Asks for signs of life when it is time, and looks at those who owe one.
    pub(super) fn feel_the_pulse(&mut self) {
        let now = Instant::now();
        if *self.beat_at.get_or_insert(now + BEAT) <= now {
            self.beat_at = Some(now + BEAT);
            self.workers.iter_mut().for_each(Worker::beat);
        }
        let silent: Vec<_> = (0..self.workers.len()).filter(|index| self.lacks_sign(*index, now)).collect();
        for index in silent {
            let what = "no sign of life";
            if self.spawner_lost {
                self.condemn(index, None, Some(Blame::Hung(what.to_owned())));
            } else if let Some(worker) = self.workers.get_mut(index) {
                worker.look_at(Debt::Sign, what, index, &self.spawner);
            }
        }
    }

    fn lacks_sign(&mut self, index: usize, now: Instant) -> bool {
        self.workers.get_mut(index).is_some_and(|worker| worker.lacks_sign(now))
    }

    /// The spawner has looked at a process.
    pub(super) fn judge(&mut self, index: usize, instance: u32, activity: Option<Activity>) {
        // Its answer may be there by now.
        self.take_news(index);
        let Some(worker) = self.workers.get_mut(index) else { return };
        match worker.judge(instance, activity) {
            Judgement::Wait => {}
            Judgement::Starved(text) => self.warn(index, &text),
            Judgement::Hangs(reason) => self.condemn(index, None, Some(Blame::Hung(reason))),
        }
    }
}
