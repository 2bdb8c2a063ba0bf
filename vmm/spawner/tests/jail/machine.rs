//! A spawner with probers, as a front and a supervisor would have it.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_channel::socket::{self, Control};
use cellblock_jail::spawner::Ids;
use cellblock_jail::uids::{COUNT, UidRange};
use cellblock_jail::{Layer, LayerSet, Limits, Refusal};
use cellblock_policy::{Arch, Section, compile};
use cellblock_spawner::client::{Authority, Client};
use cellblock_spawner::protocol::{Cause, Event, Program};
use cellblock_spawner::{Entry, Manifest, Spawner, start};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Long enough for anything here, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn is_root() -> bool {
    cellblock_jail::sys::own_ids().0 == 0
}

/// The layers of the default set that this user can have.
pub(crate) fn default_layers() -> LayerSet {
    LayerSet::all().without(Layer::Cgroup)
}

/// The test's worker, and its policy.
pub(crate) struct Prober {
    folder: PathBuf,
    _made: Option<tempfile::TempDir>,
}

impl Prober {
    /// Compiles it.
    pub(crate) fn build() -> Result<Prober, String> {
        let made = tempfile::tempdir().map_err(|error| error.to_string())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prober/prober.c");
        let folder = made.path().to_owned();
        let status = Command::new("cc")
            .args(["-static-pie", "-O1", "-pthread", "-o"])
            .arg(folder.join("prober"))
            .arg(source)
            .status()
            .map_err(|error| format!("no C compiler (cc): {error}"))?;
        assert!(status.success(), "prober.c does not compile");
        fs::write(folder.join("text"), "not a binary").unwrap();
        for path in [folder.clone(), folder.join("prober"), folder.join("text")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Ok(Prober { folder, _made: Some(made) })
    }

    pub(crate) fn built(folder: PathBuf) -> Prober {
        Prober { folder, _made: None }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A manifest entry.
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            name: "prober".to_owned(),
            binary: self.open("prober"),
            start_filter: program(),
            limits: Limits::SMALL,
            cgroup: None,
        }
    }

    pub(crate) fn open(&self, file: &str) -> OwnedFd {
        File::open(self.folder.join(file)).unwrap().into()
    }
}

fn program() -> Vec<u8> {
    let arch = Arch::named(std::env::consts::ARCH).unwrap();
    compile(include_str!("../prober/prober.policy"), &[], arch, Section::Start).unwrap()
}

/// A spawner, driven by the test.
pub(crate) struct Vm {
    pub(crate) client: Option<Client>,
    pub(crate) authority: Authority,
    /// Init's, as the host numbers it.
    pub(crate) pid: i32,
    /// The spawner's, once it has said so.
    pub(crate) spawner: Cell<i32>,
    _pidfd: OwnedFd,
}

