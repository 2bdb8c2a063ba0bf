//! A scripted guest behind the portable traits, for tests of everything above the hypervisor.
//!
//! ```
//! use cellblock_hypervisor::mock::{Mock, Step};
//! use cellblock_hypervisor::{Hypervisor, UnboundVcpu, Vcpu, Vm, VmEntry, VmExit, ExitData};
//!
//! # fn main() -> cellblock_hypervisor::Result<()> {
//! let read = VmExit::Pio { port: 0x3fd, write: false, data: ExitData::from_slice(&[0]) };
//! let vm = Mock::new([vec![Step::exit(read.clone()), Step::exit(VmExit::Shutdown)]]).create_vm(&())?;
//! let mut vcpu = vm.create_vcpu(0)?.bind()?;
//! assert_eq!(vcpu.run(VmEntry::Resume)?, read);
//! assert_eq!(vcpu.run(VmEntry::Reply(ExitData::from_slice(&[0x60])))?, VmExit::Shutdown);
//! assert_eq!(vm.replies(0), [ExitData::from_slice(&[0x60])]);
//! # Ok(()) }
//! ```

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{
    Error, ExitData, Hypervisor, Irq, Kick, KickHandle, Pending, Regs, Result, UnboundVcpu, Vcpu, Vm,
    VmEntry, VmExit, X86Gpr,
};

const BACKEND: &str = "mock";

/// What the scripted guest does next.
#[derive(Debug, Clone)]
pub enum Step {
    /// An instruction that exits, once for each of these. The reply to a read ends up in RAX.
    Instruction(Vec<VmExit>),
    /// Computes until kicked, and goes on computing when entered again.
    Compute,
    /// Idles. Each interrupt's handler writes the vector, one byte, to `port`.
    Serve {
        /// Where the handler writes.
        port: u16,
    },
}

impl Step {
    /// An instruction with one exit.
    pub fn exit(exit: VmExit) -> Self {
        Self::Instruction(vec![exit])
    }
}

/// The mock hypervisor: one script for each vCPU.
#[derive(Debug, Clone)]
pub struct Mock(Vec<Vec<Step>>);

impl Mock {
    /// VMs made by it have one vCPU for each script.
    pub fn new(scripts: impl IntoIterator<Item = Vec<Step>>) -> Self {
        Self(scripts.into_iter().collect())
    }
}

impl Hypervisor for Mock {
    type Memory = ();
    type Vm = MockVm;

    fn name(&self) -> &'static str {
        BACKEND
    }

    fn create_vm(&self, _memory: &()) -> Result<MockVm> {
        let vcpus = self.0.iter().map(|script| (script.clone(), Arc::default())).collect();
        Ok(MockVm { vcpus })
    }
}

/// The mock VM. Its clones are the same VM.
#[derive(Debug, Clone)]
pub struct MockVm {
    vcpus: Vec<(Vec<Step>, Arc<Shared>)>,
}

impl MockVm {
    /// The replies that vCPU `id` was entered with, oldest first.
    pub fn replies(&self, id: u32) -> Vec<ExitData> {
        self.vcpus.get(id as usize).map(|(_, shared)| shared.lock().replies.clone()).unwrap_or_default()
    }

    fn vcpu(&self, id: u32) -> Result<&(Vec<Step>, Arc<Shared>)> {
        self.vcpus.get(id as usize).ok_or_else(|| Error::BadValue {
            field: "the vCPU",
            value: id.to_string(),
            on: "the mock VM".into(),
            allowed: "one for each script",
        })
    }
}

impl Vm for MockVm {
    type Vcpu = UnboundMockVcpu;

    fn create_vcpu(&self, id: u32) -> Result<UnboundMockVcpu> {
        let (script, shared) = self.vcpu(id)?;
        Ok(UnboundMockVcpu { id, script: script.clone().into(), shared: shared.clone() })
    }

    fn inject_irq(&self, vcpu: u32, irq: Irq) -> Result<()> {
        self.vcpu(vcpu)?.1.inject(vcpu, irq)
    }
}

