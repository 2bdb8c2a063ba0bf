//! What the front hands to the supervisor by fork: descriptors it opened and numbers it checked. No path, no text to
//! parse.

use std::os::fd::OwnedFd;
use std::time::Duration;

use cellblock_bus::Range;
use cellblock_channel::socket::Control;
use cellblock_jail::supervisor::Confinement;
use cellblock_memory::GuestRam;
use cellblock_wire::device::{DeviceConfig, Role};

/// A VM, ready to be built.
pub struct Plan {
    /// To the front: [`crate::link`].
    pub link: Control,
    /// To the spawner.
    pub spawner: Control,
    /// From the loader process: one message, what it loaded.
    pub loader: Control,
    /// `/dev/kvm`, read-write.
    pub kvm: OwnedFd,
    /// Guest memory; the loader writes it meanwhile.
    pub ram: GuestRam,
    /// vCPUs, 1 to 32.
    pub cpus: u32,
    /// The longest spin for a reply; zero = never.
    pub spin: Duration,
    /// How many processes wait beside each worker to take its place, 0 to 2.
    pub spares: u32,
    /// The devices; a device's index here is its worker's in the spawner's manifest.
    pub devices: Vec<DevicePlan>,
    /// Count the guest's accesses register by register, and tell them at the end.
    pub exit_stats: bool,
    /// Time the host's kernel-mode code before a Linux kernel is started, and refuse if it is emulated.
    pub doubt_host: bool,
    /// The sandbox that the supervisor closes around itself.
    pub confinement: Confinement,
}

/// One device and what its worker gets.
pub struct DevicePlan {
    /// The worker's configuration.
    pub config: DeviceConfig,
    /// Where the guest finds it; a range's position is its region number.
    pub regions: Vec<Range>,
    /// The interrupt line of each [`Role::Interrupt`], by its number.
    pub gsis: Vec<u32>,
    /// Host resources: pipes, files.
    pub resources: Vec<(Role, OwnedFd)>,
    /// Writes that KVM takes straight to the worker: those of [`Role::QueueKick`], by its number.
    pub kicks: Vec<Kick>,
    /// The registers in region 0 that tell the cause of interrupt 0, if the guest gets that from the ring's memory.
    pub causes: Option<CauseRegisters>,
    /// The device does DMA: its worker maps guest memory.
    pub memory: bool,
    /// How long a vCPU waits for one answer.
    pub deadline: Duration,
}

#[cfg(test)]
impl DevicePlan {
    /// A device that has nothing of the host's or the guest's.
    pub(crate) fn bare(config: DeviceConfig) -> Self {
        DevicePlan {
            config,
            regions: Vec::new(),
            gsis: Vec::new(),
            resources: Vec::new(),
            kicks: Vec::new(),
            causes: None,
            memory: false,
            deadline: Duration::MAX,
        }
    }
}

/// A guest's write that becomes an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kick {
    /// The guest-physical address of the 32-bit register.
    pub address: u64,
    /// The value written.
    pub value: u32,
}

/// Two 32-bit registers of a device, by their offsets in region 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CauseRegisters {
    /// Read: a bit for each cause that is pending.
    pub status: u64,
    /// Written: a bit for each cause that is handled.
    pub acknowledge: u64,
    /// The cause that stays pending when it alone is acknowledged: KVM takes that write, and it is no exit. The interrupt is a
    /// pulse for each cause, so the driver looks for it as often as without.
    pub lasting: u32,
}
