//! What the guest does, and where: each row of the result.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellblock_e2e::Places;

use crate::floors;
use crate::guest::{Measured, parse};

/// How a guest's access gets its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Via {
    /// Nobody is asked: the exit and the entry alone.
    Nothing,
    InProcess,
    /// The program that ships.
    Worker,
    /// The same with `--poll-max-us 0`.
    NeverSpinning,
    Json,
}

impl Via {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Via::Nothing => "KVM_RUN alone",
            Via::InProcess => "in-process",
            Via::Worker => "worker",
            Via::NeverSpinning => "worker, never spinning",
            Via::Json => "JSON over SEQPACKET",
        }
    }
}

/// What a second vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    None,
    Computes,
    /// Reads the keyboard controller's status.
    OtherDevice,
    /// Reads the serial port's line status, as the first does.
    SameDevice,
}

/// One thing that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What is special about it, for people.
    pub(crate) what: &'static str,
    /// Between two accesses the guest computes for so long.
    pub(crate) idle: Duration,
    pub(crate) load: Load,
    /// Everything runs on one CPU of the host.
    pub(crate) one_cpu: bool,
    /// Samples of each kind of access.
    pub(crate) count: u32,
}

const IDLE: Duration = Duration::from_millis(10);

/// All there are.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let hot = Scenario {
        name: "hot",
        what: "one access after the other",
        idle: Duration::ZERO,
        load: Load::None,
        one_cpu: false,
        count: 3000,
    };
    vec![
        hot.clone(),
        Scenario {
            name: "idle",
            what: "each access after 10 ms without",
            idle: IDLE,
            count: 20,
            ..hot.clone()
        },
        Scenario {
            name: "one-cpu",
            what: "one access after the other, everything on one CPU",
            one_cpu: true,
            ..hot.clone()
        },
        Scenario {
            name: "two-devices",
            what: "a second vCPU uses another device",
            load: Load::OtherDevice,
            ..hot.clone()
        },
        Scenario {
            name: "one-device",
            what: "a second vCPU uses the same device",
            load: Load::SameDevice,
            ..hot.clone()
        },
        Scenario { name: "compute", what: "a second vCPU computes", load: Load::Computes, ..hot },
    ]
}

impl Scenario {
    pub(crate) fn second_cpu(&self) -> bool {
        self.load != Load::None
    }

    /// Whether this machine has the CPUs; says so if not.
    pub(crate) fn possible(&self) -> bool {
        let enough = !self.second_cpu() || floors::cpus().is_ok_and(|cpus| cpus.len() > 1);
        if !enough {
            eprintln!("SKIP: {}: it needs two CPUs", self.name);
        }
        enough
    }

    /// By whom the accesses are answered, in turn.
    pub(crate) fn vias(&self) -> Vec<Via> {
        let mut vias = vec![Via::InProcess, Via::Worker];
        if self.second_cpu() {
            vias.push(Via::NeverSpinning);
        } else {
            vias.push(Via::Json);
        }
        if self.name == "hot" {
            vias.push(Via::Nothing);
        }
        vias
    }

    pub(crate) fn floor_rounds(&self) -> u32 {
        if self.idle == Duration::ZERO { 300 } else { 10 }
    }

    fn cmdline(&self) -> String {
        let (load, port) = match self.load {
            Load::None => (0, 0),
            Load::Computes => (1, 0),
            Load::OtherDevice => (2, 0x64),
            Load::SameDevice => (2, 0x3fd),
        };
        // Hot is what has been so for some 0.1 s: who waits has learned by then what pays.
        let warm = if self.idle == Duration::ZERO { 5000 } else { 2 };
        let (count, idle) = (self.count, self.idle.as_micros());
        format!("count={count} warm={warm} idle={idle} load={load} loadport={port}")
    }

    /// Runs the guest once.
    ///
    /// # Errors
    /// It does not end as it should.
    pub(crate) fn measure(&self, via: Via, poll_max_us: Option<u32>) -> Result<Measured> {
        let cpus = floors::cpus()?;
        if self.one_cpu {
            floors::bind(&cpus[..1])?;
        }
        let output = self.command(via, poll_max_us)?.stdin(Stdio::null()).output();
        floors::bind(&cpus)?;
        let output = output?;
        ensure!(
            output.status.success(),
            "{} {}: {}: {}",
            self.name,
            via.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        parse(&output.stdout, self.count).with_context(|| format!("{} {}", self.name, via.name()))
    }

    fn command(&self, via: Via, poll_max_us: Option<u32>) -> Result<Command> {
        let places = Places::find();
        let vcpus = if self.second_cpu() { "2" } else { "1" };
        let guest = places.guest("exits");
        let mut command = Command::new("timeout");
        command.arg("60");
        let who = match via {
            Via::Nothing => "nothing",
            Via::InProcess => "local",
            Via::Json => "json",
            Via::Worker | Via::NeverSpinning => {
                let id = format!("bench-exits-{}", std::process::id());
                command.arg(places.program());
                command.args(["run", "--id", &id, "--serial", "stdio", "--rng", "--memory", "64M"]);
                command.args(["--cpus", vcpus, "--cmdline", &self.cmdline(), "--kernel"]).arg(guest);
                let most = if via == Via::NeverSpinning { Some(0) } else { poll_max_us };
                command.args(most.map(|most| format!("--poll-max-us={most}")));
                return Ok(command);
            }
        };
        command.arg(std::env::current_exe()?).args(["in-process", who, vcpus]).arg(guest).arg(self.cmdline());
        Ok(command)
    }
}
