//! Prints what each KVM set-up step costs on this host, in µs (median of 15 VMs), in the order that the back end uses
//! and in others: `cargo run -p cellblock-hypervisor-kvm --example setup_cost [once]`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, unsafe_code)]

#[cfg(target_arch = "x86_64")]
fn main() {
    measure::all();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("x86-64 only");
}

#[cfg(target_arch = "x86_64")]
mod measure {
    use std::collections::BTreeMap;
    use std::fs::OpenOptions;
    use std::os::fd::{AsRawFd as _, BorrowedFd};
    use std::time::Instant;

    use cellblock_hypervisor::x86_64::{BootState, Segment};
    use cellblock_hypervisor::{UnboundVcpu as _, Vcpu as _, VmEntry};
    use cellblock_hypervisor_kvm::{DataMatch, IoAddress, Kvm, probe};
    use cellblock_memory::GuestRam;
    use kvm_bindings::kvm_userspace_memory_region;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    use vmm_sys_util::eventfd::EventFd;

    #[derive(Default)]
    struct Steps(Vec<&'static str>, BTreeMap<&'static str, Vec<f64>>);

    impl Steps {
        fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> T) -> T {
            let start = Instant::now();
            let made = step();
            let micros = start.elapsed().as_nanos() as f64 / 1000.0;
            if !self.1.contains_key(name) {
                self.0.push(name);
            }
            self.1.entry(name).or_default().push(micros);
            made
        }

