//! One worker of the manifest: what its processes are made of, and those that run.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use cellblock_channel::process::{install::MAX_PROGRAM, landlock};
use cellblock_jail::worker::{self, Progress};
use cellblock_jail::{JailError, Layer, LayerSet, Limits, Step, spawner as jail, sys};
use cellblock_policy::with_refusal;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::pread;

use crate::protocol::{self, Refusal, StartTime};
use crate::{Entry, Tombstone, out_of_the_way};

/// Why a process was not started.
pub(crate) enum Unstarted {
    /// It makes no sense.
    Refused(Refusal),
    /// It was tried.
    Failed(JailError),
}

impl From<JailError> for Unstarted {
    fn from(error: JailError) -> Self {
        Unstarted::Failed(error)
    }
}

/// What all starts have in common.
pub(crate) struct Ground {
    /// The host's /proc.
    pub proc: OwnedFd,
    pub layers: LayerSet,
    /// Whether the front is root.
    pub privileged: bool,
    pub ids: jail::Ids,
    pub refusal: cellblock_jail::Refusal,
    /// A child tells here where it stands. One is on its way at a time: the clone waits until it has executed its binary.
    pub progress: Progress,
}

impl Ground {
    pub(crate) fn new(
        proc: OwnedFd,
        layers: LayerSet,
        privileged: bool,
        ids: jail::Ids,
        refusal: cellblock_jail::Refusal,
    ) -> Result<Ground, JailError> {
        let page: &'static [AtomicU32; 1024] = sys::shared_page().map_err(cloning)?;
        let words = page.first_chunk().ok_or(JailError { step: Step::Clone, errno: 0 })?;
        Ok(Ground { proc, layers, privileged, ids, refusal, progress: Progress::new(words) })
    }
}

/// One worker of the manifest.
pub(crate) struct Slot {
    name: CString,
    limits: Limits,
    cgroup: Option<OwnedFd>,
    id: Option<u32>,
    maps: (CString, CString),
    program: Program,
    /// What the front has offered in its place.
    offered: Option<(u32, Result<Program, Refusal>)>,
    /// At most [`crate::MAX_PROCESSES`].
    pub processes: Vec<Process>,
}

/// What a worker's process executes.
pub(crate) struct Program {
    binary: OwnedFd,
    /// Its start program.
    filter: Vec<u8>,
    /// Lets it execute its binary.
    ruleset: Option<OwnedFd>,
}

/// One that was started and is not reaped.
pub(crate) struct Process {
    pub instance: u32,
    pub pidfd: OwnedFd,
    /// It did not get as far as its binary.
    pub failure: Option<JailError>,
}

impl Slot {
    /// Number `index` of the manifest.
    pub(crate) fn new(index: usize, entry: Entry, ground: &Ground) -> Result<Slot, JailError> {
        let name = CString::new(entry.name).unwrap_or_default();
        let mut limits = entry.limits;
        if !ground.layers.has(Layer::User) {
            // Counted for its uid as a whole then, not for each process.
            limits.threads = limits.threads.saturating_mul(crate::MAX_PROCESSES as u32);
        }
        let id = ground.ids.worker(ground.layers, index);
        Ok(Slot {
            name,
            limits,
            cgroup: entry.cgroup.map(out_of_the_way).transpose().map_err(descriptors)?,
            id,
            maps: worker::id_map(id),
            program: Program::new(entry.binary, entry.start_filter, ground)?,
            offered: None,
            processes: Vec::new(),
        })
    }

    /// What stays open while the spawner lives.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.program.descriptors().chain(self.cgroup.as_ref().map(AsFd::as_fd))
    }

    /// Clones a process, which has `control` as its socket and executes `program`. Returns a copy of
    /// its pidfd for the supervisor, and what it took.
    pub(crate) fn start(
        &mut self,
        instance: u32,
        program: protocol::Program,
        control: OwnedFd,
        tombstone: Option<&Program>,
        ground: &Ground,
    ) -> Result<(OwnedFd, StartTime), Unstarted> {
        let began = Instant::now();
        let program = match program {
            protocol::Program::Own => &self.program,
            protocol::Program::Tombstone => tombstone.ok_or(Unstarted::Refused(Refusal::NoTombstone))?,
            protocol::Program::Offered { offer } => match &self.offered {
                Some((number, program)) if *number == offer => {
                    program.as_ref().map_err(|reason| Unstarted::Refused(*reason))?
                }
                _ => return Err(Unstarted::Refused(Refusal::NothingOffered)),
            },
        };
        let pidfd = self.clone_process(control, program, ground)?;
        let all = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        let sandbox_us = ground.progress.micros();
        let copy = pidfd.try_clone();
        let failure = ground.progress.failure().filter(|error| error.errno != 0);
        self.processes.push(Process { instance, pidfd, failure });
        Ok((copy.map_err(descriptors)?, StartTime { spawn_us: all.saturating_sub(sandbox_us), sandbox_us }))
    }

    /// The front offers `files`, as its offer `number`: a binary, and perhaps its start program.
    pub(crate) fn offered(&mut self, number: u32, files: Vec<OwnedFd>, ground: &Ground) {
        self.offered = Some((number, Program::sealed(files, &self.program.filter, ground)));
    }

    /// What was offered under this number is this worker's program from now on, or is forgotten.
    pub(crate) fn settle(&mut self, offer: u32, adopt: bool) {
        if let Some((_, Ok(program))) = self.offered.take_if(|(number, _)| *number == offer)
            && adopt
        {
            self.program = program;
        }
    }

    fn clone_process(
        &self,
        control: OwnedFd,
        program: &Program,
        ground: &Ground,
    ) -> Result<OwnedFd, JailError> {
        let control = out_of_the_way(control).map_err(descriptors)?;
        let plan = worker::Plan {
            layers: ground.layers,
            privileged: ground.privileged || ground.layers.has(Layer::User),
            id: self.id,
            maps: &self.maps,
            limits: &self.limits,
            control: control.as_fd(),
            binary: program.binary.as_fd(),
            proc: ground.proc.as_fd(),
            ruleset: program.ruleset.as_ref().map(AsFd::as_fd),
            start_filter: &program.filter,
            name: &self.name,
        };
        let cgroup = self.cgroup.as_ref().filter(|_| ground.layers.has(Layer::Cgroup)).map(AsFd::as_fd);
        ground.progress.reset();
        // One after the other on their way into the jail: the first that is asked for is the first that a starting guest
        // needs, and would be held up by the others.
        worker::start(&plan, cgroup, &ground.progress)
    }
}