/// What a vCPU shares with kick handles and the VM.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    kicked: bool,
    irqs: VecDeque<Irq>,
    replies: Vec<ExitData>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn inject(&self, vcpu: u32, irq: Irq) -> Result<()> {
        if !(16..=255).contains(&irq.id) {
            return Err(Error::BadValue {
                field: "the interrupt vector",
                value: irq.id.to_string(),
                on: format!("vCPU {vcpu}"),
                allowed: "16 to 255",
            });
        }
        self.change(|state| state.irqs.push_back(irq));
        Ok(())
    }

    fn take_kick(&self) -> bool {
        std::mem::take(&mut self.lock().kicked)
    }

    /// Waits for a kick, which is taken (`None`), or if `irqs` for an interrupt.
    fn wait(&self, irqs: bool) -> Option<Irq> {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.kicked) {
                return None;
            }
            if irqs && let Some(irq) = state.irqs.pop_front() {
                return Some(irq);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Kick for Shared {
    fn kick(&self) {
        self.change(|state| state.kicked = true);
    }
}

/// A mock vCPU without a thread.
#[derive(Debug)]
pub struct UnboundMockVcpu {
    id: u32,
    script: VecDeque<Step>,
    shared: Arc<Shared>,
}

impl UnboundVcpu for UnboundMockVcpu {
    type Bound = MockVcpu;

    fn kick_handle(&self) -> KickHandle {
        KickHandle::new(self.shared.clone())
    }

    fn bind(self) -> Result<MockVcpu> {
        Ok(MockVcpu {
            id: self.id,
            script: self.script,
            instruction: VecDeque::new(),
            pending: Pending::Nothing,
            regs: Regs::X86_64 { rip: 0xfff0, rsp: 0, gprs: [0; 16] },
            shared: self.shared,
            not_send: PhantomData,
        })
    }
}

/// A mock vCPU on its thread.
#[derive(Debug)]
pub struct MockVcpu {
    id: u32,
    script: VecDeque<Step>,
    /// What the present instruction still exits with.
    instruction: VecDeque<VmExit>,
    pending: Pending,
    regs: Regs,
    shared: Arc<Shared>,
    not_send: PhantomData<*const ()>,
}

impl MockVcpu {
    /// Takes the reply; `Some` if the instruction has another exit.
    fn answer(&mut self, entry: VmEntry) -> Result<Option<VmExit>> {
        self.pending.check(self.id, &entry)?;
        self.pending = Pending::Nothing;
        if let VmEntry::Reply(data) = entry {
            self.load(&data);
            self.shared.change(|state| state.replies.push(data));
        }
        Ok(self.instruction.pop_front().map(|exit| self.yielded(exit)))
    }

    fn load(&mut self, data: &[u8]) {
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        if let Regs::X86_64 { gprs, .. } = &mut self.regs {
            gprs[X86Gpr::Rax as usize] = u64::from_le_bytes(bytes);
        }
    }

    fn yielded(&mut self, exit: VmExit) -> VmExit {
        self.pending = Pending::after(&exit);
        exit
    }

    fn step(&mut self) -> VmExit {
        match self.script.front().cloned() {
            None => VmExit::InternalError(format!("vCPU {}: the mock's script is at its end", self.id)),
            Some(Step::Instruction(exits)) => {
                self.script.pop_front();
                self.instruction = exits.into();
                match self.instruction.pop_front() {
                    Some(exit) => self.yielded(exit),
                    None => self.step(),
                }
            }
            Some(Step::Compute) => {
                self.shared.wait(false);
                VmExit::Kicked
            }
            Some(Step::Serve { port }) => match self.shared.wait(true) {
                None => VmExit::Kicked,
                Some(irq) => {
                    let data = ExitData::from_slice(&irq.id.to_le_bytes()[..1]);
                    self.yielded(VmExit::Pio { port, write: true, data })
                }
            },
        }
    }
}

impl Vcpu for MockVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn run(&mut self, entry: VmEntry) -> Result<VmExit> {
        match self.answer(entry)? {
            Some(exit) => Ok(exit),
            None if self.shared.take_kick() => Ok(VmExit::Kicked),
            None => Ok(self.step()),
        }
    }

    fn finish(&mut self, entry: VmEntry) -> Result<Option<VmExit>> {
        self.answer(entry)
    }

    fn kick_handle(&self) -> KickHandle {
        KickHandle::new(self.shared.clone())
    }

    fn get_regs(&self) -> Result<Regs> {
        Ok(self.regs.clone())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        self.regs = regs.clone();
        Ok(())
    }

    fn inject_irq(&self, irq: Irq) -> Result<()> {
        self.shared.inject(self.id, irq)
    }
}
