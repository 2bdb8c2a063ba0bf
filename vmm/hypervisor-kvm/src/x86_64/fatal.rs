//! Texts for the exits that end a VM.

use std::fmt::Write as _;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_UNKNOWN, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::run_page::RunPage;

/// An x86 instruction has at most 15 bytes (SDM vol 2 §2.3.11).
const LONGEST_INSTRUCTION: usize = 15;
/// Bit 0 of an emulation failure's flags: the bytes are there (`KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`).
const HAS_BYTES: u64 = 1;

/// What a fatal exit is described from.
pub(super) struct Scene<'a> {
    pub(super) vcpu: u32,
    pub(super) fd: &'a VcpuFd,
    pub(super) page: &'a RunPage,
    pub(super) memory: &'a GuestMemoryMmap,
}

impl Scene<'_> {
    /// One sentence: what happened, where, on which instruction.
    pub(super) fn describe(&self, reason: u32) -> String {
        let what = match reason {
            KVM_EXIT_INTERNAL_ERROR => return self.internal_error(),
            KVM_EXIT_FAIL_ENTRY => {
                let fail = self.page.fail_entry();
                format!(
                    "the processor refused to enter the guest, hardware reason {:#x} on host CPU {}",
                    fail.hardware_entry_failure_reason, fail.cpu
                )
            }
            KVM_EXIT_UNKNOWN => {
                format!("KVM did not understand the processor's exit {:#x}", self.page.hardware_exit_reason())
            }
            KVM_EXIT_MEMORY_FAULT => {
                let fault = self.page.memory_fault();
                format!(
                    "guest memory at {:#x} ({} bytes) could not be provided by the host",
                    fault.gpa, fault.size
                )
            }
            KVM_EXIT_SYSTEM_EVENT => {
                format!("the guest reported system event {}", self.page.system_event().type_)
            }
            reason => format!("KVM exited for the unexpected reason {reason}"),
        };
        self.sentence(&what, &[])
    }

    fn internal_error(&self) -> String {
        let error = self.page.internal();
        let meaning = match error.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "it could not emulate the instruction",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unexpected exit of the processor",
            _ => "unknown to this program",
        };
        let what = format!("KVM internal error, suberror {} ({meaning})", error.suberror);
        let words = &error.data[..error.data.len().min(error.ndata as usize)];
        match words {
            // data[0] flags, data[1] length then bytes, data[2] more bytes: Linux `struct kvm_run.emulation_failure`.
            &[flags, first, second, ..]
                if error.suberror == KVM_INTERNAL_ERROR_EMULATION && flags & HAS_BYTES != 0 =>
            {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&first.to_le_bytes());
                bytes[8..].copy_from_slice(&second.to_le_bytes());
                let length = usize::from(bytes[0]).min(LONGEST_INSTRUCTION);
                self.sentence(&what, &bytes[1..1 + length])
            }
            _ if error.suberror == KVM_INTERNAL_ERROR_EMULATION => self.sentence(&what, &[]),
            words => self.sentence(&format!("{what}, data {words:x?}"), &[]),
        }
    }

    /// Adds vCPU, RIP and the instruction's bytes: KVM's, or else what guest memory holds at RIP.
    fn sentence(&self, what: &str, from_kvm: &[u8]) -> String {
        let mut text = format!("vCPU {}: {what}", self.vcpu);
        let Ok(regs) = self.fd.get_regs() else {
            return text + "; its registers could not be read";
        };
        let _ = write!(text, "; RIP {:#x}", regs.rip);
        let mut from_memory = [0; LONGEST_INSTRUCTION];
        if !from_kvm.is_empty() {
            text += ", instruction bytes";
            append(&mut text, from_kvm);
        } else if self.read_virtual(regs.rip, &mut from_memory) {
            text += ", bytes in memory there";
            append(&mut text, &from_memory);
        }
        text
    }

    fn read_virtual(&self, address: u64, bytes: &mut [u8]) -> bool {
        match self.fd.translate_gva(address) {
            Ok(at) if at.valid != 0 => {
                self.memory.read_slice(bytes, GuestAddress(at.physical_address)).is_ok()
            }
            _ => false,
        }
    }
}

fn append(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, " {byte:02x}");
    }
}
