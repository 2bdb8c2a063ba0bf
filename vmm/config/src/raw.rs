//! The configuration as written: every value optional, nothing checked but its type.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{ByteSize, ConfigError};

/// What a file or a command line says. The names are those of the command line.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    /// Kernel image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
    /// How an ELF kernel is entered: `auto`, `linux64` or `pvh`.
    pub boot_protocol: Option<String>,
    /// Number of vCPUs.
    pub cpus: Option<u32>,
    /// Guest RAM.
    pub memory: Option<ByteSize>,
    /// Back guest RAM with huge pages.
    pub hugepages: Option<bool>,
    /// Where the serial port leads: `stdio`, `null`, `file=P[,limit=SIZE]` or `socket=P`, each with `[,rate=B]`.
    pub serial: Option<String>,
    /// Disks, each `path=P[,readonly][,id=I][,queues=N][,cache=M][,format=F][,rate=B][,ops=N]`.
    pub disk: Option<Vec<String>>,
    /// Network devices, each `tap=NAME|passt[,…]`.
    pub net: Option<Vec<String>>,
    /// An entropy device: `true`, or its options.
    pub rng: Option<Rng>,
    /// Console ports, each a sink and perhaps `name=NAME`.
    pub console: Option<Vec<String>>,
    /// A balloon: `size=SIZE[,…]`.
    pub balloon: Option<String>,
    /// A socket device: `cid=N,path=P`.
    pub vsock: Option<String>,
    /// What a guest's reboot does: `exit` or `restart`.
    pub on_reboot: Option<String>,
    /// The longest spin for a worker's reply before sleeping, in µs.
    pub poll_max_us: Option<u32>,
    /// How many processes wait beside each device's worker to take its place.
    pub spares: Option<u32>,
    /// Tell at the end what left the guest: `text` or `json`.
    pub exit_stats: Option<String>,
    /// How long after the power button the guest may take to end, in seconds.
    pub stop_timeout: Option<u64>,
    /// The VM's name.
    pub id: Option<String>,
    /// Where the device workers' binaries are.
    pub worker_dir: Option<PathBuf>,
    /// Sandbox layers to do without.
    pub without_layer: Option<Vec<String>>,
    /// Share the host's cores with nobody.
    pub core_sched: Option<bool>,
    /// Start although the host emulates kernel code.
    pub force: Option<bool>,
}

/// What is said of the entropy device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Rng {
    /// Whether there is one.
    Switch(bool),
    /// There is one, with these options.
    Options(String),
}

impl RawConfig {
    /// Reads `path`, TOML or JSON by its ending.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or has a field that does not exist.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let parse: fn(&str) -> Result<Self, (&'static str, String)> = match path
            .extension()
            .and_then(|e| e.to_str())
        {
            Some("toml") => |text| toml::from_str(text).map_err(|error| ("TOML", error.to_string())),
            Some("json") => |text| serde_json::from_str(text).map_err(|error| ("JSON", error.to_string())),
            _ => return Err(ConfigError::Format { path: shown }),
        };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
        parse(&text).map_err(|(format, reason)| ConfigError::Syntax { path: shown, format, reason })
    }

    /// `self`, with what `over` says said instead.
    #[must_use]
    pub fn overlaid_with(self, over: RawConfig) -> Self {
        RawConfig {
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline: over.cmdline.or(self.cmdline),
            boot_protocol: over.boot_protocol.or(self.boot_protocol),
            cpus: over.cpus.or(self.cpus),
            memory: over.memory.or(self.memory),
            hugepages: over.hugepages.or(self.hugepages),
            serial: over.serial.or(self.serial),
            disk: over.disk.or(self.disk),
            net: over.net.or(self.net),
            rng: over.rng.or(self.rng),
            console: over.console.or(self.console),
            balloon: over.balloon.or(self.balloon),
            vsock: over.vsock.or(self.vsock),
            on_reboot: over.on_reboot.or(self.on_reboot),
            poll_max_us: over.poll_max_us.or(self.poll_max_us),
            spares: over.spares.or(self.spares),
            exit_stats: over.exit_stats.or(self.exit_stats),
            stop_timeout: over.stop_timeout.or(self.stop_timeout),
            id: over.id.or(self.id),
            worker_dir: over.worker_dir.or(self.worker_dir),
            without_layer: over.without_layer.or(self.without_layer),
            core_sched: over.core_sched.or(self.core_sched),
            force: over.force.or(self.force),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (std::path::PathBuf, Result<RawConfig, ConfigError>) {
        let path = std::env::temp_dir().join(format!("cellblock-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let read = RawConfig::from_file(&path);
        std::fs::remove_file(&path).unwrap();
        (path, read)
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let (_, toml) =
            written("a.toml", "kernel = \"/k\"\ncpus = 2\nmemory = \"1G\"\non-reboot = \"restart\"\n");
        let (_, json) =
            written("a.json", r#"{"kernel": "/k", "cpus": 2, "memory": 1073741824, "on-reboot": "restart"}"#);
        assert_eq!(toml.unwrap(), json.unwrap());
    }

    #[test]
    fn an_unknown_field_is_named() {
        let (_, read) = written("b.toml", "kernal = \"/k\"\n");
        let text = read.unwrap_err().to_string();
        assert!(text.contains("kernal") && text.contains("expected one of"), "{text}");
    }

    #[test]
    fn other_endings_are_refused() {
        let error = RawConfig::from_file(Path::new("/tmp/x.yaml")).unwrap_err();
        assert_eq!(error.to_string(), "the configuration file /tmp/x.yaml must end in .toml or .json");
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let file = RawConfig { cpus: Some(2), id: Some("a".into()), ..RawConfig::default() };
        let line = RawConfig { cpus: Some(4), ..RawConfig::default() };
        let both = file.overlaid_with(line);
        assert_eq!((both.cpus, both.id.as_deref()), (Some(4), Some("a")));
    }
}
