//! The command lines of the programs that are measured.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cellblock_e2e::user::User;
use cellblock_e2e::{Places, Vm};
use serde_json::json;

/// Guest RAM of every measured VM, in MiB.
pub(crate) const MEMORY_MIB: u64 = 256;

/// What a VM boots.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) cpus: u32,
    /// The raw image of a disk that it may write, through the host's page cache; a flush reaches the file system.
    pub(crate) disk: Option<&'a Path>,
    /// The tap of a network device.
    pub(crate) tap: Option<&'a str>,
    /// Ours tells at the end what left the guest.
    pub(crate) exit_stats: bool,
}

/// A program that is measured.
pub(crate) enum Program {
    Cellblock(Places),
    Firecracker(PathBuf),
}

impl Program {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Program::Cellblock(_) => "cellblock",
            Program::Firecracker(_) => "firecracker",
        }
    }

    /// Starts a VM called `id`; `folder` is for files that the program needs.
    pub(crate) fn start(&self, guest: &Guest<'_>, id: &str, folder: &Path) -> Result<Vm> {
        match self {
            Program::Cellblock(places) => {
                let mut arguments: Vec<String> =
                    ["run", "--id", id, "--serial", "stdio", "--cmdline", guest.cmdline]
                        .map(String::from)
                        .to_vec();
                arguments.extend([format!("--memory={MEMORY_MIB}M"), format!("--cpus={}", guest.cpus)]);
                arguments.push(format!("--kernel={}", guest.kernel.display()));
                arguments.extend(guest.initrd.map(|initrd| format!("--initrd={}", initrd.display())));
                arguments.extend(guest.disk.map(|disk| format!("--disk=path={}", disk.display())));
                arguments.extend(guest.tap.map(|tap| format!("--net=tap={tap}")));
                arguments.extend(guest.exit_stats.then(|| "--exit-stats".to_owned()));
                Vm::start(&places.program(), &User::Own, arguments)
            }
            Program::Firecracker(program) => {
                let config = folder.join(format!("{id}.json"));
                std::fs::write(&config, firecracker_config(guest).to_string())?;
                let config = config.display().to_string();
                // Its log would go to the console that carries the guest's output.
                let quiet = ["--level", "Error", "--log-path", "/dev/null"];
                Vm::start(
                    program,
                    &User::Own,
                    ["--no-api", "--config-file", &config].into_iter().chain(quiet),
                )
            }
        }
    }
}

fn firecracker_config(guest: &Guest<'_>) -> serde_json::Value {
    let mut boot = json!({ "kernel_image_path": guest.kernel, "boot_args": guest.cmdline });
    if let Some(initrd) = guest.initrd {
        boot["initrd_path"] = json!(initrd);
    }
    let drive = |disk: &Path| {
        json!({
            "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false,
            "cache_type": "Writeback", "io_engine": "Sync",
        })
    };
    let drives: Vec<_> = guest.disk.map(drive).into_iter().collect();
    let nets: Vec<_> =
        guest.tap.map(|tap| json!({ "iface_id": "net", "host_dev_name": tap })).into_iter().collect();
    json!({
        "boot-source": boot,
        "drives": drives,
        "network-interfaces": nets,
        "machine-config": { "vcpu_count": guest.cpus, "mem_size_mib": MEMORY_MIB },
    })
}
