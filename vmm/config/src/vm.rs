//! The configuration as the VM is built from it: every value within its bounds.

use std::path::PathBuf;
use std::time::Duration;

use cellblock_wire::device::Limits;

use crate::devices::{self, Balloon, ConsolePort, Net, Serial, Vsock};
use crate::disk::disks;
use crate::raw::Rng;
use crate::{ByteSize, ConfigError, Disk, RawConfig, StreamSink};

/// A VM, fully described.
#[derive(Debug, Clone, PartialEq)]
pub struct VmConfig {
    /// The VM's name.
    pub id: VmId,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; `None` = the board's default.
    pub cmdline: Option<String>,
    /// How an ELF kernel is entered.
    pub boot_protocol: BootProtocol,
    /// vCPUs, 1 to 32.
    pub cpus: u32,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Back guest RAM with huge pages.
    pub hugepages: bool,
    /// The serial port.
    pub serial: Serial,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// Network devices, in the order in which the guest finds them.
    pub nets: Vec<Net>,
    /// An entropy device, and what it may give.
    pub rng: Option<Limits>,
    /// The ports of a console; none = there is no console.
    pub consoles: Vec<ConsolePort>,
    /// A balloon.
    pub balloon: Option<Balloon>,
    /// A socket device.
    pub vsock: Option<Vsock>,
    /// What a guest's reboot does.
    pub on_reboot: OnReboot,
    /// The longest spin before sleeping, in µs; 0 = never.
    pub poll_max_us: u32,
    /// How many processes wait beside each device's worker to take its place, at most [`MAX_SPARES`].
    pub spares: u32,
    /// Tell at the end what left the guest, and how.
    pub exit_stats: Option<ExitStats>,
    /// How long after the power button the guest may take to end.
    pub stop_timeout: Duration,
    /// Where the device workers' binaries are; `None` = beside the program.
    pub worker_dir: Option<PathBuf>,
    /// Sandbox layers to do without, by name; `cellblock-jail` knows the names.
    pub without_layers: Vec<String>,
    /// No core of the host runs anything else beside this VM.
    pub core_sched: bool,
    /// Start although the host emulates kernel code.
    pub force: bool,
}

/// The most spares of a device.
pub const MAX_SPARES: u32 = 2;

/// A VM's name: 1 to 48 of `a-z A-Z 0-9 - _ .`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmId(String);

impl VmId {
    /// Checks `text`.
    ///
    /// # Errors
    /// It is empty, too long, or has a character that is not allowed.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= 48 && text.bytes().all(allowed) {
            Ok(VmId(text.to_owned()))
        } else {
            Err(ConfigError::value(
                "id",
                text,
                "1 to 48 letters, digits, '-', '_' and '.', beginning with a letter or digit",
            ))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an ELF kernel is entered. A bzImage is always entered by the Linux 64-bit protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootProtocol {
    /// By PVH if the image has its note, else by the Linux 64-bit protocol.
    #[default]
    Auto,
    /// By the Linux 64-bit protocol.
    Linux64,
    /// By PVH.
    Pvh,
}

/// What a guest's reboot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReboot {
    /// The VM ends.
    #[default]
    Exit,
    /// The VM starts anew, with new processes.
    Restart,
}

/// How it is told what left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStats {
    /// A table for people.
    Text,
    /// One line of JSON.
    Json,
}

const MEMORY_STEP: u64 = 2 << 20;
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = 8 << 20..=4 << 40;

fn choice<T>(
    field: &'static str,
    text: Option<String>,
    default: T,
    choices: &[(&str, T)],
    allowed: &'static str,
) -> Result<T, ConfigError>
where
    T: Copy,
{
    let Some(text) = text else { return Ok(default) };
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| ConfigError::value(field, text, allowed))
}

