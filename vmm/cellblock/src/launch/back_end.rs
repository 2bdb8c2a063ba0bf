//! From a device's configuration to the processes that serve it to other VMMs: the spawner and a supervisor without a VM.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use cellblock_channel::socket::{self, Control};
use cellblock_config::{self as config, BackEndDevice};
use cellblock_jail::cgroup::VmGroup;
use cellblock_jail::uids::UidRange;
use cellblock_jail::{LayerSet, process};
use cellblock_supervisor::BackEndPlan;
use cellblock_wire::device::DeviceConfig;

use super::{
    Ground, WorkerFolder, granted_disk, granted_rng, granted_vsock, ground, kept, limit_disks, manifest,
    open_worker,
};
use crate::board::{self, Granted};
use crate::front::relay::Process;
use crate::net::{self, Passt};
use crate::security::Declaration;

/// The processes that serve other VMMs' front ends, seen from the front.
pub(crate) struct BackEnd {
    pub link: Control,
    pub supervisor: Process,
    pub spawner: Process,
    /// As for a VM.
    pub vsock: Option<Control>,
    /// As for a VM.
    pub passt: Option<Passt>,
    /// As for a VM.
    pub declared: Declaration,
    /// As for a VM.
    pub uids: Option<UidRange>,
    /// As for a VM.
    pub cgroup: Option<VmGroup>,
}

/// Starts what serves the device of `config` to other VMMs.
///
/// # Errors
/// What was refused, in a sentence.
pub(crate) fn back_end(config: &config::BackEnd, layers: LayerSet) -> Result<BackEnd, String> {
    layers.check(rustix::process::geteuid().is_root()).map_err(|error| error.to_string())?;
    let (mut vsock, mut passt) = (None, None);
    let device = board::back_end(match &config.device {
        BackEndDevice::Disk(disk) => granted_disk(disk)?,
        BackEndDevice::Rng(limits) => granted_rng(*limits),
        BackEndDevice::Vsock(device) => {
            let (granted, own) = granted_vsock(device)?;
            vsock = Some(own);
            granted
        }
        BackEndDevice::Net(device) if device.queues > 1 => {
            return Err(
                "a network device of another VMM has one queue pair: its control queue is not ours".into()
            );
        }
        BackEndDevice::Net(device) => {
            let net::OpenNet { config, resources, passt: own } = net::open(device, config.id.as_str(), 0)?;
            passt = own;
            Granted { config: DeviceConfig::Net(config), resources }
        }
    });
    let directory = WorkerFolder::open(config.worker_dir.as_deref())?;
    let limits = (board::back_end_limits(&device), board::back_end_group_limits(&device));
    let worker = open_worker(&directory, device.config.kind(), device.config.kind().to_string(), limits)?;
    let null = Path::new("/dev/null");
    let null = File::options().read(true).write(true).open(null);
    let null = null.map_err(|error| format!("the null device /dev/null cannot be opened: {error}"))?;
    let Ground { uids, ids, confinement, cgroup } = ground(config.id.as_str(), layers)?;
    let mut declared = Declaration::new(
        &confinement,
        ids,
        cgroup.as_ref(),
        std::slice::from_ref(&device),
        [&worker.limits],
    )?;
    let mut workers = vec![worker];
    declared.disks = limit_disks(cgroup.as_ref(), std::slice::from_ref(&device), &mut workers);
    let manifest = manifest(workers, None, &confinement, ids, uids.as_ref(), cgroup.as_ref())?;
    let spawner = cellblock_spawner::start(manifest).map_err(|error| error.to_string())?;
    let (link, supervisor_link) =
        socket::pair().map_err(|error| format!("a socket for the supervisor cannot be made: {error}"))?;
    let plan = BackEndPlan { link: supervisor_link, spawner: spawner.socket, device, confinement };
    let fixed = [plan.link.as_fd(), plan.spawner.as_fd()];
    let kept = kept(&fixed, std::slice::from_ref(&plan.device), uids.as_ref());
    let child = process::fork(null.as_fd(), &kept, move || cellblock_supervisor::serve_front_ends(plan))
        .map_err(|error| format!("the supervisor cannot be started: {error}"))?;
    let supervisor = Process { pidfd: child.pidfd, pid: child.pid };
    let spawner = Process { pidfd: spawner.pidfd, pid: spawner.pid };
    Ok(BackEnd { link, supervisor, spawner, vsock, passt, declared, uids, cgroup })
}
