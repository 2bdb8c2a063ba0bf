//! A VM: memory, interrupt controllers, event fds.
#![allow(unsafe_code)] // KVM maps memory by host address; borrowed event fds go to kvm-ioctls.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::sync::{Arc, OnceLock};

use cellblock_hypervisor::{Error, Irq, Result, Vm};
use cellblock_memory::GuestRam;
use kvm_bindings::{KVM_MEM_READONLY, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::pages::PagesMapping;
use super::{BACKEND, Kvm, UnboundKvmVcpu, failed};
use crate::interface::{DataMatch, IoAddress, RegisterPage};

/// Three pages in the device hole where Intel hosts keep a task-state segment for real mode.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page below, for the page table of unpaged mode.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Where messages to local APICs go (SDM vol 3 §11.11.1); bits 12–19 name the destination.
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// A KVM virtual machine. Cheap to clone; the VM ends with its last clone and vCPU.
#[derive(Clone)]
pub struct KvmVm {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) fd: VmFd,
    /// Declared after the fd: the VM must end before its memory is unmapped.
    pub(super) memory: GuestMemoryMmap,
    /// As the memory.
    _registers: Vec<PagesMapping>,
    notes: Vec<String>,
    /// See [`KvmVm::hold_writes`].
    pub(super) held_port: OnceLock<u16>,
}

impl KvmVm {
    pub(super) fn new(kvm: &Kvm, ram: &GuestRam, pages: &[RegisterPage], irqchip: bool) -> Result<Self> {
        let memory = ram.map().map_err(|error| Error::Call {
            call: "mapping guest memory",
            on: "the VM".into(),
            source: std::io::Error::other(error),
        })?;
        let fd = create_vm_fd(kvm)?;
        // Memory first: after KVM_CREATE_IRQCHIP a memory slot waits for an SRCU grace period, 7 ms where
        // it takes 0.15 ms before (measured by `examples/setup_cost.rs`).
        set_memory(&fd, &memory)?;
        let registers = set_register_pages(&fd, memory.iter().count() as u32, pages)?;
        let mut notes = Vec::new();
        if irqchip {
            place_intel_pages(&fd, &mut notes);
            fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP", "the VM"))?;
        }
        Ok(Self {
            shared: Arc::new(Shared { fd, memory, _registers: registers, notes, held_port: OnceLock::new() }),
        })
    }