        fn print(&mut self, title: &str) {
            println!("\n{title}");
            for name in &self.0 {
                let times = self.1.get_mut(name).unwrap();
                times.sort_by(f64::total_cmp);
                let last = times[times.len() - 1];
                println!("  {name:<34} {:>9.1}   worst {last:>9.1}", times[times.len() / 2]);
            }
        }
    }

    fn open() -> Kvm {
        Kvm::open(OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap().into()).unwrap()
    }

    pub(crate) fn all() {
        if std::env::args().nth(1).as_deref() == Some("once") {
            return ours(1);
        }
        for order in
            ["chip first", "memory first", "vcpu before chip is refused: chip, vcpu, memory", "no chip"]
        {
            raw(order);
        }
        ours(15);
        let mut steps = Steps::default();
        let kvm = open();
        let mut speed = None;
        for _ in 0..15 {
            speed = Some(steps.time("kernel_code_speed", || probe::kernel_code_speed(&kvm).unwrap()));
        }
        steps.time("capabilities", || probe::capabilities(&kvm));
        steps.print(&format!("probe: {:?}", speed.unwrap()));
    }

    fn raw(order: &str) {
        let mut steps = Steps::default();
        for _ in 0..15 {
            let kvm = steps.time("open /dev/kvm", || kvm_ioctls::Kvm::new().unwrap());
            let ram = steps.time("memfd 256 MiB", || GuestRam::create(256 << 20, false).unwrap());
            let memory = steps.time("mmap + madvise", || ram.map().unwrap());
            let vm = steps.time("KVM_CREATE_VM", || kvm.create_vm().unwrap());
            let chip = |steps: &mut Steps| {
                steps.time("SET_IDENTITY_MAP_ADDR", || vm.set_identity_map_address(0xfffb_c000)).unwrap();
                steps.time("SET_TSS_ADDR", || vm.set_tss_address(0xfffb_d000)).unwrap();
                steps.time("CREATE_IRQCHIP", || vm.create_irq_chip()).unwrap();
            };
            let set_memory = |steps: &mut Steps| {
                let region = memory.iter().next().unwrap();
                let slot = kvm_userspace_memory_region {
                    slot: 0,
                    flags: 0,
                    guest_phys_addr: 0,
                    memory_size: region.len(),
                    userspace_addr: region.get_mmap().as_ptr() as u64,
                };
                // SAFETY: the mapping outlives the VM.
                steps.time("SET_USER_MEMORY_REGION", || unsafe { vm.set_user_memory_region(slot) }).unwrap();
            };
            let vcpu = match order {
                "chip first" => {
                    chip(&mut steps);
                    set_memory(&mut steps);
                    steps.time("CREATE_VCPU", || vm.create_vcpu(0).unwrap())
                }
                "memory first" => {
                    set_memory(&mut steps);
                    chip(&mut steps);
                    steps.time("CREATE_VCPU", || vm.create_vcpu(0).unwrap())
                }
                "no chip" => {
                    set_memory(&mut steps);
                    steps.time("CREATE_VCPU", || vm.create_vcpu(0).unwrap())
                }
                _ => {
                    chip(&mut steps);
                    let vcpu = steps.time("CREATE_VCPU", || vm.create_vcpu(0).unwrap());
                    set_memory(&mut steps);
                    vcpu
                }
            };
            steps.time("close vcpu", || drop(vcpu));
            steps.time("close vm", || drop(vm));
        }
        steps.print(order);
    }

    /// As the supervisor does it, up to the first exit of a guest that does `out`.
    fn ours(times: u32) {
        use vm_memory::{Bytes, GuestAddress};
        let mut steps = Steps::default();
        for _ in 0..times {
            let start = Instant::now();
            let kvm = steps.time("Kvm::open", open);
            let cpuid = steps.time("supported_cpuid", || kvm.supported_cpuid().unwrap());
            let ram = steps.time("GuestRam::create", || GuestRam::create(256 << 20, false).unwrap());
            let vm = steps.time("create_vm", || kvm.create_vm(&ram).unwrap());
            vm.memory().write_slice(&[0xb0, 0x41, 0xe6, 0x10, 0xf4], GuestAddress(0x1000)).unwrap();
            let vcpu = steps.time("create_vcpu", || vm.create_vcpu(0).unwrap());
            let mut vcpu = steps.time("bind", || vcpu.bind().unwrap());
            steps.time("set_cpuid", || vcpu.setup().set_cpuid(&cpuid).unwrap());
            let msrs: Vec<(u32, u64)> = [
                0x174,
                0x175,
                0x176,
                0xc000_0081,
                0xc000_0082,
                0xc000_0083,
                0xc000_0084,
                0xc000_0102,
                0x10,
                0x2ff,
            ]
            .map(|index| (index, 0))
            .to_vec();
            let events: Vec<_> = (0..4).map(|_| EventFd::new(0).unwrap()).collect();
            for (event, gsi) in events.iter().zip([4, 8, 1, 5]) {
                // SAFETY: the event outlives the borrow.
                let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
                steps.time("irqfd (each of 4)", || vm.irqfd(fd, gsi).unwrap());
            }
            let refused = steps.time("set_msrs (10)", || vcpu.setup().set_msrs(&msrs).unwrap());
            assert!(refused.is_empty(), "{refused:x?}");
            steps.time("set_lapic_pins", || vcpu.setup().set_lapic_pins().unwrap());
            let data = Segment::data(0x18);
            let state = BootState {
                rip: 0x1000,
                cr0: 0x11,
                cs: Segment::code32(0x10),
                ds: data,
                es: data,
                fs: data,
                gs: data,
                ss: data,
                tr: Segment::tss(0x20, 0, 0x67),
                ..BootState::default()
            };
            steps.time("set_boot_state", || vcpu.setup().set_boot_state(&state).unwrap());
            steps.time("first run to its exit", || vcpu.run(VmEntry::Resume).unwrap());
            let total = start.elapsed();
            let queue = EventFd::new(0).unwrap();
            // SAFETY: the event outlives the borrow.
            let fd = unsafe { BorrowedFd::borrow_raw(queue.as_raw_fd()) };
            let at = IoAddress::Mmio(0xd000_0050);
            steps.time("ioeventfd", || vm.ioeventfd(at, DataMatch::U32(0), fd).unwrap());
            steps.time("second run (kicked)", || {
                vcpu.cancel();
                vcpu.run(VmEntry::Done).unwrap()
            });
            drop(vcpu);
            steps.time("drop of the VM", || drop(vm));
            steps.1.entry("TOTAL to the first exit").or_default().push(total.as_nanos() as f64 / 1000.0);
        }
        steps.0.push("TOTAL to the first exit");
        steps.print("through this crate");
    }
}
