//! What the guest finds: nothing on a port, or a virtio device that still has its driver.

use cellblock_sdk::device::{Access, Action, Device};
use cellblock_sdk::state::{Encoder, StateError};
use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Space};
use cellblock_wire::device::{DeviceConfig, DriverRegisters, MAX_QUEUE_SIZE};

use crate::spec::{DEVICE_FEATURES, QUEUE_SIZE, config};

/// In the place of a device that is not virtio: nobody is there, and the bus floats high.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Device for Silent {
    fn read(&mut self, _access: Access) -> u64 {
        u64::MAX
    }

    fn write(&mut self, _access: Access, _data: u64) -> Action {
        Action::None
    }

    fn save(&self, _out: &mut Encoder<'_>) {}

    /// Whatever the device knew is of no use.
    fn restore(&mut self, _saved: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

/// A virtio device's whose driver has written `driver`; `None` = it is another. It offers no more than the driver has agreed to,
/// and queues no larger than it has made: so what a driver begins with later the revived device has, too.
pub fn identity(device: &DeviceConfig, driver: &DriverRegisters) -> Option<Identity> {
    let id = match device {
        DeviceConfig::Block(_) => device_id::BLOCK,
        DeviceConfig::Entropy(_) => device_id::ENTROPY,
        DeviceConfig::Net(_) => device_id::NET,
        DeviceConfig::Console(_) => device_id::CONSOLE,
        DeviceConfig::Balloon(_) => device_id::BALLOON,
        DeviceConfig::Vsock(_) => device_id::VSOCK,
        _ => return None,
    };
    let queue_size = queue_size(driver);
    let config = Space::fixed(space(device, queue_size).to_vec());
    let features = driver.driver_features & DEVICE_FEATURES;
    Some(Identity { id, features, queues: device.queues(), queue_size, config })
}

/// The largest that the driver has made.
fn queue_size(driver: &DriverRegisters) -> u16 {
    let sizes = driver.queues.iter().filter_map(|queue| u16::try_from(queue.size).ok());
    let largest = sizes.filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE).max();
    largest.unwrap_or(QUEUE_SIZE)
}

/// What a driver that looks again must find as it was; all else is zero.
fn space(device: &DeviceConfig, queue_size: u16) -> [u8; config::BYTES] {
    let mut space = [0; config::BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        let place = space.get_mut(at..).unwrap_or_default();
        place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    };
    match device {
        DeviceConfig::Block(disk) => {
            put(config::BLOCK_CAPACITY, &disk.sectors.to_le_bytes());
            // Header and status take a descriptor each.
            put(config::BLOCK_SEG_MAX, &u32::from(queue_size.saturating_sub(2).max(1)).to_le_bytes());
            put(config::BLOCK_SIZE, &disk.block_size.to_le_bytes());
            put(config::BLOCK_QUEUES, &disk.queues.to_le_bytes());
        }
        DeviceConfig::Net(net) => {
            put(config::NET_MAC, &net.mac);
            put(config::NET_PAIRS, &net.pairs.to_le_bytes());
            put(config::NET_MTU, &net.mtu.to_le_bytes());
        }
        DeviceConfig::Console(console) => {
            put(config::CONSOLE_SIZE, &console.columns.to_le_bytes());
            put(config::CONSOLE_SIZE + 2, &console.rows.to_le_bytes());
            put(config::CONSOLE_PORTS, &(console.ports.len() as u32).to_le_bytes());
        }
        DeviceConfig::Vsock(vsock) => put(config::VSOCK_CID, &u64::from(vsock.cid).to_le_bytes()),
        _ => {}
    }
    space
}
