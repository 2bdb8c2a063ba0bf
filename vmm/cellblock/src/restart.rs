//! `cellblock restart` and `revive`: give a device of a running VM a new worker.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cellblock_supervisor::link::{DeviceState, DeviceStatus, Status};

use crate::cli::RestartArgs;
use crate::front::control_socket::{Answer, What, ask};
use crate::ps;

/// How long the new worker may take to serve.
const PATIENCE: Duration = Duration::from_secs(25);
/// Between two looks whether it does.
const PERIOD: Duration = Duration::from_millis(20);

/// Does what `args` say, and prints which incarnation serves now.
///
/// # Errors
/// The VM or the device does not exist, or the VM does not answer, or ends; the device has failed.
pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<()> {
    let device = Device::find(args)?;
    let now = device.status()?;
    if now.state == DeviceState::Failed {
        bail!(
            "VM {}: device {} has failed; `cellblock revive {} {}` brings it back",
            device.id,
            device.name,
            device.id,
            device.name
        );
    }
    device.renew(&now, What::Restart { device: device.place, generation: now.generation })
}

/// As [`restart`], for a device that has failed.
///
/// # Errors
/// As there; the device has not failed, or fails again.
pub(crate) fn revive(args: &RestartArgs) -> anyhow::Result<()> {
    let device = Device::find(args)?;
    let now = device.status()?;
    if now.state != DeviceState::Failed {
        bail!("VM {}: device {} has not failed, it is {}", device.id, device.name, now.state.name());
    }
    device.renew(&now, What::Revive { device: device.place, generation: now.generation })
}

/// A device of a running VM.
struct Device {
    uid: u32,
    id: String,
    name: String,
    /// In the status.
    place: u32,
}

impl Device {
    fn find(args: &RestartArgs) -> anyhow::Result<Self> {
        let (uid, id) = ps::one(&args.id)?;
        let now = status(uid, &id)?;
        let names = now.device_names();
        if now.spawner_lost {
            bail!("VM {id}: its spawner is gone, and without it no worker can be replaced");
        }
        match names.iter().position(|name| *name == args.device) {
            Some(place) => Ok(Device { uid, id, name: args.device.clone(), place: u32::try_from(place)? }),
            None => bail!("VM {id} has no device {:?}; it has {}", args.device, names.join(", ")),
        }
    }

    fn status(&self) -> anyhow::Result<DeviceStatus> {
        let mut status = status(self.uid, &self.id)?;
        let place = self.place as usize;
        if place >= status.devices.len() {
            bail!("VM {}: its devices have changed", self.id);
        }
        Ok(status.devices.swap_remove(place))
    }

    /// Asks for `what`, and waits until another worker serves than `before`.
    fn renew(&self, before: &DeviceStatus, what: What) -> anyhow::Result<()> {
        let Device { uid, id, name, .. } = self;
        match ask(*uid, id, what).with_context(|| format!("VM {id} does not answer"))? {
            Answer::Done => {}
            Answer::Refused(reason) => bail!("VM {id}: {reason}"),
            _ => bail!("VM {id} answered something else"),
        }
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            let now = self.status()?;
            if now.generation > before.generation && now.state == DeviceState::Serving {
                say!("VM {id}: device {name}: its worker of generation {} serves", now.generation)?;
                return Ok(());
            }
            // One more is its successor, which may be on its way; more than one are those that died.
            if now.generation > before.generation.saturating_add(1) && now.state == DeviceState::Failed {
                bail!("VM {id}: device {name} has failed (again); the VM's messages say why");
            }
            thread::sleep(PERIOD);
        }
        bail!("VM {id}: device {name} has no new worker after {} s", PATIENCE.as_secs())
    }
}

pub(crate) fn status(uid: u32, id: &str) -> anyhow::Result<Status> {
    match ask(uid, id, What::Status).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Status(report) => Ok(report.status),
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        _ => bail!("VM {id} answered something else"),
    }
}
