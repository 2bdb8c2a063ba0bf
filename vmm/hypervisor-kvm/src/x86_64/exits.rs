//! From the run page to a portable exit, and from the reply back into it.

use cellblock_hypervisor::{DebugInfo, Error, ExitData, Pending, Result, VmEntry, VmExit};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_coalesced_mmio,
};

use super::run_page::RunPage;

/// What the last exit left to be answered, and where the answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owed {
    Nothing,
    Mmio {
        bytes: u8,
        write: bool,
    },
    Pio(Elements),
    Hypercall,
    /// A write that KVM held back and asks no answer for.
    HeldWrite,
}

/// The elements of one port exit: one for `in` and `out`, up to a page of them for string instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elements {
    port: u16,
    write: bool,
    /// Bytes of one element: 1, 2 or 4.
    size: u8,
    count: u32,
    /// The element that waits for its answer.
    current: u32,
    /// Of element 0 in the run page.
    offset: u64,
}

/// What to do after an answer was stored.
pub(super) enum Next {
    /// Let KVM have it.
    Enter,
    /// The same instruction has another element; the guest must not be entered yet.
    Yield(VmExit),
}

/// An exit that is decoded without a system call, or one that says why the VM ends.
pub(super) enum Decoded {
    Exit(VmExit),
    /// To be described with the vCPU's registers: see `fatal`.
    Fatal(u32),
}

impl Owed {
    /// In the portable interface's words.
    pub(super) fn pending(&self) -> Pending {
        match *self {
            Self::Nothing => Pending::Nothing,
            Self::Mmio { write: true, .. } | Self::Pio(Elements { write: true, .. }) | Self::HeldWrite => {
                Pending::Write
            }
            Self::Mmio { bytes, .. } | Self::Pio(Elements { size: bytes, .. }) => Pending::Read { bytes },
            Self::Hypercall => Pending::Read { bytes: 8 },
        }
    }

    /// Stores an entry that answers what is owed.
    pub(super) fn deliver(&mut self, page: &RunPage, vcpu: u32, entry: &VmEntry) -> Result<Next> {
        let reply: &[u8] = if let VmEntry::Reply(data) = entry { data } else { &[] };
        match self {
            Self::Nothing | Self::HeldWrite => {}
            Self::Mmio { write: false, .. } => page.set_mmio_data(reply),
            Self::Mmio { .. } => {}
            Self::Hypercall => {
                let mut result = [0; 8];
                result[..reply.len()].copy_from_slice(reply);
                page.set_hypercall_result(u64::from_le_bytes(result));
            }
            Self::Pio(elements) => {
                elements.answer(page, vcpu, reply)?;
                elements.current += 1;
                if elements.current < elements.count {
                    return Ok(Next::Yield(elements.exit(page, vcpu)?));
                }
            }
        }
        *self = Self::Nothing;
        Ok(Next::Enter)
    }
}

impl Elements {
    fn at(&self) -> u64 {
        self.offset + u64::from(self.current) * u64::from(self.size)
    }

    fn answer(&self, page: &RunPage, vcpu: u32, reply: &[u8]) -> Result<()> {
        if self.write || page.write_at(self.at(), reply) {
            return Ok(());
        }
        Err(self.outside(vcpu))
    }

    /// The exit of the current element.
    fn exit(&self, page: &RunPage, vcpu: u32) -> Result<VmExit> {
        let mut data = ExitData::from_elem(0, usize::from(self.size));
        if self.write && !page.read_at(self.at(), &mut data) {
            return Err(self.outside(vcpu));
        }
        Ok(VmExit::Pio { port: self.port, write: self.write, data })
    }

    fn outside(&self, vcpu: u32) -> Error {
        Error::BadRunPage { vcpu, field: "io.data_offset", value: self.offset }
    }
}

