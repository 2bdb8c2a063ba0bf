//! A vCPU, before and after it is bound to its thread.
#![allow(unsafe_code)] // KVM_RUN.

use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::{io, mem};

use cellblock_hypervisor::{
    Error, Irq, Kick as _, KickHandle, Regs, Result, UnboundVcpu, Vcpu, VmEntry, VmExit, X86Gpr,
};
use kvm_bindings::{KVM_EXIT_MEMORY_FAULT, kvm_regs};
use kvm_ioctls::VcpuFd;

use super::exits::{Decoded, Next, Owed, decode, decode_held};
use super::fatal::Scene;
use super::kick::Kicker;
use super::run_page::RunPage;
use super::{BACKEND, KvmVm, Setup, failed_on};

/// `_IO(KVMIO, 0x80)`. kvm-ioctls' own `run` hides an element's size, so the run page is read here.
const KVM_RUN: libc::c_ulong = 0xae80;

/// A vCPU without a thread.
pub struct UnboundKvmVcpu {
    id: u32,
    fd: VcpuFd,
    page: Arc<RunPage>,
    kicker: Arc<Kicker>,
    /// Writes to it wait in KVM's queue.
    held_port: Option<u16>,
    vm: KvmVm,
}

impl UnboundKvmVcpu {
    pub(super) fn new(vm: &KvmVm, id: u32) -> Result<Self> {
        let held_port = vm.shared.held_port.get().copied();
        if held_port.is_some() && id != 0 {
            return Err(Error::Unsupported {
                what: "a second vCPU beside a port whose writes are held back",
                backend: BACKEND,
                why:
                    "the queue is all vCPUs' together: one could take another's write along and be overtaken"
                        .into(),
            });
        }
        let mut fd = vm.shared.fd.create_vcpu(u64::from(id)).map_err(failed_on(id, "KVM_CREATE_VCPU"))?;
        if held_port.is_some() {
            fd.map_coalesced_mmio_ring().map_err(failed_on(id, "mmap of the held-back writes"))?;
        }
        let page = RunPage::map(fd.as_raw_fd(), vm.shared.fd.run_size()).map_err(|source| Error::Call {
            call: "mmap of the run page",
            on: format!("vCPU {id}"),
            source,
        })?;
        let page = Arc::new(page);
        Ok(Self { id, fd, kicker: Arc::new(Kicker::new(page.clone())), page, held_port, vm: vm.clone() })
    }

    /// CPUID, MSRs and registers.
    pub fn setup(&self) -> Setup<'_> {
        Setup::new(self.id, &self.fd)
    }
}

impl UnboundVcpu for UnboundKvmVcpu {
    type Bound = KvmVcpu;

    fn kick_handle(&self) -> KickHandle {
        KickHandle::new(self.kicker.clone())
    }

    fn bind(self) -> Result<KvmVcpu> {
        self.kicker.bind();
        Ok(KvmVcpu {
            vcpu: self,
            owed: Owed::Nothing,
            behind: None,
            incomplete: false,
            not_send: PhantomData,
        })
    }
}

/// A vCPU on its thread.
pub struct KvmVcpu {
    vcpu: UnboundKvmVcpu,
    owed: Owed,
    /// The exit that KVM returned, and what that is owed, while writes that it held back are yielded.
    behind: Option<(VmExit, Owed)>,
    /// KVM has not seen the last answer yet.
    incomplete: bool,
    not_send: PhantomData<*const ()>,
}

/// How `KVM_RUN` came back.
enum Returned {
    Exit(VmExit),
    /// By a signal, `immediate_exit`, or an application processor that was woken: look at the kick and go on.
    Interrupted,
}

