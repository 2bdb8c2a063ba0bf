//! What the front process and the supervisor say to each other: one SEQPACKET datagram a message.
//!
//! The front speaks for a person, so its commands are few and fixed; the supervisor reports what became of the VM.

use std::time::Duration;

use cellblock_loader::Loaded;
use cellblock_wire::control::{BalloonReport, Checked, CodecError, Counters};
use cellblock_wire::device::DeviceKind;
use serde::{Deserialize, Serialize};

use crate::death::{Death, Reasons};

/// From the front to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Press the guest's power button.
    PowerButton,
    /// End the VM now.
    Stop,
    /// Answer with [`Event::Status`].
    ReportStatus,
    /// A front end of another VMM has connected; with one descriptor, its stream. Answered by [`Event::FrontEndGone`].
    FrontEnd,
    /// Answer with [`Event::Death`].
    ReportDeath {
        /// The device's place in the status.
        device: u32,
        /// The incarnation of the worker that died.
        generation: u32,
    },
    /// Replace a device's worker, if it still is this one.
    Restart {
        /// The device's place in the status.
        device: u32,
        /// The worker's incarnation.
        generation: u32,
    },
    /// Stop the vCPUs between two instructions and the devices between two requests; answered by [`Event::Paused`].
    Pause,
    /// Go on; answered by [`Event::Resumed`].
    Resume,
    /// Start workers of the device's own again, if it has failed and its tombstone still is this one.
    Revive {
        /// The device's place in the status.
        device: u32,
        /// The tombstone's incarnation.
        generation: u32,
    },
    /// Have another binary take over from a device's worker, if it still is this one: what the front has offered to the spawner.
    /// Answered by [`Event::Upgraded`].
    Upgrade {
        /// The device's place in the status.
        device: u32,
        /// The worker's incarnation.
        generation: u32,
        /// The number of the offer.
        offer: u32,
    },
    /// Answer with [`Event::Balloon`], once the guest has told what is new, or has had its time for it.
    Balloon {
        /// The size that it shall have from now on, in pages of 4 KiB.
        set: Option<u32>,
    },
    /// The terminal of the console has this size.
    Resize {
        /// The console's port.
        port: u32,
        /// Width in characters.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
}

/// From the supervisor to the front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Something the user may want to know; the VM goes on.
    Note(String),
    /// A device lost its worker, or has a new one; the VM goes on.
    Warning(String),
    /// A worker's own line for the log.
    WorkerLog {
        /// Which device.
        device: DeviceKind,
        /// The line.
        text: String,
    },
    /// All devices serve and the vCPUs run.
    Running,
    /// Another binary has taken over, or why it has not: then all is as before.
    Upgraded {
        /// The number that it was offered under.
        offer: u32,
        /// How the device was without a worker.
        result: Result<Pause, String>,
    },
    /// How things stand; sent on demand.
    Status(Status),
    /// What is known of the death of a worker; sent on demand.
    Death {
        /// As asked.
        device: u32,
        /// As asked.
        generation: u32,
        /// `None` = it lives, or that is too long ago.
        death: Option<Death>,
    },
    /// What is known of the balloon, if there is one; sent on demand.
    Balloon(Option<BalloonReport>),
    /// The VM is paused, or why it is not: then it runs on.
    Paused(Result<(), String>),
    /// The VM runs.
    Resumed,
    /// The worker that served a front end has ended, and its connection with it.
    FrontEndGone {
        /// Why, unless the front end has gone by itself.
        reason: Option<String>,
    },
    /// How often the guest accessed what, a part of it; at the end, if that was asked for.
    ExitCounts(Vec<ExitCount>),
    /// The end of that.
    ExitTotals {
        /// Times that a vCPU left the guest, for an access or for something else.
        exits: u64,
        /// Reads and writes of so many addresses that they were not told apart.
        elsewhere: (u64, u64),
    },
    /// The VM has ended; the last message.
    Ended(End),
}

/// Of an [`Event::ExitCounts`].
pub const EXIT_COUNTS: usize = 32;

/// Of all of them together: they go out one after the other to a front that may not read, and must leave room for the end.
pub const MOST_EXIT_COUNTS: usize = 256;

/// How often the guest accessed one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCount {
    /// Whose it is; `None` = nobody's.
    pub device: Option<String>,
    /// The device's region.
    pub region: u32,
    /// In that region.
    pub offset: u64,
    /// A port, not memory.
    pub port: bool,
    /// As the guest has it.
    pub address: u64,
    /// How often it was read.
    pub reads: u64,
    /// How often it was written.
    pub writes: u64,
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest powered the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// A vCPU triple-faulted.
    TripleFault {
        /// Which vCPU.
        vcpu: u32,
    },
    /// The hypervisor cannot run the guest any further.
    Internal {
        /// Which vCPU.
        vcpu: u32,
        /// RIP and instruction bytes where there are any.
        text: String,
    },
    /// A device never came to serve.
    Device {
        /// Which device.
        device: DeviceKind,
        /// What happened.
        reason: String,
    },
    /// The VM did not start.
    Refused {
        /// Why.
        reason: String,
    },
    /// One of the VM's own processes is gone that it cannot go on without.
    Lost {
        /// Which, and what is known of it.
        reason: String,
    },
    /// The front asked for it.
    Stopped,
}

/// How a VM stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its devices, in the order of the board.
    pub devices: Vec<DeviceStatus>,
    /// Nothing of it runs until it is resumed.
    pub paused: bool,
    /// The spawner's process, in the front's pid namespace; 0 = it is on its way, or gone.
    pub spawner: i32,
    /// The spawner is gone: no worker can be started or ended.
    pub spawner_lost: bool,
    /// Returns from `KVM_RUN` for each vCPU.
    pub vcpu_exits: Vec<u64>,
}

