//! `/dev/kvm` itself.
#![allow(unsafe_code)] // Hands an fd that we own to kvm-ioctls.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use cellblock_hypervisor::x86_64::CpuidLeaf;
use cellblock_hypervisor::{Error, Hypervisor, Result};
use cellblock_memory::GuestRam;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use super::{BACKEND, KvmVm, failed, probe, setup};
use crate::interface::RegisterPage;

/// CPUID leaf 1 ECX.
const TSC_DEADLINE: u32 = 1 << 24;

/// An open `/dev/kvm`. Cheap to clone.
#[derive(Clone)]
pub struct Kvm {
    pub(super) inner: Arc<kvm_ioctls::Kvm>,
}

impl Kvm {
    /// Takes an open `/dev/kvm` (read and write) and checks that it speaks the API that all of Linux has had since 2.6.22.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the fd is not KVM's or lacks what no VM can do without.
    pub fn open(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the fd is ours alone and is given away.
        let inner = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        let version = inner.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(Error::Unsupported {
                what: "the given fd",
                backend: BACKEND,
                why: format!("KVM_GET_API_VERSION is {version} and not 12; open /dev/kvm"),
            });
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The CPUID leaves that the host can give to a guest, the TSC-deadline timer among them if it works.
    pub fn supported_cpuid(&self) -> Result<Vec<CpuidLeaf>> {
        let cpuid = self
            .inner
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID", "the system"))?;
        let mut leaves: Vec<CpuidLeaf> = cpuid.as_slice().iter().map(setup::leaf).collect();
        if self.has_tsc_deadline() {
            // KVM tells it by a capability only (Documentation/virt/kvm/api.rst §4.46).
            leaves.iter_mut().filter(|leaf| leaf.function == 1).for_each(|leaf| leaf.ecx |= TSC_DEADLINE);
        }
        Ok(leaves)
    }

    /// The local APIC's TSC-deadline mode works.
    pub fn has_tsc_deadline(&self) -> bool {
        self.inner.check_extension(Cap::TscDeadlineTimer)
    }

    /// kvm-clock works; CPUID leaf 0x4000_0001 may show it to the guest.
    pub fn has_kvm_clock(&self) -> bool {
        self.inner.check_extension(Cap::AdjustClock)
    }

    /// Most vCPUs that this host allows in one VM.
    pub fn max_vcpus(&self) -> u32 {
        u32::try_from(self.inner.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    /// A VM that sees `ram` and has local APICs and I/O APIC in the kernel, without a PIT.
    ///
    /// # Errors
    /// [`Error::Call`] naming the ioctl and what it was about, [`Error::Unsupported`] naming a missing capability.
    pub fn create_vm(&self, ram: &GuestRam) -> Result<KvmVm> {
        self.create_vm_with(ram, &[])
    }

    /// As [`create_vm`](Self::create_vm), with `pages` in ascending order. A host without read-only memory has reads of them exit.
    ///
    /// # Errors
    /// As there, and for a page that cannot be mapped.
    pub fn create_vm_with(&self, ram: &GuestRam, pages: &[RegisterPage]) -> Result<KvmVm> {
        probe::require_all(self)?;
        KvmVm::new(self, ram, pages, true)
    }

    /// A VM without interrupt controllers: HLT exits, and no interrupt reaches the guest. For probes and tests.
    pub fn create_bare_vm(&self, ram: &GuestRam) -> Result<KvmVm> {
        KvmVm::new(self, ram, &[], false)
    }
}

impl Hypervisor for Kvm {
    type Memory = GuestRam;
    type Vm = KvmVm;

    fn name(&self) -> &'static str {
        BACKEND
    }

    fn create_vm(&self, memory: &GuestRam) -> Result<KvmVm> {
        Kvm::create_vm(self, memory)
    }
}
