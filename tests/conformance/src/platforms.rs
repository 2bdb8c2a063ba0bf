//! The back ends under test.

use std::fs::OpenOptions;

use cellblock_hypervisor::mock::{Mock, MockVm, Step};
use cellblock_hypervisor::x86_64::{BootState, DescriptorTable, Segment};
use cellblock_hypervisor::{ExitData, Hypervisor, VmExit};
use cellblock_hypervisor_kvm::{Kvm, KvmVm, RegisterPage};
use cellblock_memory::{GuestRam, UNIT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::assembler::{BUFFER, CODE, IDT, Image, STACK, assemble};
use crate::{Op, Platform, READY, Space, bytes};

/// The scripted mock.
#[derive(Debug)]
pub struct MockPlatform;

impl Platform for MockPlatform {
    type Vm = MockVm;

    fn vm(&self, program: &[Op], _bare: bool) -> Result<MockVm, String> {
        let mut script: Vec<Step> = program.iter().flat_map(steps).collect();
        script.push(Step::Compute);
        Mock::new([script]).create_vm(&()).map_err(|error| error.to_string())
    }

    fn delivers_levels(&self) -> bool {
        true
    }

    fn refused_instruction(&self) -> &'static str {
        "0f ff"
    }
}

fn steps(op: &Op) -> Vec<Step> {
    match op {
        Op::Read(space, len) => vec![Step::exit(access(*space, false, &vec![0; *len]))],
        Op::Write(space, data) => vec![Step::exit(access(*space, true, data))],
        // The mock cannot write back what it read: the case knows by its `replies`.
        Op::ReadString { port, bytes, count } => {
            vec![Step::Instruction(vec![access(Space::Pio(*port), false, &vec![0; *bytes]); *count])]
        }
        Op::WriteString { port, elements } => vec![Step::Instruction(
            elements.iter().map(|element| access(Space::Pio(*port), true, element)).collect(),
        )],
        Op::ReadForEver(port) => vec![Step::exit(access(Space::Pio(*port), false, &[0])); 1_000_000],
        Op::Compute => vec![Step::Compute],
        Op::Halt => vec![Step::exit(VmExit::Hlt)],
        Op::TripleFault => vec![Step::exit(VmExit::TripleFault)],
        Op::Unknown => vec![Step::exit(VmExit::InternalError("vCPU 0: RIP 0x1000, bytes 0f ff".into()))],
        Op::Serve(port) => {
            vec![Step::exit(access(Space::Pio(*port), true, &[READY])), Step::Serve { port: *port }]
        }
    }
}

/// The exit of one access.
pub fn access(space: Space, write: bool, data: &[u8]) -> VmExit {
    let data: ExitData = bytes(data);
    match space {
        Space::Mmio(addr) => VmExit::Mmio { addr, write, data },
        Space::Pio(port) => VmExit::Pio { port, write, data },
    }
}

/// The host's KVM.
pub struct KvmPlatform(pub Kvm);

impl KvmPlatform {
    /// Opens it, or says why not.
    pub fn open() -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        match Kvm::open(file.into()) {
            Ok(kvm) => Ok(Self(kvm)),
            Err(error) if std::env::consts::ARCH == "x86_64" => panic!("{error}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// As [`load`](Self::load), with interrupt controllers and these register pages.
    pub fn load_with(&self, image: &Image, pages: &[RegisterPage]) -> KvmVm {
        let vm = self.0.create_vm_with(&GuestRam::create(UNIT, false).unwrap(), pages).unwrap();
        write_image(vm.memory(), image);
        vm
    }

    /// A VM with this image in its memory, and vCPU 0's first state.
    pub fn load(&self, image: &Image, bare: bool) -> KvmVm {
        let ram = GuestRam::create(UNIT, false).unwrap();
        let vm = if bare { self.0.create_bare_vm(&ram) } else { self.0.create_vm(&ram) }.unwrap();
        write_image(vm.memory(), image);
        vm
    }
}

impl Platform for KvmPlatform {
    type Vm = ReadyVm;

    fn vm(&self, program: &[Op], bare: bool) -> Result<ReadyVm, String> {
        Ok(ReadyVm(self.load(&assemble(program), bare)))
    }

    fn delivers_levels(&self) -> bool {
        false
    }

    fn refused_instruction(&self) -> &'static str {
        "66 0f fc 03"
    }
}

/// A KVM VM whose vCPUs come with their boot state set.
pub struct ReadyVm(pub KvmVm);

impl cellblock_hypervisor::Vm for ReadyVm {
    type Vcpu = cellblock_hypervisor_kvm::UnboundKvmVcpu;

    fn create_vcpu(&self, id: u32) -> cellblock_hypervisor::Result<Self::Vcpu> {
        let vcpu = self.0.create_vcpu(id)?;
        vcpu.setup().set_boot_state(&boot_state())?;
        Ok(vcpu)
    }

    fn inject_irq(&self, vcpu: u32, irq: cellblock_hypervisor::Irq) -> cellblock_hypervisor::Result<()> {
        self.0.inject_irq(vcpu, irq)
    }
}

const GDT: u64 = 0x800;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
/// Four of them: 4 GiB.
const DIRECTORIES: u64 = 0x4000;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

fn write_image(memory: &GuestMemoryMmap, image: &Image) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let word = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
    word(GDT + u64::from(CODE_SELECTOR), Segment::code64(CODE_SELECTOR).descriptor());
    word(GDT + u64::from(DATA_SELECTOR), Segment::data(DATA_SELECTOR).descriptor());
    word(PML4, PDPT | PRESENT_WRITABLE);
    for directory in 0..4 {
        let at = DIRECTORIES + directory * 0x1000;
        word(PDPT + directory * 8, at | PRESENT_WRITABLE);
        for page in 0..512 {
            word(at + page * 8, (directory << 30) | (page << 21) | LARGE | PRESENT_WRITABLE);
        }
    }
    for &(vector, handler) in &image.handlers {
        // A 64-bit interrupt gate (SDM vol 3 §6.14.1): offset 15..0, selector, type, offset 31..16; then the upper half, 0.
        let low = (handler & 0xffff)
            | u64::from(CODE_SELECTOR) << 16
            | 0x8e00 << 32
            | (handler >> 16 & 0xffff) << 48;
        word(IDT + u64::from(vector) * 16, low);
    }
    memory.write_slice(&image.code, GuestAddress(CODE)).unwrap();
    memory.write_slice(&image.buffer, GuestAddress(BUFFER)).unwrap();
}

/// 64-bit mode, ring 0, SSE on, 4 GiB mapped to themselves.
pub fn boot_state() -> BootState {
    let data = Segment::data(DATA_SELECTOR);
    BootState {
        rip: CODE,
        rsp: STACK,
        cr0: 0x8000_0013, // PG, ET, MP, PE
        cr3: PML4,
        cr4: 0x620,  // OSXMMEXCPT, OSFXSR, PAE
        efer: 0x500, // LMA, LME
        cs: Segment::code64(CODE_SELECTOR),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::tss(0x20, 0, 0x67),
        gdt: DescriptorTable { base: GDT, limit: 0x1f },
        idt: DescriptorTable { base: IDT, limit: 0xfff },
        ..BootState::default()
    }
}
