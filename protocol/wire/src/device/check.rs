//! Bounds of what a device is told.

use super::{
    BlockConfig, Bucket, ConsoleConfig, DISK_ID_BYTES, DeviceConfig, Limits, MAX_BACKING, MAX_PAIRS,
    MAX_PORTS, MAX_QUEUES, NetConfig, PORT_NAME_BYTES, SECTOR,
};
use super::{DriverRegisters, KEPT_CONFIG_BYTES};
use crate::control::{CodecError, Fallback, within};

/// # Errors
/// The first field out of bounds.
pub(crate) fn check(config: &DeviceConfig) -> Result<(), CodecError> {
    match config {
        DeviceConfig::Serial { buffer, limits } => {
            within("grant.config.buffer", (*buffer).into(), 1..=1 << 20, "1 to 1048576")?;
            check_limits(limits)
        }
        DeviceConfig::Rtc | DeviceConfig::I8042 | DeviceConfig::AcpiPower | DeviceConfig::Balloon(_) => {
            Ok(())
        }
        DeviceConfig::Block(disk) => check_disk(disk),
        DeviceConfig::Entropy(entropy) => check_limits(&entropy.limits),
        DeviceConfig::Net(net) => check_net(net),
        DeviceConfig::Console(console) => check_console(console),
        DeviceConfig::Vsock(vsock) => {
            within("grant.config.cid", vsock.cid.into(), 3..=u64::from(u32::MAX) - 1, "3 to 4294967294")
        }
    }
}

fn check_disk(disk: &BlockConfig) -> Result<(), CodecError> {
    // So that no byte offset exceeds a signed 64-bit file offset.
    within("grant.config.sectors", disk.sectors, 0..=i64::MAX as u64 / SECTOR, "what a file can hold")?;
    let block_size = u64::from(disk.block_size);
    within("grant.config.block_size", block_size, SECTOR..=4096, "512 to 4096")?;
    within("grant.config.block_size", u64::from(block_size.is_power_of_two()), 1..=1, "a power of two")?;
    within("grant.config.queues", disk.queues.into(), 1..=MAX_QUEUES.into(), "1 to 16")?;
    within("grant.config.id", disk.id.len() as u64, 0..=DISK_ID_BYTES as u64, "at most 20 bytes")?;
    within("grant.config.backing", disk.backing.into(), 0..=MAX_BACKING.into(), "at most 8")?;
    check_limits(&disk.limits)
}

fn check_net(net: &NetConfig) -> Result<(), CodecError> {
    within("grant.config.pairs", net.pairs.into(), 1..=MAX_PAIRS.into(), "1 to 7")?;
    if net.mtu != 0 {
        within("grant.config.mtu", net.mtu.into(), 68..=u16::MAX.into(), "0, or 68 to 65535")?;
    }
    within("grant.config.mac", (net.mac[0] & 1).into(), 0..=0, "a unicast address")?;
    check_limits(&net.receive)?;
    check_limits(&net.transmit)
}

fn check_console(console: &ConsoleConfig) -> Result<(), CodecError> {
    within("grant.config.ports", console.ports.len() as u64, 1..=MAX_PORTS as u64, "1 to 7")?;
    let longest = console.ports.iter().map(String::len).max().unwrap_or(0);
    within("grant.config.ports name", longest as u64, 0..=PORT_NAME_BYTES as u64, "at most 32 bytes")
}

fn check_limits(limits: &Limits) -> Result<(), CodecError> {
    for Bucket { per_second, burst } in [limits.bytes, limits.operations].into_iter().flatten() {
        within("grant.config.limits.per_second", per_second, 1..=1 << 50, "1 to 2^50")?;
        within("grant.config.limits.burst", burst, 1..=1 << 50, "1 to 2^50")?;
    }
    Ok(())
}

/// # Errors
/// The first field out of bounds.
pub(crate) fn check_fallback(fallback: &Fallback) -> Result<(), CodecError> {
    let Fallback::Registers(DriverRegisters { queues, config, .. }) = fallback else { return Ok(()) };
    within("grant.fallback.queues", queues.len() as u64, 0..=MAX_QUEUES.into(), "at most 16")?;
    let most = KEPT_CONFIG_BYTES as u64;
    within("grant.fallback.config", config.len() as u64, 0..=most, "at most 64 bytes")?;
    let last = config.iter().map(|(offset, _)| u64::from(*offset)).max().unwrap_or(0);
    within("grant.fallback.config offset", last, 0..=most - 1, "0 to 63")
}
