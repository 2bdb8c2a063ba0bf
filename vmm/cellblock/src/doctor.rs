//! `cellblock doctor`: what this host offers and lacks, what that means, and how to mend it.

use std::fs::{self, File};
use std::io;

use cellblock_hypervisor_kvm::{Kvm, probe};
use cellblock_jail::cores::CoreError;
use cellblock_jail::probe::{Availability, probe as probe_layers};
use cellblock_jail::{Layer, cores};
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::status::Status;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// There, and used.
    Good,
    /// Not there, and not needed; something is slower or missing.
    Lacking,
    /// Not there, and no VM starts without it (or without saying so).
    Broken,
}

/// One thing about this host.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mend: String,
}

impl Finding {
    fn good(name: &str, found: impl Into<String>) -> Self {
        Finding { name: name.into(), state: State::Good, found: found.into(), mend: String::new() }
    }

    fn bad(name: &str, state: State, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { name: name.into(), state, found: found.into(), mend: mend.into() }
    }
}

/// Prints the findings. The status is 0 if a VM starts here with the default sandbox, else 3.
pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<Status> {
    let mut findings = kvm();
    findings.extend(layers());
    findings.extend([core_scheduling(), futex_waitv(), cpus(), hugepages(), tap()]);
    if args.json {
        say!("{}", serde_json::to_string_pretty(&findings)?)?;
    } else {
        print(&findings)?;
    }
    let broken = findings.iter().any(|finding| finding.state == State::Broken);
    Ok(if broken { Status::Refused } else { Status::Success })
}

fn print(findings: &[Finding]) -> anyhow::Result<()> {
    for finding in findings {
        let mark = match finding.state {
            State::Good => "good   ",
            State::Lacking => "lacking",
            State::Broken => "BROKEN ",
        };
        say!("{mark}  {:<18} {}", finding.name, finding.found)?;
        if !finding.mend.is_empty() {
            say!("{:>28} mend: {}", "", finding.mend)?;
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    match (count(State::Broken), count(State::Lacking)) {
        (0, 0) => say!("\nThis host has everything."),
        (0, lacking) => say!("\nVMs start here; {lacking} optional thing(s) are lacking."),
        (broken, _) => say!("\n{broken} thing(s) must be mended before a VM starts here."),
    }
}

fn kvm() -> Vec<Finding> {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = open.map_err(|error| kvm_missing(&error)).and_then(|file| {
        Kvm::open(file.into()).map_err(|error| {
            Finding::bad(
                "kvm",
                State::Broken,
                error.to_string(),
                "run a Linux kernel of 5.16 or later with KVM",
            )
        })
    });
    match kvm {
        Err(finding) => vec![finding],
        Ok(kvm) => {
            let mut findings = vec![Finding::good("kvm", format!("usable, up to {} vCPUs", kvm.max_vcpus()))];
            findings.push(kernel_code(&kvm));
            findings.extend(probe::capabilities(&kvm).into_iter().map(|capability| {
                let name = format!("kvm {}", capability.name.to_lowercase().replace('_', "-"));
                match (capability.present, capability.required) {
                    (true, _) => Finding::good(&name, capability.meaning),
                    (false, true) => {
                        Finding::bad(&name, State::Broken, capability.meaning, "a newer kernel on the host")
                    }
                    (false, false) => {
                        Finding::bad(&name, State::Lacking, capability.meaning, "a newer kernel on the host")
                    }
                }
            }));
            findings
        }
    }
}

fn kvm_missing(error: &io::Error) -> Finding {
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "add this user to the group of /dev/kvm: usermod -aG kvm USER, then log in anew"
        }
        _ => {
            "enable virtualization in the firmware (or nested virtualization in this cloud) and load kvm-intel or kvm-amd"
        }
    };
    Finding::bad("kvm", State::Broken, format!("/dev/kvm cannot be opened: {error}"), mend)
}

fn kernel_code(kvm: &Kvm) -> Finding {
    match probe::kernel_code_speed(kvm) {
        Ok(speed) => {
            let millions = speed.per_second() as f64 / 1e6;
            if speed.emulated() {
                let found = format!(
                    "emulated, {millions:.1} million instructions a second: {}",
                    cellblock_supervisor::EMULATED
                );
                Finding::bad(
                    "kernel code",
                    State::Lacking,
                    found,
                    "a host with hardware virtualization (bare metal, or nested)",
                )
            } else {
                Finding::good(
                    "kernel code",
                    format!("runs natively, over {millions:.0} million instructions a second"),
                )
            }
        }
        Err(error) => Finding::bad("kernel code", State::Broken, error.to_string(), "see the kernel's log"),
    }
}

fn layers() -> Vec<Finding> {
    probe_layers()
        .into_iter()
        .map(|(layer, availability)| {
            let name = format!("layer {layer}");
            match availability {
                Availability::Available { note } => Finding::good(&name, note),
                // Used where the host and the user's rights allow it; no VM is refused for want of them.
                Availability::Missing { why, mend }
                    if matches!(layer, Layer::Cgroup | Layer::Uid | Layer::Speculation) =>
                {
                    Finding::bad(&name, State::Lacking, why, mend)
                }
                Availability::Missing { why, mend } => {
                    let mend = format!("{mend}; or run with --without-layer {layer}");
                    Finding::bad(&name, State::Broken, why, mend)
                }
            }
        })
        .collect()
}

fn core_scheduling() -> Finding {
    match cores::probe() {
        Ok(()) => Finding::good("core scheduling", "for --core-sched"),
        Err(why @ CoreError::OneThread) => Finding::good("core scheduling", why.to_string()),
        Err(why) => {
            let found = format!("{why}: --core-sched is refused");
            let mend = "a kernel with CONFIG_SCHED_CORE, or nosmt on the host's kernel command line";
            Finding::bad("core scheduling", State::Lacking, found, mend)
        }
    }
}

fn futex_waitv() -> Finding {
    if cellblock_channel::futex::available() {
        Finding::good("futex_waitv", "vCPUs sleep on a reply and a kick at once")
    } else {
        let found = "missing: a vCPU could not sleep while it waits for a device";
        Finding::bad("futex_waitv", State::Broken, found, "a Linux kernel of 5.16 or later")
    }
}

fn cpus() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get());
    match count {
        1 => Finding::bad(
            "cpus",
            State::Lacking,
            "1 CPU: waiting never spins, each device access switches context",
            "",
        ),
        count => Finding::good("cpus", format!("{count} CPUs for this process")),
    }
}

fn hugepages() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let found =
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        found.unwrap_or(0)
    };
    let (free, size) = (field("HugePages_Free:"), field("Hugepagesize:"));
    if free > 0 {
        return Finding::good("hugepages", format!("{free} free of {size} KiB each, for --hugepages"));
    }
    let mend = "sysctl vm.nr_hugepages=N, with N × the page size at least the guest's memory";
    Finding::bad("hugepages", State::Lacking, "none reserved: --hugepages is refused", mend)
}

fn tap() -> Finding {
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("tap", "/dev/net/tun can be opened (for the network devices to come)"),
        Err(error) => {
            let found =
                format!("/dev/net/tun cannot be opened: {error} (needed by the network devices to come)");
            Finding::bad("tap", State::Lacking, found, "modprobe tun, and let this user open it")
        }
    }
}