/// Decodes the exit that `KVM_RUN` just returned, and notes in `owed` what it waits for.
pub(super) fn decode(page: &RunPage, vcpu: u32, owed: &mut Owed) -> Result<Decoded> {
    *owed = Owed::Nothing;
    let exit = match page.exit_reason() {
        KVM_EXIT_MMIO => decode_mmio(page, vcpu, owed)?,
        KVM_EXIT_IO => decode_pio(page, vcpu, owed)?,
        KVM_EXIT_HLT => VmExit::Hlt,
        KVM_EXIT_SHUTDOWN => VmExit::TripleFault,
        KVM_EXIT_DEBUG => {
            let debug = page.debug();
            VmExit::Debug(DebugInfo { pc: debug.pc, syndrome: debug.dr6 })
        }
        KVM_EXIT_HYPERCALL => {
            *owed = Owed::Hypercall;
            let call = page.hypercall();
            VmExit::Hypercall { func: call.nr, args: call.args }
        }
        KVM_EXIT_SYSTEM_EVENT => match page.system_event().type_ {
            KVM_SYSTEM_EVENT_SHUTDOWN => VmExit::Shutdown,
            KVM_SYSTEM_EVENT_RESET => VmExit::Reset,
            _ => return Ok(Decoded::Fatal(KVM_EXIT_SYSTEM_EVENT)),
        },
        reason => return Ok(Decoded::Fatal(reason)),
    };
    Ok(Decoded::Exit(exit))
}

/// The exit of a write of one byte to `port` that KVM held back.
pub(super) fn decode_held(write: &kvm_coalesced_mmio, port: u16, vcpu: u32) -> Result<VmExit> {
    if write.phys_addr != u64::from(port) {
        return Err(Error::BadRunPage { vcpu, field: "a held-back write's port", value: write.phys_addr });
    }
    if write.len != 1 {
        return Err(Error::BadRunPage {
            vcpu,
            field: "a held-back write's len",
            value: u64::from(write.len),
        });
    }
    Ok(VmExit::Pio { port, write: true, data: ExitData::from_slice(&write.data[..1]) })
}

fn decode_mmio(page: &RunPage, vcpu: u32, owed: &mut Owed) -> Result<VmExit> {
    let mmio = page.mmio();
    if !(1..=8).contains(&mmio.len) {
        return Err(Error::BadRunPage { vcpu, field: "mmio.len", value: u64::from(mmio.len) });
    }
    let write = mmio.is_write != 0;
    let mut data = ExitData::from_elem(0, mmio.len as usize);
    if write {
        data.copy_from_slice(&mmio.data[..mmio.len as usize]);
    }
    *owed = Owed::Mmio { bytes: mmio.len as u8, write };
    Ok(VmExit::Mmio { addr: mmio.phys_addr, write, data })
}

fn decode_pio(page: &RunPage, vcpu: u32, owed: &mut Owed) -> Result<VmExit> {
    let io = page.io();
    if !matches!(io.size, 1 | 2 | 4) {
        return Err(Error::BadRunPage { vcpu, field: "io.size", value: u64::from(io.size) });
    }
    if io.count == 0 {
        return Err(Error::BadRunPage { vcpu, field: "io.count", value: 0 });
    }
    let elements = Elements {
        port: io.port,
        write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
        size: io.size,
        count: io.count,
        current: 0,
        offset: io.data_offset,
    };
    *owed = Owed::Pio(elements);
    elements.exit(page, vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_write_that_makes_no_sense_is_refused_by_field_and_value() {
        let write = kvm_coalesced_mmio { phys_addr: 0x70, len: 1, data: [7; 8], ..Default::default() };
        let decoded = decode_held(&write, 0x70, 0).unwrap();
        assert_eq!(decoded, VmExit::Pio { port: 0x70, write: true, data: ExitData::from_slice(&[7]) });
        for (phys_addr, len, named) in [
            (0x71, 1, "port is 113"),
            (0x1_0070, 1, "port is 65648"),
            (0x70, 0, "len is 0"),
            (0x70, 9, "len is 9"),
        ] {
            let error = decode_held(&kvm_coalesced_mmio { phys_addr, len, ..write }, 0x70, 3).unwrap_err();
            assert!(error.to_string().contains(named) && error.to_string().contains("vCPU 3"), "{error}");
        }
    }
}
