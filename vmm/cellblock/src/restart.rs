//! `cellblock restart`: gives a device of a running VM a new worker.

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
/// The VM or the device does not exist, or the VM does not answer, or ends.
pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<()> {
    let (uid, id) = ps::one(&args.id)?;
    let before = status(uid, &id)?;
    let names = before.device_names();
    let Some(device) = names.iter().position(|name| *name == args.device) else {
        bail!("VM {id} has no device {:?}; it has {}", args.device, names.join(", "));
    };
    let generation = |status: &Status| status.devices.get(device).map_or(0, |found| found.generation);
    let what = What::Restart { device: u32::try_from(device)?, generation: generation(&before) };
    match ask(uid, &id, what).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Done => {}
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        _ => bail!("VM {id} answered something else"),
    }
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        let now = status(uid, &id)?;
        if generation(&now) > generation(&before) && now.devices.get(device).is_some_and(serves) {
            println!("VM {id}: device {}: its worker of generation {} serves", args.device, generation(&now));
            return Ok(());
        }
        thread::sleep(PERIOD);
    }
    bail!("VM {id}: device {} has no new worker after {} s", args.device, PATIENCE.as_secs())
}

fn serves(device: &DeviceStatus) -> bool {
    device.state == DeviceState::Serving
}

fn status(uid: u32, id: &str) -> anyhow::Result<Status> {
    match ask(uid, id, What::Status).with_context(|| format!("VM {id} does not answer"))? {
        Answer::Status(report) => Ok(report.status),
        Answer::Refused(reason) => bail!("VM {id}: {reason}"),
        _ => bail!("VM {id} answered something else"),
    }
}
