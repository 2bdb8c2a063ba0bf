//! A VM without a spawner: its workers run on, for init of their pid namespace lives, but nobody can start, kill or reap one. A
//! device whose worker ends or hangs then is given up ([`abandon`](Machine::abandon)), and the VM goes on.

use cellblock_spawner::protocol::Cause;

use super::Machine;
use crate::link::{DeviceState, Event, cut};
use crate::worker::{Ending, News, Worker};

impl Machine {
    pub(super) fn lose_spawner(&mut self, cause: &Cause) {
        (self.spawner_pid, self.spawner_lost) = (0, true);
        let text =
            format!("the spawner {cause}; the VM runs on, but none of its workers can be replaced any more");
        self.say(Event::Warning(cut(text)));
        (0..self.workers.len()).for_each(|index| self.break_off(index));
        (0..self.workers.len()).for_each(|index| self.bury(index, None));
        // Those that were to be killed, and reaped.
        (0..self.workers.len()).for_each(|index| self.give_up_if_alone(index));
    }

    /// Gives a device up whose worker is not used any more, if nobody can replace that.
    pub(super) fn give_up_if_alone(&mut self, index: usize) {
        let alone = self.spawner_lost;
        let dying = |worker: &&mut Worker| alone && worker.state() == DeviceState::Dying;
        if let Some(worker) = self.workers.get_mut(index).filter(dying) {
            let (reason, _) = worker.gone(&Ending::Unseen);
            self.abandon(index, &format!("{reason}; without the spawner it is not replaced"));
        }
    }

    /// While ending: a worker that closes its socket has ended, as far as anybody can see.
    pub(super) fn see_off_alone(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else { return };
        let over = |news: &News| matches!(news, News::Closed | News::Broken(_));
        if worker.take_news().iter().any(over) {
            self.poller.forget(worker.control());
            drop(worker.gone(&Ending::Unseen));
        }
    }
}