/// The devices' names, which are also their workers': their kind, and from the second of a kind on a number.
pub fn device_names(kinds: &[DeviceKind]) -> Vec<String> {
    let name = |(place, kind): (usize, &DeviceKind)| {
        let before = kinds.iter().take(place).filter(|other| *other == kind).count();
        if before == 0 { kind.to_string() } else { format!("{kind}-{}", before + 1) }
    };
    kinds.iter().enumerate().map(name).collect()
}

impl Status {
    /// The devices' names.
    pub fn device_names(&self) -> Vec<String> {
        device_names(&self.devices.iter().map(|device| device.device).collect::<Vec<_>>())
    }
}

/// How a device stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Which device.
    pub device: DeviceKind,
    /// The worker's process, in the front's pid namespace; 0 = not started yet.
    pub pid: i32,
    /// Whether it serves.
    pub state: DeviceState,
    /// The worker's incarnation, from 1.
    pub generation: u32,
    /// How often it had to be replaced.
    pub restarts: u32,
    /// Why.
    pub reasons: Reasons,
    /// How often another binary has taken over.
    pub upgrades: u16,
    /// Exits that it answered.
    pub exits: u64,
    /// What the worker counted, as of the last report.
    pub counters: Counters,
    /// Processes that wait to take its place.
    pub spares: u8,
    /// When the device was last without a worker.
    pub last_pause: Option<Pause>,
}

/// How a device was without a worker, from when that was noticed until the next one served; one step after the other, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it was noticed, in ns of the host's `CLOCK_MONOTONIC`.
    pub noticed_ns: u64,
    /// Until the old process was gone.
    pub reap_us: u32,
    /// The next process' clone and exec; 0 if it had been waiting.
    pub spawn_us: u32,
    /// Its way into the jail in between; 0 if it had been waiting.
    pub sandbox_us: u32,
    /// The rest: until it had taken what it was granted and the old one's state, and had closed its sandbox.
    pub restore_us: u32,
    /// It had been waiting.
    pub spare: bool,
}

impl Pause {
    /// All of it.
    pub fn length(&self) -> Duration {
        let steps = [self.reap_us, self.spawn_us, self.sandbox_us, self.restore_us];
        Duration::from_micros(steps.into_iter().map(u64::from).sum())
    }
}

/// A device's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// The worker is being started and jailed.
    Starting,
    /// The worker is jailed and answers.
    Serving,
    /// The worker is being killed, or was seen to end.
    Dying,
    /// The worker is gone.
    Gone,
    /// Its workers have died too often: its requests fail.
    Failed,
}

impl DeviceState {
    /// As `cellblock ps` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceState::Starting => "starting",
            DeviceState::Serving => "serving",
            DeviceState::Dying => "dying",
            DeviceState::Gone => "gone",
            DeviceState::Failed => "failed",
        }
    }
}

/// The loader process's one message to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum LoaderReport {
    /// Guest memory is written.
    Loaded(Loaded),
    /// Why it is not.
    Failed(String),
}

impl Checked for LoaderReport {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

/// The longest text in an [`Event`]; longer ones are cut.
const MAX_TEXT: usize = 1024;

/// `text`, cut so that it fits in an [`Event`].
pub fn cut(text: String) -> String {
    cut_to(text, MAX_TEXT)
}

/// `text`, cut between characters to at most `most` bytes.
pub(crate) fn cut_to(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Checked for Command {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

impl Checked for Event {
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellblock_wire::control::{decode, encode};

    #[test]
    fn the_fullest_status_fits_in_a_message() {
        let device = DeviceStatus {
            device: DeviceKind::AcpiPower,
            pid: i32::MAX,
            state: DeviceState::Serving,
            generation: u32::MAX,
            restarts: u32::MAX,
            reasons: Reasons {
                signal: u16::MAX,
                refused_call: u16::MAX,
                exited: u16::MAX,
                hung: u16::MAX,
                violation: u16::MAX,
                unstarted: u16::MAX,
                asked: u16::MAX,
            },
            upgrades: u16::MAX,
            exits: u64::MAX,
            counters: Counters {
                served: u64::MAX,
                requests: u64::MAX,
                host_in: u64::MAX,
                host_out: u64::MAX,
                dropped: u64::MAX,
                interrupts: u64::MAX,
                failed: u64::MAX,
                limited: u64::MAX,
            },
            spares: u8::MAX,
            last_pause: Some(Pause {
                noticed_ns: u64::MAX,
                reap_us: u32::MAX,
                spawn_us: u32::MAX,
                sandbox_us: u32::MAX,
                restore_us: u32::MAX,
                spare: true,
            }),
        };
        let event = Event::Status(Status {
            devices: vec![device; 24],
            vcpu_exits: vec![u64::MAX; 32],
            paused: true,
            spawner: i32::MAX,
            spawner_lost: true,
        });
        assert_eq!(decode::<Event>(&encode(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn the_longest_counts_fit_in_a_message() {
        let count = ExitCount {
            device: Some("acpi-power-10".to_owned()),
            region: u32::MAX,
            offset: u64::MAX,
            port: true,
            address: u64::MAX,
            reads: u64::MAX,
            writes: u64::MAX,
        };
        let event = Event::ExitCounts(vec![count; EXIT_COUNTS]);
        assert_eq!(decode::<Event>(&encode(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = cut("ä".repeat(MAX_TEXT));
        assert!(cut.len() <= MAX_TEXT && cut.chars().all(|c| c == 'ä'));
    }
}