impl KvmVcpu {
    /// CPUID, MSRs and registers.
    pub fn setup(&self) -> Setup<'_> {
        self.vcpu.setup()
    }

    /// Checks an entry and stores its answer; `Some` if the instruction has another element.
    fn answer(&mut self, entry: &VmEntry) -> Result<Option<VmExit>> {
        self.owed.pending().check(self.vcpu.id, entry)?;
        if let Some((exit, owed)) = self.behind.take() {
            self.owed = owed;
            return self.in_order(exit).map(Some);
        }
        let owed = !matches!(self.owed, Owed::Nothing);
        match self.owed.deliver(&self.vcpu.page, self.vcpu.id, entry)? {
            Next::Yield(exit) => Ok(Some(exit)),
            Next::Enter => {
                self.incomplete |= owed;
                Ok(None)
            }
        }
    }

    fn enter(&mut self) -> Result<Returned> {
        // SAFETY: KVM_RUN on a vCPU that this thread owns; it writes the run page, which we read only after it, and guest memory.
        let returned = unsafe { libc::ioctl(self.vcpu.fd.as_raw_fd(), KVM_RUN, 0) };
        if returned < 0 {
            return self.not_run(io::Error::last_os_error());
        }
        self.incomplete = false;
        let exit = match decode(&self.vcpu.page, self.vcpu.id, &mut self.owed)? {
            Decoded::Exit(exit) => exit,
            Decoded::Fatal(reason) => self.fatal(reason),
        };
        self.in_order(exit).map(Returned::Exit)
    }

    /// `exit`; or, while there are any, the first of the writes that KVM held back and that the guest made before it. What is held
    /// back when nothing exits (a kick, a pause) stays in KVM's queue, where nothing is lost, until the next exit. The
    /// queue is bounded, and the guest adds nothing to it before it is entered again.
    fn in_order(&mut self, exit: VmExit) -> Result<VmExit> {
        let (vcpu, Some(port)) = (self.vcpu.id, self.vcpu.held_port) else { return Ok(exit) };
        let write =
            self.vcpu.fd.coalesced_mmio_read().map_err(failed_on(vcpu, "reading the held-back writes"))?;
        let Some(write) = write else { return Ok(exit) };
        let write = decode_held(&write, port, vcpu)?;
        self.behind = Some((exit, mem::replace(&mut self.owed, Owed::HeldWrite)));
        Ok(write)
    }

    fn not_run(&mut self, error: io::Error) -> Result<Returned> {
        match error.raw_os_error() {
            // The kernel completes a pending access before it looks at signals and `immediate_exit`.
            Some(libc::EINTR | libc::EAGAIN) => {
                self.incomplete = false;
                Ok(Returned::Interrupted)
            }
            Some(libc::EFAULT) if self.vcpu.page.exit_reason() == KVM_EXIT_MEMORY_FAULT => {
                Ok(Returned::Exit(self.fatal(KVM_EXIT_MEMORY_FAULT)))
            }
            _ => Err(Error::Call { call: "KVM_RUN", on: format!("vCPU {}", self.vcpu.id), source: error }),
        }
    }

    fn fatal(&self, reason: u32) -> VmExit {
        let UnboundKvmVcpu { id, fd, page, vm, .. } = &self.vcpu;
        VmExit::InternalError(Scene { vcpu: *id, fd, page, memory: &vm.shared.memory }.describe(reason))
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        self.vcpu.id
    }

    fn run(&mut self, entry: VmEntry) -> Result<VmExit> {
        if let Some(exit) = self.answer(&entry)? {
            return Ok(exit);
        }
        loop {
            // A pending kick needs no look here: `immediate_exit` is set, and KVM first completes what is pending.
            match self.enter()? {
                Returned::Exit(exit) => return Ok(exit),
                Returned::Interrupted if self.vcpu.kicker.take() => return Ok(VmExit::Kicked),
                Returned::Interrupted => {}
            }
        }
    }

    fn finish(&mut self, entry: VmEntry) -> Result<Option<VmExit>> {
        if let Some(exit) = self.answer(&entry)? {
            return Ok(Some(exit));
        }
        if !mem::take(&mut self.incomplete) {
            return Ok(None);
        }
        self.vcpu.kicker.hold();
        let returned = self.enter();
        self.vcpu.kicker.release();
        match returned? {
            Returned::Exit(exit) => Ok(Some(exit)),
            Returned::Interrupted => Ok(None),
        }
    }

    /// By the flag in kvm-clock's page that Linux's lockup detectors look at (Linux, `Documentation/virt/kvm/api.rst` 4.70).
    fn tell_of_pause(&self) -> Result<()> {
        match self.vcpu.fd.kvmclock_ctrl() {
            // The guest does not use kvm-clock.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            done => done.map_err(failed_on(self.vcpu.id, "KVM_KVMCLOCK_CTRL")),
        }
    }

    fn kick_handle(&self) -> KickHandle {
        self.vcpu.kick_handle()
    }

    fn cancel(&self) {
        self.vcpu.kicker.kick();
    }

    fn get_regs(&self) -> Result<Regs> {
        let native = self.vcpu.fd.get_regs().map_err(failed_on(self.vcpu.id, "KVM_GET_REGS"))?;
        Ok(portable(&native))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        let native = native(regs)?;
        self.vcpu.fd.set_regs(&native).map_err(failed_on(self.vcpu.id, "KVM_SET_REGS"))
    }

    fn inject_irq(&self, irq: Irq) -> Result<()> {
        self.vcpu.vm.inject_irq(self.vcpu.id, irq)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.vcpu.kicker.unbind();
    }
}

