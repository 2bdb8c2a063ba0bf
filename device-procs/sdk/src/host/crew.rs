//! A worker's threads beside its register thread. A process that waits for its grant starts those that it will need, so that
//! it takes a device over without making any.

use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, Thread};

use rustix::event::{EventfdFlags, eventfd};

/// Enough for what the threads keep on it; a page is taken when it is touched.
const STACK: usize = 256 << 10;

/// What a thread does, for ever: ending it takes system calls that serving does not have.
type Work = Box<dyn FnOnce() -> Infallible + Send>;

/// Threads that wait, and those that are on their way.
#[derive(Debug, Default)]
pub struct Crew {
    /// Never dropped: a thread that nobody can call any more would end.
    waiting: ManuallyDrop<Vec<Waiting>>,
    starting: Vec<mpsc::Receiver<()>>,
}

/// A thread that waits for its work.
#[derive(Debug)]
struct Waiting {
    name: &'static str,
    thread: Thread,
    call: Arc<Call>,
}

/// How it is given that.
struct Call {
    /// Read by the thread, which a thread may do under every policy: it still waits when the sandbox is closed, if it is not needed.
    bell: OwnedFd,
    work: Mutex<Option<Work>>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("bell", &self.bell).finish_non_exhaustive()
    }
}

impl Call {
    fn wait(&self) -> Work {
        loop {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            if let Some(work) = self.work.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return work;
            }
        }
    }

    fn give(&self, work: Work) {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
        // A counter that is read once does not overflow.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl Crew {
    /// Threads called `names` that wait for their work. One that cannot be made is made when it is needed, or fails then.
    pub(crate) fn waiting(names: &[&'static str]) -> Crew {
        let mut crew = Crew::default();
        for name in names {
            let Ok(bell) = eventfd(0, EventfdFlags::CLOEXEC) else { break };
            let call = Arc::new(Call { bell, work: Mutex::default() });
            let own = Arc::clone(&call);
            let Ok(thread) = crew.spawn(name, move || own.wait()()) else { break };
            crew.waiting.push(Waiting { name, thread, call });
        }
        let _ = crew.run();
        crew
    }

    /// Has a thread called `name` do `work`: one that waits, or a new one.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn start(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Infallible + Send + 'static,
    ) -> io::Result<Thread> {
        let Some(place) = self.waiting.iter().position(|waiting| waiting.name == name) else {
            return self.spawn(name, work);
        };
        let Waiting { thread, call, .. } = self.waiting.swap_remove(place);
        call.give(Box::new(work));
        Ok(thread)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Infallible + Send + 'static,
    ) -> io::Result<Thread> {
        let (running, wait) = mpsc::sync_channel(1);
        let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        let handle = builder.spawn(move || {
            let _ = running.send(());
            drop(running);
            work()
        })?;
        self.starting.push(wait);
        Ok(handle.thread().clone())
    }

    /// Waits until all of them run: what a thread's start takes is not allowed once the sandbox is closed.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        self.starting.drain(..).try_for_each(|running| running.recv().map_err(io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Work that says which thread does it.
    fn work(done: &mpsc::Sender<(Option<String>, thread::ThreadId)>) -> impl FnOnce() -> Infallible + use<> {
        let done = done.clone();
        move || {
            let own = thread::current();
            done.send((own.name().map(str::to_owned), own.id())).unwrap();
            loop {
                thread::park();
            }
        }
    }

    #[test]
    fn a_thread_that_waits_takes_the_work_of_its_name_once() {
        let (done, heard) = mpsc::channel();
        let mut crew = Crew::waiting(&["queue 0", "host input"]);
        let waited = crew.waiting[0].thread.id();
        let first = crew.start("queue 0", work(&done)).unwrap();
        assert_eq!(first.id(), waited);
        let patience = Duration::from_secs(20);
        assert_eq!(heard.recv_timeout(patience).unwrap(), (Some("queue 0".to_owned()), waited));
        for name in ["queue 0", "queue 1"] {
            let thread = crew.start(name, work(&done)).unwrap();
            crew.run().unwrap();
            assert_eq!(heard.recv_timeout(patience).unwrap(), (Some(name.to_owned()), thread.id()));
            assert_ne!(thread.id(), waited);
        }
        assert_eq!(crew.waiting.len(), 1, "the one that nobody has called");
    }

    #[test]
    fn one_that_is_woken_for_nothing_waits_on() {
        let (done, heard) = mpsc::channel();
        let mut crew = Crew::waiting(&["queue 0"]);
        rustix::io::write(&crew.waiting[0].call.bell, &1u64.to_ne_bytes()).unwrap();
        assert!(heard.recv_timeout(Duration::from_millis(50)).is_err());
        crew.start("queue 0", work(&done)).unwrap();
        heard.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
