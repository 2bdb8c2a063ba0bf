//! Plain types of this back end's own interface, the same on every architecture.

use std::os::fd::OwnedFd;
use std::time::Duration;

/// A page of a device's registers that the guest reads like memory and writes by exits.
#[derive(Debug)]
pub struct RegisterPage {
    /// Guest-physical address, a multiple of 4096 outside guest RAM.
    pub address: u64,
    /// 4096 bytes whose size is sealed.
    pub memory: OwnedFd,
}

/// Where an ioeventfd listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoAddress {
    /// A guest-physical address.
    Mmio(u64),
    /// An I/O port (x86).
    Pio(u16),
}

/// Which writes to its address an ioeventfd takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataMatch {
    /// Any value of any width.
    Any,
    /// A 16-bit write of this value.
    U16(u16),
    /// A 32-bit write of this value.
    U32(u32),
    /// A 64-bit write of this value.
    U64(u64),
}

/// What a vCPU does (Linux `Documentation/virt/kvm/api.rst` §4.38).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MpState {
    /// Runs when entered.
    Runnable,
    /// An application processor that has not got its INIT yet.
    Uninitialized,
    /// Got INIT, waits for SIPI.
    InitReceived,
    /// Executed HLT, waits for an interrupt.
    Halted,
    /// Got SIPI.
    SipiReceived,
    /// Another state, as KVM numbers it.
    Other(u32),
}

/// One thing that the host's KVM offers or lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// As the kernel names it, without `KVM_CAP_`.
    pub name: &'static str,
    /// The host has it.
    pub present: bool,
    /// Without it no VM can run.
    pub required: bool,
    /// What it is for, or what is lost without it.
    pub meaning: &'static str,
}

/// How fast the host runs guest kernel code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// How many guest instructions ran.
    pub instructions: u64,
    /// In what time.
    pub elapsed: Duration,
    /// The run was cut off by its deadline before its end.
    pub cut_off: bool,
}

impl Speed {
    /// Below this many instructions per second, kernel code is being emulated: emulators reach 1–2 million, the slowest
    /// nested hardware virtualization some hundred million.
    pub const EMULATED_BELOW: u64 = 5_000_000;

    /// Instructions per second.
    pub fn per_second(&self) -> u64 {
        let nanos = self.elapsed.as_nanos().max(1);
        u64::try_from(u128::from(self.instructions) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }

    /// The host emulates kernel code: a Linux kernel would take minutes to boot, or never boot.
    pub fn emulated(&self) -> bool {
        self.cut_off || self.per_second() < Self::EMULATED_BELOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_emulated_below_ten_million_per_second() {
        let speed = |instructions, micros| Speed {
            instructions,
            elapsed: Duration::from_micros(micros),
            cut_off: false,
        };
        assert!(speed(4_000, 2_000).emulated());
        assert!(!speed(4_000, 40).emulated());
        assert_eq!(speed(4_000, 40).per_second(), 100_000_000);
        assert!(Speed { cut_off: true, ..speed(4_000, 40) }.emulated());
    }
}