    /// What the host refused or lacks that this VM can do without, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.shared.notes.clone()
    }

    /// The guest's memory as this VM has it mapped.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.shared.memory
    }

    /// Makes vCPU `id`, which is also its local APIC's id. Number 0 starts the guest; with the in-kernel controllers the others
    /// wait for INIT and SIPI by themselves.
    ///
    /// # Errors
    /// [`Error::Call`] naming the vCPU.
    pub fn create_vcpu(&self, id: u32) -> Result<UnboundKvmVcpu> {
        UnboundKvmVcpu::new(self, id)
    }

    /// Each count on `event` from now on is an edge on interrupt line `gsi` (0–23: the I/O APIC's inputs).
    ///
    /// # Errors
    /// [`Error::Call`] naming the line; `EBUSY` if `event` is already tied to one.
    pub fn irqfd(&self, event: BorrowedFd<'_>, gsi: u32) -> Result<()> {
        self.shared
            .fd
            .register_irqfd(&lend(event), gsi)
            .map_err(|e| failed("KVM_IRQFD", format!("interrupt line {gsi}"))(e))
    }

    /// Ends what [`irqfd`](Self::irqfd) began.
    pub fn remove_irqfd(&self, event: BorrowedFd<'_>, gsi: u32) -> Result<()> {
        self.shared
            .fd
            .unregister_irqfd(&lend(event), gsi)
            .map_err(|e| failed("KVM_IRQFD (deassign)", format!("interrupt line {gsi}"))(e))
    }

    /// Guest writes to `address` that match count `event` up and no longer exit.
    ///
    /// # Errors
    /// [`Error::Call`] naming the address; `EEXIST` if another event has it.
    pub fn ioeventfd(&self, address: IoAddress, matching: DataMatch, event: BorrowedFd<'_>) -> Result<()> {
        let (fd, at, event) = (&self.shared.fd, native(address), lend(event));
        match matching {
            DataMatch::Any => fd.register_ioevent(&event, &at, NoDatamatch),
            DataMatch::U16(value) => fd.register_ioevent(&event, &at, value),
            DataMatch::U32(value) => fd.register_ioevent(&event, &at, value),
            DataMatch::U64(value) => fd.register_ioevent(&event, &at, value),
        }
        .map_err(|e| failed("KVM_IOEVENTFD", format!("{address:x?}"))(e))
    }

    /// Ends what [`ioeventfd`](Self::ioeventfd) began; all three arguments must be the same.
    pub fn remove_ioeventfd(
        &self,
        address: IoAddress,
        matching: DataMatch,
        event: BorrowedFd<'_>,
    ) -> Result<()> {
        let (fd, at, event) = (&self.shared.fd, native(address), lend(event));
        match matching {
            DataMatch::Any => fd.unregister_ioevent(&event, &at, NoDatamatch),
            DataMatch::U16(value) => fd.unregister_ioevent(&event, &at, value),
            DataMatch::U32(value) => fd.unregister_ioevent(&event, &at, value),
            DataMatch::U64(value) => fd.unregister_ioevent(&event, &at, value),
        }
        .map_err(|e| failed("KVM_IOEVENTFD (deassign)", format!("{address:x?}"))(e))
    }

    /// Has KVM hold back writes of one byte to `port` until the VM's only vCPU exits for anything else: they are yielded just before
    /// that exit, in their order. For one port that does nothing but choose what accesses to others mean. Call it
    /// before the vCPU is made. False: this host cannot (`KVM_CAP_COALESCED_PIO`), and each write is an exit as ever.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a second port, [`Error::Call`] naming the port.
    pub fn hold_writes(&self, port: u16) -> Result<bool> {
        let Shared { fd, held_port, .. } = &*self.shared;
        if !fd.check_extension(Cap::CoalescedPio) {
            return Ok(false);
        }
        held_port.set(port).map_err(|_| Error::Unsupported {
            what: "holding back writes to a second port",
            backend: BACKEND,
            why: "nothing needs it".into(),
        })?;
        fd.register_coalesced_mmio(native(IoAddress::Pio(port)), 1)
            .map_err(|e| failed("KVM_REGISTER_COALESCED_MMIO", format!("port {port:#x}"))(e))?;
        Ok(true)
    }

    /// Makes `irq` pending on vCPU `vcpu` from any thread, as a message to its local APIC.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a level-triggered one (use an irqfd on a line), [`Error::BadValue`] for a vector that the
    /// architecture reserves, [`Error::Call`] if no local APIC took it (the guest has not enabled its own, or there is no such vCPU).
    pub fn inject_irq(&self, vcpu: u32, irq: Irq) -> Result<()> {
        if irq.level {
            return Err(Error::Unsupported {
                what: "injecting a level-triggered interrupt",
                backend: BACKEND,
                why: "a local APIC takes only edges as messages; tie an irqfd to an interrupt line".into(),
            });
        }
        if !(16..=255).contains(&irq.id) {
            return Err(Error::BadValue {
                field: "the interrupt vector",
                value: irq.id.to_string(),
                on: format!("vCPU {vcpu}"),
                allowed: "16 to 255 (SDM vol 3 §11.5.2)",
            });
        }
        if vcpu > 254 {
            return Err(Error::BadValue {
                field: "the vCPU",
                value: vcpu.to_string(),
                on: "the VM".into(),
                allowed: "0 to 254: a message's destination has 8 bits, and 255 is everybody",
            });
        }
        let message = kvm_msi { address_lo: MSI_ADDRESS | vcpu << 12, data: irq.id, ..Default::default() };
        let refused = || format!("vector {} for vCPU {vcpu}", irq.id);
        match self.shared.fd.signal_msi(message) {
            Ok(taken) if taken > 0 => Ok(()),
            Ok(_) => Err(Error::Call {
                call: "KVM_SIGNAL_MSI",
                on: refused(),
                source: std::io::Error::other("no local APIC took it; is the guest's enabled?"),
            }),
            Err(errno) => Err(failed("KVM_SIGNAL_MSI", refused())(errno)),
        }
    }
}

