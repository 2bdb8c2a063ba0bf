//! A device for other VMMs: what `cellblock vhost-user` is told.

use std::path::PathBuf;

use cellblock_wire::device::Limits;

use crate::disk::disks;
use crate::{ConfigError, Disk, Net, VmId, Vsock, devices};

/// One device, and where its front ends connect.
#[derive(Debug, Clone, PartialEq)]
pub struct BackEnd {
    /// Its name, for `cellblock ps`.
    pub id: VmId,
    /// The socket.
    pub socket: PathBuf,
    /// End with the first front end.
    pub once: bool,
    /// The device.
    pub device: BackEndDevice,
    /// Where the device workers' binaries are; `None` = beside the program.
    pub worker_dir: Option<PathBuf>,
    /// Sandbox layers to do without, by name.
    pub without_layers: Vec<String>,
}

/// The device.
#[derive(Debug, Clone, PartialEq)]
pub enum BackEndDevice {
    /// A disk.
    Disk(Disk),
    /// A network device.
    Net(Net),
    /// An entropy device.
    Rng(Limits),
    /// A socket device.
    Vsock(Vsock),
}

const ONE: &str = "one of --disk, --net, --rng and --vsock";

impl BackEndDevice {
    /// The one device that the options, written as for a VM, describe.
    ///
    /// # Errors
    /// There is none or more than one, or its value is out of bounds.
    pub fn new(
        disk: Option<String>,
        net: Option<String>,
        rng: Option<String>,
        vsock: Option<String>,
    ) -> Result<Self, ConfigError> {
        let disk = disk.map(|text| disks(vec![text])).transpose()?.and_then(|mut disks| disks.pop());
        let net = net.map(|text| devices::nets(&[text])).transpose()?.and_then(|mut nets| nets.pop());
        let rng = rng.as_deref().map(devices::rng).transpose()?;
        let vsock = vsock.as_deref().map(devices::vsock).transpose()?;
        let all = [
            disk.map(BackEndDevice::Disk),
            net.map(BackEndDevice::Net),
            rng.map(BackEndDevice::Rng),
            vsock.map(BackEndDevice::Vsock),
        ];
        let mut told = all.into_iter().flatten();
        match (told.next(), told.next()) {
            (Some(device), None) => Ok(device),
            (None, _) => Err(ConfigError::value("device", "nothing", ONE)),
            (Some(_), Some(_)) => Err(ConfigError::value("device", "several", ONE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_device_as_a_vm_has_it() {
        let rng = BackEndDevice::new(None, None, Some("rate=1K".into()), None).unwrap();
        assert!(matches!(rng, BackEndDevice::Rng(limits) if limits.bytes.is_some()));
        let disk = BackEndDevice::new(Some("path=/a,queues=2".into()), None, None, None).unwrap();
        assert!(matches!(disk, BackEndDevice::Disk(Disk { queues: 2, .. })));
        assert!(BackEndDevice::new(Some("path=/a,queues=0".into()), None, None, None).is_err());
        let none = BackEndDevice::new(None, None, None, None).unwrap_err().to_string();
        assert!(none.contains(ONE), "{none}");
        let two = BackEndDevice::new(Some("path=/a".into()), None, Some(String::new()), None);
        assert!(two.unwrap_err().to_string().contains("several"));
    }
}