fn bounded(
    field: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<u64, ConfigError> {
    if range.contains(&value) { Ok(value) } else { Err(ConfigError::value(field, value, allowed)) }
}

impl TryFrom<RawConfig> for VmConfig {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        const MEMORY_ALLOWED: &str = "8M to 4T, a multiple of 2M";
        let memory = raw.memory.unwrap_or(ByteSize(256 << 20));
        if !MEMORY_RANGE.contains(&memory.0) || !memory.0.is_multiple_of(MEMORY_STEP) {
            return Err(ConfigError::value("memory", memory, MEMORY_ALLOWED));
        }
        let cpus = bounded("cpus", raw.cpus.unwrap_or(1).into(), 1..=32, "1 to 32")?;
        let poll = bounded(
            "poll-max-us",
            raw.poll_max_us.unwrap_or(100).into(),
            0..=10_000,
            "0 (never spin) to 10000",
        )?;
        let spares = bounded("spares", raw.spares.unwrap_or(0).into(), 0..=MAX_SPARES.into(), "0 to 2")?;
        let stop = bounded("stop-timeout", raw.stop_timeout.unwrap_or(10), 0..=3600, "0 to 3600 seconds")?;
        let id = match raw.id {
            Some(id) => VmId::new(&id)?,
            None => VmId(format!("vm-{}", std::process::id())),
        };
        if let Some(cmdline) = raw.cmdline.as_deref().filter(|line| line.contains(['\0', '\n'])) {
            return Err(ConfigError::value("cmdline", cmdline, "one line without zero bytes"));
        }
        let consoles = devices::consoles(&raw.console.unwrap_or_default())?;
        let on_terminal = consoles.iter().filter(|port| port.sink == StreamSink::Stdio).count();
        let serial = match raw.serial.as_deref() {
            Some(text) => devices::serial(text)?,
            // The terminal is the console's if that asks for it.
            None if on_terminal > 0 => Serial { sink: StreamSink::Null, ..Serial::default() },
            None => Serial::default(),
        };
        if on_terminal + usize::from(serial.sink == StreamSink::Stdio) > 1 {
            return Err(ConfigError::value(
                "console",
                "stdio",
                "stdio for one of serial port and console ports only",
            ));
        }
        let balloon = raw.balloon.as_deref().map(devices::balloon).transpose()?;
        if let Some(balloon) = balloon.filter(|balloon| balloon.size >= memory.0) {
            let size = ByteSize(balloon.size);
            return Err(ConfigError::value("balloon size", size, "less than the guest's memory"));
        }
        Ok(VmConfig {
            id,
            kernel: raw.kernel.ok_or(ConfigError::Missing { field: "kernel" })?,
            initrd: raw.initrd,
            cmdline: raw.cmdline,
            boot_protocol: choice(
                "boot-protocol",
                raw.boot_protocol,
                BootProtocol::Auto,
                &[
                    ("auto", BootProtocol::Auto),
                    ("linux64", BootProtocol::Linux64),
                    ("pvh", BootProtocol::Pvh),
                ],
                "auto, linux64 or pvh",
            )?,
            cpus: cpus as u32,
            memory: memory.0,
            hugepages: raw.hugepages.unwrap_or(false),
            serial,
            disks: disks(raw.disk.unwrap_or_default())?,
            nets: devices::nets(&raw.net.unwrap_or_default())?,
            rng: match raw.rng {
                None | Some(Rng::Switch(false)) => None,
                Some(Rng::Switch(true)) => Some(Limits::default()),
                Some(Rng::Options(text)) => Some(devices::rng(&text)?),
            },
            consoles,
            balloon,
            vsock: raw.vsock.as_deref().map(devices::vsock).transpose()?,
            on_reboot: choice(
                "on-reboot",
                raw.on_reboot,
                OnReboot::Exit,
                &[("exit", OnReboot::Exit), ("restart", OnReboot::Restart)],
                "exit or restart",
            )?,
            poll_max_us: poll as u32,
            spares: spares as u32,
            exit_stats: choice(
                "exit-stats",
                raw.exit_stats,
                None,
                &[("text", Some(ExitStats::Text)), ("json", Some(ExitStats::Json))],
                "text or json",
            )?,
            stop_timeout: Duration::from_secs(stop),
            worker_dir: raw.worker_dir,
            without_layers: raw.without_layer.unwrap_or_default(),
            core_sched: raw.core_sched.unwrap_or(false),
            force: raw.force.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawConfig {
        RawConfig { kernel: Some("/k".into()), ..RawConfig::default() }
    }

    fn refused(raw: RawConfig) -> String {
        VmConfig::try_from(raw).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_one_cpu_and_256_mib_on_stdio() {
        let config = VmConfig::try_from(raw()).unwrap();
        assert_eq!((config.cpus, config.memory, config.serial.sink), (1, 256 << 20, StreamSink::Stdio));
    }

    #[test]
    fn a_wrong_value_names_field_value_and_what_is_allowed() {
        assert_eq!(refused(RawConfig { cpus: Some(33), ..raw() }), r#"cpus is "33"; allowed is 1 to 32"#);
        let odd = RawConfig { memory: Some(ByteSize((256 << 20) + 1)), ..raw() };
        assert_eq!(refused(odd), r#"memory is "268435457"; allowed is 8M to 4T, a multiple of 2M"#);
        let sink = RawConfig { serial: Some("tty".into()), ..raw() };
        assert!(refused(sink).starts_with(r#"serial is "tty"; allowed is stdio, null"#));
        assert!(refused(RawConfig { id: Some("../x".into()), ..raw() }).starts_with("id is"));
        assert!(refused(RawConfig { on_reboot: Some("never".into()), ..raw() }).starts_with("on-reboot is"));
        assert!(refused(RawConfig::default()).starts_with("kernel is missing"));
        let balloon = RawConfig { balloon: Some("size=256M".into()), ..raw() };
        assert_eq!(refused(balloon), r#"balloon size is "256M"; allowed is less than the guest's memory"#);
    }

    #[test]
    fn the_terminal_has_one_user() {
        let console = RawConfig { console: Some(vec!["stdio".into()]), ..raw() };
        assert_eq!(VmConfig::try_from(console.clone()).unwrap().serial.sink, StreamSink::Null);
        let both = RawConfig { serial: Some("stdio".into()), ..console };
        assert!(refused(both).contains("for one of"));
    }

    #[test]
    fn an_entropy_device_is_a_switch_or_has_options() {
        let with = |rng| VmConfig::try_from(RawConfig { rng: Some(rng), ..raw() }).unwrap().rng;
        assert_eq!(with(Rng::Switch(true)), Some(Limits::default()));
        assert_eq!(with(Rng::Switch(false)), None);
        assert!(with(Rng::Options("rate=1K".into())).unwrap().bytes.is_some());
    }
}