/// A worker, seen from the supervisor.
pub(crate) struct Worker {
    pub(crate) number: u32,
    pub(crate) instance: u32,
    pub(crate) control: Control,
    pub(crate) host_pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl Vm {
    pub(crate) fn start(workers: Vec<Entry>, layers: LayerSet) -> Vm {
        let vm = Vm::launch(workers, layers);
        match vm.client().wait().unwrap().0 {
            Event::Ready { host_pid } => {
                vm.spawner.set(host_pid);
                vm
            }
            other => panic!("the spawner says {other:?}"),
        }
    }

    /// Without waiting for [`Event::Ready`].
    pub(crate) fn launch(workers: Vec<Entry>, layers: LayerSet) -> Vm {
        let range = is_root().then(|| UidRange::take_in(&uid_directory(), 0x7100_0000, 64).unwrap());
        let ids = range.as_ref().map_or(Ids::Own, |range| Ids::Root { base: range.base, count: COUNT });
        let lock = range.map(|range| range.lock.into());
        let manifest =
            Manifest { workers, tombstone: None, layers, ids, lock, refusal: Refusal::Kill, cgroup: None };
        let Spawner { socket, authority, pidfd, pid } = start(manifest).unwrap();
        let authority = Authority::new(authority);
        Vm { client: Some(Client::new(socket)), authority, pid, spawner: Cell::new(0), _pidfd: pidfd }
    }

    pub(crate) fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    /// Asks for worker `number`; it is there once it says hello.
    pub(crate) fn worker(&self, number: u32) -> Worker {
        self.instance(number, 0)
    }

    /// As [`Vm::worker`], one process of several.
    pub(crate) fn instance(&self, number: u32, instance: u32) -> Worker {
        let worker = self.cloned(number, instance);
        let mut hello = [0; 16];
        match worker.control.recv(&mut hello, 0) {
            Ok((length, _)) => assert_eq!(&hello[..length], b"hello"),
            Err(error) => panic!("worker {number} says nothing ({error}): {:?}", self.event()),
        }
        worker
    }

    /// Asks for worker `number`, which may not get as far as to say hello.
    pub(crate) fn cloned(&self, number: u32, instance: u32) -> Worker {
        let (control, theirs) = socket::pair().unwrap();
        self.client().start(number, instance, Program::Own, theirs).unwrap();
        match self.client().wait().unwrap() {
            (Event::Started { worker, instance: which, host_pid, took: _ }, Some(pidfd)) => {
                assert_eq!((worker, which), (number, instance));
                Worker { number, instance, control, host_pid, pidfd }
            }
            other => panic!("start of worker {number}: {other:?}"),
        }
    }

    pub(crate) fn event(&self) -> Event {
        self.client().wait().unwrap().0
    }

    /// How worker `number`, which is about to end, does.
    pub(crate) fn end_of(&self, number: u32) -> Cause {
        match self.event() {
            Event::Ended { worker, instance: _, cause } if worker == number => cause,
            other => panic!("instead of the end of worker {number}: {other:?}"),
        }
    }

    pub(crate) fn kill_init(&self) {
        kill_process(Pid::from_raw(self.pid).unwrap(), Signal::KILL).unwrap();
    }

    /// Keeps the spawner from doing anything, or lets it go on.
    pub(crate) fn stop_spawner(&self, stop: bool) {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_raw(self.spawner.get()).unwrap(), signal).unwrap();
    }

    pub(crate) fn kill_spawner(&self) {
        kill_process(Pid::from_raw(self.spawner.get()).unwrap(), Signal::KILL).unwrap();
    }
}

/// Closes the socket and waits for the spawner's end, which must come.
impl Drop for Vm {
    fn drop(&mut self) {
        self.client = None;
        let pid = Pid::from_raw(self.pid);
        let begin = Instant::now();
        while waitpid(pid, WaitOptions::NOHANG).unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "the spawner {} does not end", self.pid);
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Worker {
    /// Lets it try something: the result and errno.
    pub(crate) fn attempt(&self, what: char, number: i64) -> (i64, i32) {
        self.try_attempt(what, number).unwrap_or_else(|| panic!("the worker died of {what:?}"))
    }

    /// As [`Worker::attempt`]; `None` if it died of it.
    pub(crate) fn try_attempt(&self, what: char, number: i64) -> Option<(i64, i32)> {
        self.control.send(format!("{what}{number}").as_bytes(), &[]).unwrap();
        let mut answer = [0; 64];
        let (length, _) = self.control.recv(&mut answer, 0).ok()?;
        let text = std::str::from_utf8(&answer[..length]).unwrap();
        let (result, errno) = text.split_once(' ').unwrap();
        Some((result.parse().unwrap(), errno.parse().unwrap()))
    }

    /// Whether the process is gone, within a moment.
    pub(crate) fn has_ended(&self) -> bool {
        !Path::new(&format!("/proc/{}", self.host_pid)).exists()
    }

    pub(crate) fn ends(&self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.has_ended() {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }
}

fn uid_directory() -> PathBuf {
    std::env::temp_dir().join("cellblock-test-uids")
}
