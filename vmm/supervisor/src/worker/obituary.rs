//! A worker whose process has ended, while the spawner has not said how: that is for people and the black box, and its successor
//! does not wait for it.

use std::time::{Duration, Instant};

use cellblock_channel::memory::{Mapping, ReadOnly};
use cellblock_spawner::protocol::Cause;

use super::black_box::Draft;
use super::{Ending, Worker};
use crate::deaths::Verdict;
use crate::link::DeviceState;

/// How long one that has closed its socket may take to end by itself.
const LAST_BREATH: Duration = Duration::from_millis(5);

/// What is known of it.
#[derive(Debug)]
pub(super) struct Obituary {
    instance: u32,
    draft: Draft,
    /// Its last words may be there.
    replies: Mapping<ReadOnly>,
    verdict: Verdict,
    /// What people are to be told once they know of its end.
    news: Option<String>,
}

impl Obituary {
    /// Whether it is of process number `instance`.
    pub(super) fn is_of(&self, instance: u32) -> bool {
        self.instance == instance
    }
}

/// All that there is to tell of an end.
pub(crate) struct Told {
    /// Why, in one sentence.
    pub reason: String,
    /// What it led to; a successor has begun already.
    pub verdict: Verdict,
    /// What became of it meanwhile.
    pub news: Option<String>,
}

impl Worker {
    /// Its process is seen to have ended: whether that is enough to go on. Only one that has served has begun with nothing that it
    /// may have died of, and has left its start behind it.
    pub(crate) fn may_pass_away(&self) -> bool {
        let served =
            matches!(self.state, DeviceState::Serving | DeviceState::Dying) && self.serves_since.is_some();
        served && self.obituary.is_none() && !self.is_being_relieved() && !self.has_failed()
    }

    /// Its process has ended: what that leads to.
    pub(crate) fn pass_away(&mut self) -> Verdict {
        let replies = self.replies.map.clone();
        let (draft, verdict) = self.pass(false);
        self.obituary =
            Some(Obituary { instance: self.process.instance(), draft, replies, verdict, news: None });
        verdict
    }

    /// How the process ended of which all else is known, unless nobody says it any more.
    pub(crate) fn bury(&mut self, cause: Option<Cause>) -> Option<Told> {
        let Obituary { draft, replies, verdict, news, .. } = self.obituary.take()?;
        let ending = cause.map_or(Ending::Unseen, |cause| Ending::reaped(cause, &replies));
        Some(Told { reason: self.black_box.note(draft, &ending), verdict, news })
    }

    /// Keeps `text` until people know of its predecessor's end; `None` = they know of it.
    pub(crate) fn tell_after_the_end(&mut self, text: String) -> Option<String> {
        match &mut self.obituary {
            Some(obituary) => {
                obituary.news = Some(text);
                None
            }
            None => Some(text),
        }
    }

    /// It has closed its socket, and is killed if it has not ended soon.
    pub(crate) fn await_end(&mut self) {
        self.kill_at = Some(Instant::now() + LAST_BREATH);
    }

    /// When it is to be killed.
    pub(crate) fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Whether that time has come, which it does once.
    pub(crate) fn is_to_kill(&mut self, now: Instant) -> bool {
        self.kill_at.take_if(|at| *at <= now).is_some() && self.state == DeviceState::Dying
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::death::Reason;
    use crate::plan::DevicePlan;
    use cellblock_channel::last_words::{self, LastWords};
    use cellblock_channel::memory;
    use cellblock_channel::socket;
    use cellblock_ring::layout;
    use cellblock_spawner::client::Client;
    use cellblock_wire::device::DeviceConfig;

    fn worker() -> Worker {
        let plan = DevicePlan::bare(DeviceConfig::Rtc);
        Worker::new(plan, 1, None, crate::pace::Means::default()).unwrap().0
    }

    #[test]
    fn the_successor_is_there_before_it_is_known_how_the_worker_ended() {
        let (ours, _spawner) = socket::pair().unwrap();
        let client = Client::new(ours);
        let mut worker = worker();
        assert!(!worker.may_pass_away(), "it has not served");
        worker.begin_service();
        let bytes = memory::bytes(layout::reply_words(1));
        let own = memory::open_write(&worker.replies.fd, bytes).unwrap();
        last_words::note(
            &own,
            &LastWords { signal: 31, code: 1, call: Some(41), address: 2, instruction: 3 },
        );
        assert!(worker.may_pass_away());
        assert_eq!(worker.pass_away(), Verdict::Replace);
        assert!(worker.death(1).is_none());
        worker.succeed(0, &client).unwrap();
        let successor = worker.successor();
        assert!(successor.died && !successor.fell);
        worker.begin_service();
        assert!(!worker.may_pass_away(), "one after the other");
        assert_eq!(worker.tell_after_the_end("serves".to_owned()), None);
        assert_eq!(worker.ended(0), super::super::Who::Predecessor);
        let told = worker.bury(Some(Cause::Signaled { signal: 31, core: false })).unwrap();
        assert_eq!((told.verdict, told.news.as_deref()), (Verdict::Replace, Some("serves")));
        let death = worker.death(1).unwrap();
        assert_eq!((death.reason, death.last_words.as_ref().unwrap().call), (Reason::RefusedCall, Some(41)));
        assert!(worker.bury(None).is_none() && worker.may_pass_away());
        assert_eq!(worker.tell_after_the_end("serves".to_owned()).as_deref(), Some("serves"));
    }

    #[test]
    fn one_that_closes_its_socket_and_lives_is_killed_once() {
        let mut worker = worker();
        worker.begin_service();
        assert!(worker.condemn(None));
        worker.await_end();
        let at = worker.kill_at().unwrap();
        assert!(!worker.is_to_kill(at - Duration::from_nanos(1)));
        assert!(worker.is_to_kill(at) && !worker.is_to_kill(at));
        worker.await_end();
        worker.pass_away();
        assert!(!worker.is_to_kill(at + LAST_BREATH), "it has ended");
    }
}
