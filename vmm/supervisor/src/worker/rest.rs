//! A worker at rest: it answers nothing and changes nothing, and its state page says where it is. For a pause of the VM, and
//! for a successor that takes over from one that works.

use cellblock_wire::control::ToWorker;

use super::Worker;

/// Where one incarnation is on its way to rest.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// What it was asked for last, counted; so an answer to another question is known as that.
    number: u32,
    wanted: bool,
    reached: bool,
}

impl Rest {
    /// Of a worker that has begun at rest.
    pub(super) fn resting() -> Rest {
        Rest { number: 0, wanted: true, reached: true }
    }

    /// It says that it rests, as asked by question `number`; whether that is news. One that is late, or invented, is let fall.
    pub(super) fn reached(&mut self, number: u32) -> bool {
        let news = self.wanted && !self.reached && number == self.number;
        self.reached |= news;
        news
    }
}

impl Worker {
    /// Asks it to come to rest; it says [`News::Quiesced`](super::News::Quiesced) then. One that does not serve has to be asked
    /// when it does: its successor does not know.
    pub(crate) fn quiesce(&mut self) {
        if !self.rest.wanted {
            let number = self.rest.number.wrapping_add(1);
            self.rest = Rest { number, wanted: true, reached: false };
            self.tell(&ToWorker::Quiesce { number });
        }
    }

    /// Whether it rests.
    pub(crate) fn is_quiet(&self) -> bool {
        self.rest.reached || self.is_absent()
    }

    /// Has it go on.
    pub(crate) fn resume(&mut self) {
        if std::mem::take(&mut self.rest.wanted) {
            self.rest.reached = false;
            self.tell(&ToWorker::Resume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_last_question_counts() {
        let mut rest = Rest { number: 2, wanted: true, reached: false };
        assert!(!rest.reached(1), "of the question before");
        assert!(rest.reached(2));
        assert!(!rest.reached(2), "once");
        rest = Rest { number: 2, wanted: false, reached: false };
        assert!(!rest.reached(2), "it was told to go on");
        assert!(!rest.reached);
    }
}