impl Program {
    /// That of all workers that have failed.
    pub(crate) fn of(tombstone: Tombstone, ground: &Ground) -> Result<Program, JailError> {
        Program::new(tombstone.binary, tombstone.start_filter, ground)
    }

    /// What stays open while the spawner lives.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.binary), self.ruleset.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    fn new(binary: OwnedFd, mut filter: Vec<u8>, ground: &Ground) -> Result<Program, JailError> {
        let binary = out_of_the_way(binary).map_err(descriptors)?;
        if ground.refusal != cellblock_jail::Refusal::Kill {
            filter = with_refusal(&filter, ground.refusal);
        }
        Program::ruled(binary, filter, ground, |binary| worker::ruleset(Some(binary)))
    }

    /// Of what was offered. What has no name anywhere needs no rule to be executed. Without a start program of its own it
    /// has `usual`, which is as the jail installs it.
    fn sealed(files: Vec<OwnedFd>, usual: &[u8], ground: &Ground) -> Result<Program, Refusal> {
        let mut files = files.into_iter();
        let binary = files.next().filter(is_sealed).ok_or(Refusal::NotSealed)?;
        let filter = match files.next() {
            Some(file) if !is_sealed(&file) => return Err(Refusal::NotSealed),
            Some(file) => read_program(&file, ground.refusal).ok_or(Refusal::NoProgram)?,
            None => usual.to_vec(),
        };
        let binary = out_of_the_way(binary).map_err(|_| Refusal::NotSealed)?;
        Program::ruled(binary, filter, ground, |_| worker::ruleset(None)).map_err(|_| Refusal::NoProgram)
    }

    fn ruled(
        binary: OwnedFd,
        filter: Vec<u8>,
        ground: &Ground,
        rules: impl FnOnce(BorrowedFd) -> Result<landlock::Ruleset, JailError>,
    ) -> Result<Program, JailError> {
        let wanted = ground.layers.has(Layer::Landlock);
        let ruleset = wanted.then(|| rules(binary.as_fd())).transpose()?;
        let ruleset = ruleset.map(|ruleset| sys::above(ruleset.as_fd(), worker::FREE)).transpose();
        Ok(Program { binary, filter, ruleset: ruleset.map_err(descriptors)? })
    }
}

/// Whether `file` is a memfd that nobody can change any more.
fn is_sealed(file: &OwnedFd) -> bool {
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(all))
}

/// The start program in `file`, as the jail installs it.
fn read_program(file: &OwnedFd, refusal: cellblock_jail::Refusal) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX_PROGRAM + 1];
    let length = pread(file, &mut bytes[..], 0).ok().filter(|length| (1..=MAX_PROGRAM).contains(length))?;
    bytes.truncate(length);
    Some(if refusal == cellblock_jail::Refusal::Kill { bytes } else { with_refusal(&bytes, refusal) })
}

pub(crate) fn descriptors(error: io::Error) -> JailError {
    JailError { step: Step::Descriptors, errno: error.raw_os_error().unwrap_or(0) }
}

pub(crate) fn cloning(error: io::Error) -> JailError {
    JailError { step: Step::Clone, errno: error.raw_os_error().unwrap_or(0) }
}

/// The host's number of the process behind `pidfd`, from the host's /proc; within our pid namespace there is no other way.
pub(crate) fn host_pid(proc: BorrowedFd, pidfd: &OwnedFd) -> Option<i32> {
    let path = CString::new(format!("self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let file = sys::open_at(proc, &path, 0).ok()?;
    let mut buffer = [0; 512];
    let length = sys::read(file.as_fd(), &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}