impl Vm for KvmVm {
    type Vcpu = UnboundKvmVcpu;

    fn create_vcpu(&self, id: u32) -> Result<UnboundKvmVcpu> {
        KvmVm::create_vcpu(self, id)
    }

    fn inject_irq(&self, vcpu: u32, irq: Irq) -> Result<()> {
        KvmVm::inject_irq(self, vcpu, irq)
    }
}

fn create_vm_fd(kvm: &Kvm) -> Result<VmFd> {
    loop {
        match kvm.inner.create_vm() {
            // The kernel gives up early when a signal is pending; nothing was made.
            Err(errno) if errno.errno() == libc::EINTR => continue,
            made => return made.map_err(failed("KVM_CREATE_VM", "the system")),
        }
    }
}

fn set_memory(fd: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let native = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.get_mmap().as_ptr() as u64,
        };
        // SAFETY: the range is a mapping that `Shared` keeps until after the VM has ended; the guest's writes
        // to it race only with volatile accesses of vm-memory.
        unsafe { fd.set_user_memory_region(native) }.map_err(|e| {
            let on = format!("memory slot {slot} ({} bytes at {:#x})", region.len(), region.start_addr().0);
            failed("KVM_SET_USER_MEMORY_REGION", on)(e)
        })?;
    }
    Ok(())
}

/// One slot for each run of neighbours, from number `slot` on.
fn set_register_pages(fd: &VmFd, mut slot: u32, pages: &[RegisterPage]) -> Result<Vec<PagesMapping>> {
    let mut mappings = Vec::new();
    if !fd.check_extension(Cap::ReadonlyMem) {
        return Ok(mappings);
    }
    for run in pages.chunk_by(|one, next| one.address.checked_add(PagesMapping::PAGE) == Some(next.address)) {
        let Some(first) = run.first() else { continue };
        let on = || format!("{} register pages at {:#x}", run.len(), first.address);
        let mapping =
            PagesMapping::new(run).map_err(|source| Error::Call { call: "mmap", on: on(), source })?;
        let native = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: first.address,
            memory_size: mapping.bytes() as u64,
            userspace_addr: mapping.address(),
        };
        // SAFETY: as in `set_memory`; the guest only reads.
        unsafe { fd.set_user_memory_region(native) }
            .map_err(|e| failed("KVM_SET_USER_MEMORY_REGION", on())(e))?;
        mappings.push(mapping);
        slot += 1;
    }
    Ok(mappings)
}

/// Only old Intel processors use these pages: a host that refuses them is tolerated.
fn place_intel_pages(fd: &VmFd, notes: &mut Vec<String>) {
    if let Err(errno) = fd.set_identity_map_address(IDENTITY_MAP_ADDRESS) {
        notes.push(format!(
            "the host refused KVM_SET_IDENTITY_MAP_ADDR ({errno}); only unpaged Intel guests miss it"
        ));
    }
    if let Err(errno) = fd.set_tss_address(TSS_ADDRESS) {
        notes.push(format!(
            "the host refused KVM_SET_TSS_ADDR ({errno}); only real-mode Intel guests miss it"
        ));
    }
}

fn native(address: IoAddress) -> IoEventAddress {
    match address {
        IoAddress::Mmio(address) => IoEventAddress::Mmio(address),
        IoAddress::Pio(port) => IoEventAddress::Pio(u64::from(port)),
    }
}

/// What kvm-ioctls wants, without owning the fd.
fn lend(event: BorrowedFd<'_>) -> ManuallyDrop<EventFd> {
    // SAFETY: the fd is open for the borrow's lifetime, which outlives the ioctl, and is not closed here.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event.as_raw_fd()) })
}