fn portable(native: &kvm_regs) -> Regs {
    let mut gprs = [0; 16];
    for (gpr, value) in [
        (X86Gpr::Rax, native.rax),
        (X86Gpr::Rbx, native.rbx),
        (X86Gpr::Rcx, native.rcx),
        (X86Gpr::Rdx, native.rdx),
        (X86Gpr::Rsi, native.rsi),
        (X86Gpr::Rdi, native.rdi),
        (X86Gpr::Rbp, native.rbp),
        (X86Gpr::R8, native.r8),
        (X86Gpr::R9, native.r9),
        (X86Gpr::R10, native.r10),
        (X86Gpr::R11, native.r11),
        (X86Gpr::R12, native.r12),
        (X86Gpr::R13, native.r13),
        (X86Gpr::R14, native.r14),
        (X86Gpr::R15, native.r15),
        (X86Gpr::Flags, native.rflags),
    ] {
        gprs[gpr as usize] = value;
    }
    Regs::X86_64 { rip: native.rip, rsp: native.rsp, gprs }
}

fn native(regs: &Regs) -> Result<kvm_regs> {
    let Regs::X86_64 { rip, rsp, gprs } = regs else {
        return Err(Error::Unsupported {
            what: "setting another architecture's registers",
            backend: BACKEND,
            why: "this host is x86-64; give Regs::X86_64".into(),
        });
    };
    let gpr = |gpr: X86Gpr| gprs[gpr as usize];
    Ok(kvm_regs {
        rip: *rip,
        rsp: *rsp,
        rax: gpr(X86Gpr::Rax),
        rbx: gpr(X86Gpr::Rbx),
        rcx: gpr(X86Gpr::Rcx),
        rdx: gpr(X86Gpr::Rdx),
        rsi: gpr(X86Gpr::Rsi),
        rdi: gpr(X86Gpr::Rdi),
        rbp: gpr(X86Gpr::Rbp),
        r8: gpr(X86Gpr::R8),
        r9: gpr(X86Gpr::R9),
        r10: gpr(X86Gpr::R10),
        r11: gpr(X86Gpr::R11),
        r12: gpr(X86Gpr::R12),
        r13: gpr(X86Gpr::R13),
        r14: gpr(X86Gpr::R14),
        r15: gpr(X86Gpr::R15),
        rflags: gpr(X86Gpr::Flags),
    })
}
