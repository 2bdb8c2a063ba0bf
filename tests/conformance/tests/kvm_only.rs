//! What only KVM has: lines, event fds, processor states, set-up.
#![allow(unsafe_code, reason = "one test sends itself a signal")]
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use cellblock_conformance::assembler::{CODE, Image, assemble};
use cellblock_conformance::platforms::{KvmPlatform, access, boot_state};
use cellblock_conformance::{LINE, LINE_VECTOR, Op, READY, Space, bytes};
use cellblock_hypervisor::x86_64::BootState;
use cellblock_hypervisor::{
    DebugInfo, Error, Irq, Regs, UnboundVcpu as _, Vcpu as _, VmEntry, VmExit, X86Gpr,
};
use cellblock_hypervisor_kvm::{DataMatch, IoAddress, KvmVcpu, KvmVm, MpState, RegisterPage, probe};
use cellblock_memory::{GuestRam, UNIT};
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress};

const PORT: u16 = 0x3f8;

/// The host's KVM, or the test is skipped.
macro_rules! kvm {
    () => {
        match KvmPlatform::open() {
            Ok(platform) => platform,
            Err(why) => {
                eprintln!("SKIP: {why}");
                return;
            }
        }
    };
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signal(event: &OwnedFd) {
    rustix::io::write(event, &1_u64.to_ne_bytes()).unwrap();
}

fn count(event: &OwnedFd) -> u64 {
    let mut value = [0; 8];
    match rustix::io::read(event, &mut value) {
        Ok(_) => u64::from_ne_bytes(value),
        Err(_) => 0,
    }
}

fn start(platform: &KvmPlatform, image: &Image, bare: bool) -> (KvmVm, KvmVcpu) {
    let vm = platform.load(image, bare);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_boot_state(&boot_state()).unwrap();
    (vm, vcpu.bind().unwrap())
}

#[test]
fn an_irqfd_reaches_the_guests_handler() {
    let platform = kvm!();
    let (vm, mut vcpu) = start(&platform, &assemble(&[Op::Serve(PORT)]), false);
    let line = event();
    vm.irqfd(line.as_fd(), LINE).unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), true, &[READY]));
    for _ in 0..3 {
        signal(&line);
        assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Pio(PORT), true, &[LINE_VECTOR]));
    }
    let other = line.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5));
            signal(&other);
        });
        assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Pio(PORT), true, &[LINE_VECTOR]));
    });
    vm.remove_irqfd(line.as_fd(), LINE).unwrap();
    signal(&line);
    vcpu.inject_irq(Irq::edge(0x30)).unwrap();
    assert_eq!(
        vcpu.run(VmEntry::Done).unwrap(),
        access(Space::Pio(PORT), true, &[0x30]),
        "the line still works"
    );
}

#[test]
fn one_event_serves_one_line() {
    let platform = kvm!();
    let vm = platform.load(&Image::default(), false);
    let line = event();
    vm.irqfd(line.as_fd(), LINE).unwrap();
    let error = vm.irqfd(line.as_fd(), LINE).unwrap_err().to_string();
    assert!(error.contains("KVM_IRQFD") && error.contains("line 5"), "{error}");
}

#[test]
fn an_ioeventfd_takes_the_writes_that_match() {
    let platform = kvm!();
    let mmio = 0xd000_0050;
    let write = |value: u32| Op::Write(Space::Mmio(mmio), value.to_le_bytes().to_vec());
    let port = |value| Op::Write(Space::Pio(PORT), vec![value]);
    let (vm, mut vcpu) =
        start(&platform, &assemble(&[write(1), write(2), write(1), port(7), write(3)]), false);
    let (queue, door) = (event(), event());
    vm.ioeventfd(IoAddress::Mmio(mmio), DataMatch::U32(1), queue.as_fd()).unwrap();
    vm.ioeventfd(IoAddress::Pio(PORT), DataMatch::Any, door.as_fd()).unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Mmio(mmio), true, &[2, 0, 0, 0]));
    assert_eq!(count(&queue), 1);
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Mmio(mmio), true, &[3, 0, 0, 0]));
    assert_eq!((count(&queue), count(&door)), (1, 1));
    let taken = vm.ioeventfd(IoAddress::Mmio(mmio), DataMatch::U32(1), door.as_fd()).unwrap_err().to_string();
    assert!(taken.contains("KVM_IOEVENTFD") && taken.contains("d0000050"), "{taken}");
    vm.remove_ioeventfd(IoAddress::Mmio(mmio), DataMatch::U32(1), queue.as_fd()).unwrap();
}

/// Guests that write an index and access its register, as they do with an RTC; `None` if this host cannot hold writes back.
fn start_held(platform: &KvmPlatform, program: &[Op]) -> Option<KvmVcpu> {
    let vm = platform.load(&assemble(program), false);
    if !vm.hold_writes(INDEX).unwrap() {
        eprintln!("SKIP: no KVM_CAP_COALESCED_PIO here");
        return None;
    }
    let second = vm.hold_writes(INDEX + 1).unwrap_err().to_string();
    assert!(second.contains("a second port"), "{second}");
    let vcpu = vm.create_vcpu(0).unwrap();
    let other = vm.create_vcpu(1).map(drop).unwrap_err().to_string();
    assert!(other.contains("a second vCPU"), "{other}");
    vcpu.setup().set_boot_state(&boot_state()).unwrap();
    Some(vcpu.bind().unwrap())
}

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

fn index(value: u8) -> Op {
    Op::Write(Space::Pio(INDEX), vec![value])
}

fn chosen(value: u8) -> VmExit {
    access(Space::Pio(INDEX), true, &[value])
}

#[test]
fn held_writes_come_before_the_exit_that_follows_and_in_order() {
    let platform = kvm!();
    let data = Space::Pio(DATA);
    let program = [
        index(1),
        Op::Read(data, 1),
        Op::Write(data, vec![8]),
        index(2),
        index(3),
        Op::WriteString { port: PORT, elements: vec![vec![4], vec![5]] },
        // Wider than what is held: the index and the register beside it.
        Op::Write(Space::Pio(INDEX), vec![6, 7]),
        Op::Read(data, 1),
        Op::TripleFault,
    ];
    let Some(mut vcpu) = start_held(&platform, &program) else { return };
    let reads = || VmEntry::Reply(bytes(&[0xa5]));
    let expected = [
        (chosen(1), VmEntry::Done),
        (access(data, false, &[0]), reads()),
        (access(data, true, &[8]), VmEntry::Done),
        (chosen(2), VmEntry::Done),
        (chosen(3), VmEntry::Done),
        (access(Space::Pio(PORT), true, &[4]), VmEntry::Done),
        (access(Space::Pio(PORT), true, &[5]), VmEntry::Done),
        (access(Space::Pio(INDEX), true, &[6, 7]), VmEntry::Done),
        (access(data, false, &[0]), reads()),
    ];
    let mut entry = VmEntry::Resume;
    for (exit, answer) in expected {
        assert_eq!(vcpu.run(entry).unwrap(), exit);
        entry = answer;
    }
    assert_eq!(vcpu.run(entry).unwrap(), VmExit::TripleFault);
}

#[test]
fn a_held_write_outlives_a_pause_and_is_served_by_finish() {
    let platform = kvm!();
    let data = Space::Pio(DATA);
    let program = [index(1), Op::Read(data, 1), index(2), index(3), Op::Read(data, 1)];
    let Some(mut vcpu) = start_held(&platform, &program) else { return };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), chosen(1));
    // The kick comes while the write is being served: both it and the exit behind stay in order.
    vcpu.cancel();
    let wrong = vcpu.run(VmEntry::Resume).unwrap_err();
    assert!(matches!(wrong, Error::WrongEntry { .. }), "{wrong}");
    assert_eq!(vcpu.finish(VmEntry::Done).unwrap(), Some(access(data, false, &[0])));
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[9]))).unwrap(), None);
    let Regs::X86_64 { gprs, .. } = vcpu.get_regs().unwrap() else { unreachable!() };
    assert_eq!(gprs[X86Gpr::Rax as usize], 9);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), chosen(2));
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), chosen(3));
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(data, false, &[0]));
}

/// More than KVM's queue of one page has room for: none is lost, and none overtakes another.
#[test]
fn more_writes_than_the_queue_holds_are_exits() {
    let platform = kvm!();
    let program: Vec<_> = (0..=250).map(index).chain([Op::Read(Space::Pio(DATA), 1)]).collect();
    let Some(mut vcpu) = start_held(&platform, &program) else { return };
    let mut entry = VmEntry::Resume;
    for value in 0..=250 {
        assert_eq!(vcpu.run(entry).unwrap(), chosen(value));
        entry = VmEntry::Done;
    }
    assert_eq!(vcpu.run(entry).unwrap(), access(Space::Pio(DATA), false, &[0]));
}

#[test]
fn a_held_write_is_no_return_from_the_kernel() {
    let platform = kvm!();
    let Some(mut vcpu) = start_held(&platform, &[index(1), index(2), Op::Read(Space::Pio(DATA), 1)]) else {
        return;
    };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), chosen(1));
    let Regs::X86_64 { rip, .. } = vcpu.get_regs().unwrap() else { unreachable!() };
    let writes = assemble(&[index(1), index(2)]).code.len() - assemble(&[]).code.len();
    assert!(rip > CODE + writes as u64, "the guest is past both writes, at the read: RIP {rip:#x}");
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), chosen(2));
}

#[test]
fn a_register_page_is_read_without_an_exit_and_written_by_one() {
    let platform = kvm!();
    let (first, second) = (0xd000_0000, 0xd000_1000);
    let (notify, status) = (first + 0x50, second + 0x60);
    let write = |address| Op::Write(Space::Mmio(address), vec![1, 0, 0, 0]);
    let behind = second + 0x1000;
    let reads = [Op::Read(Space::Mmio(behind), 4), Op::Read(Space::Mmio(status), 4), Op::Halt];
    let program = [[write(notify), write(status)].as_slice(), &reads].concat();
    let page = |address| {
        let memory = rustix::fs::memfd_create("page", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 4096).unwrap();
        RegisterPage { address, memory }
    };
    let pages = [page(first), page(second)];
    let show = |value: u32| rustix::io::pwrite(&pages[1].memory, &value.to_le_bytes(), 0x60).unwrap();
    show(0x1234_5678);
    let vm = platform.load_with(&assemble(&program), &pages);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_boot_state(&boot_state()).unwrap();
    let mut vcpu = vcpu.bind().unwrap();
    let kicks = event();
    vm.ioeventfd(IoAddress::Mmio(notify), DataMatch::U32(1), kicks.as_fd()).unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Mmio(status), true, &[1, 0, 0, 0]));
    assert_eq!(count(&kicks), 1, "a kick in a register page");
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Mmio(behind), false, &[0; 4]));
    // What it shows now counts, not what it showed when the guest began.
    show(0x0765_4321);
    let kick = vcpu.kick_handle();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            kick.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Reply([0; 4].as_slice().into())).unwrap(), VmExit::Kicked);
    });
    let Regs::X86_64 { gprs, .. } = vcpu.get_regs().unwrap() else { panic!() };
    assert_eq!(gprs[X86Gpr::Rax as usize], 0x0765_4321);
}

#[test]
fn a_halt_with_controllers_waits_in_the_kernel() {
    let platform = kvm!();
    let (_vm, mut vcpu) = start(&platform, &assemble(&[Op::Halt]), false);
    assert_eq!(vcpu.setup().mp_state().unwrap(), MpState::Runnable);
    let kick = vcpu.kick_handle();
    let start_of_halt = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            kick.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    });
    // Linux 6.1 lets a signal end the halt, later ones do not.
    assert!(matches!(vcpu.setup().mp_state().unwrap(), MpState::Halted | MpState::Runnable));
    assert!(start_of_halt.elapsed() >= Duration::from_millis(20));
}

#[test]
fn another_processor_waits_for_its_start_and_can_be_kicked_meanwhile() {
    let platform = kvm!();
    let vm = platform.load(&assemble(&[Op::Compute]), false);
    let first = vm.create_vcpu(0).unwrap();
    let second = vm.create_vcpu(1).unwrap();
    assert_eq!(first.setup().mp_state().unwrap(), MpState::Runnable);
    assert_eq!(second.setup().mp_state().unwrap(), MpState::Uninitialized);
    let kick = second.kick_handle();
    let (report, reported) = channel();
    thread::spawn(move || {
        let mut second = second.bind().unwrap();
        for _ in 0..50 {
            report.send(second.run(VmEntry::Resume).unwrap()).unwrap();
        }
    });
    for round in 0..50 {
        thread::sleep(Duration::from_micros(round * 20));
        kick.kick();
        assert_eq!(reported.recv_timeout(Duration::from_secs(5)).expect("a kick is lost"), VmExit::Kicked);
    }
}

/// The first processor's INIT and SIPI start the second, which shows itself by a write.
#[test]
fn another_processor_starts_by_init_and_sipi() {
    let platform = kvm!();
    let mut image = Image::default();
    // mov ebx, 0xfee000f0; mov dword [rbx], 0x1ff: enable the local APIC
    let store = |code: &mut Vec<u8>, addr: u32, value: u32| {
        code.push(0xbb);
        code.extend(addr.to_le_bytes());
        code.extend([0xc7, 0x03]);
        code.extend(value.to_le_bytes());
    };
    store(&mut image.code, 0xfee0_00f0, 0x1ff);
    store(&mut image.code, 0xfee0_0310, 1 << 24); // to local APIC 1
    store(&mut image.code, 0xfee0_0300, 0x4500); // INIT
    store(&mut image.code, 0xfee0_0310, 1 << 24);
    store(&mut image.code, 0xfee0_0300, 0x4609); // SIPI, vector 9: 0x9000
    image.code.extend([0x48, 0xff, 0xc1, 0xeb, 0xfb]);
    let vm = platform.load(&image, false);
    // 16-bit code: mov dx, 0x3f8; mov al, 0x5a; out dx, al; jmp $
    vm.memory().write_slice(&[0xba, 0xf8, 0x03, 0xb0, 0x5a, 0xee, 0xeb, 0xfe], GuestAddress(0x9000)).unwrap();
    let first = vm.create_vcpu(0).unwrap();
    first.setup().set_boot_state(&boot_state()).unwrap();
    let kick_first = first.kick_handle();
    let second = vm.create_vcpu(1).unwrap();
    let kick_second = second.kick_handle();
    let (report, reported) = channel();
    let first = thread::spawn(move || first.bind().unwrap().run(VmEntry::Resume).unwrap());
    let second = thread::spawn(move || {
        report.send(second.bind().unwrap().run(VmEntry::Resume).unwrap()).unwrap();
    });
    let exit = reported.recv_timeout(Duration::from_secs(5));
    kick_second.kick();
    kick_first.kick();
    assert_eq!(exit.expect("the second processor never ran"), access(Space::Pio(0x3f8), true, &[0x5a]));
    second.join().unwrap();
    assert_eq!(first.join().unwrap(), VmExit::Kicked);
}

#[test]
fn refused_msrs_are_named_and_the_rest_is_set() {
    let platform = kvm!();
    let vm = platform.load(&Image::default(), false);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_cpuid(&platform.0.supported_cpuid().unwrap()).unwrap();
    let (lstar, absent, kernel_gs) = (0xc000_0082, 0x1234_5678, 0xc000_0102);
    let refused = vcpu
        .setup()
        .set_msrs(&[(absent, 1), (lstar, 0x1111), (absent + 1, 1), (kernel_gs, 0x2222), (absent + 2, 1)])
        .unwrap();
    assert_eq!(refused, [absent, absent + 1, absent + 2]);
    assert_eq!(vcpu.setup().get_msr(lstar).unwrap(), Some(0x1111));
    assert_eq!(vcpu.setup().get_msr(kernel_gs).unwrap(), Some(0x2222));
    assert_eq!(vcpu.setup().get_msr(absent).unwrap(), None);
    assert_eq!(vcpu.setup().set_msrs(&[]).unwrap(), Vec::<u32>::new());
}

#[test]
fn set_up_steps_that_are_not_seen_by_other_tests_work() {
    let platform = kvm!();
    let vm = platform.load(&Image::default(), false);
    assert!(vm.notes().iter().all(|note| note.contains("refused")), "{:?}", vm.notes());
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_lapic_pins().unwrap();
    assert!(vcpu.setup().tsc_khz().unwrap() > 100_000);
    let leaves = platform.0.supported_cpuid().unwrap();
    assert!(leaves.iter().any(|leaf| leaf.function == 1) && platform.0.max_vcpus() >= 32);
    let too_many = vec![leaves[0]; 300];
    let error = vcpu.setup().set_cpuid(&too_many).unwrap_err();
    assert!(matches!(error, Error::BadValue { .. }), "{error}");
    assert!(error.to_string().contains("300") && error.to_string().contains("vCPU 0"), "{error}");
}

#[test]
fn a_refused_state_names_the_call_and_the_vcpu() {
    let platform = kvm!();
    let vm = platform.load(&Image::default(), false);
    let vcpu = vm.create_vcpu(3).unwrap();
    // Paging without protection: SDM vol 3 §4.1.1 forbids it.
    let error =
        vcpu.setup().set_boot_state(&BootState { cr0: 0x8000_0000, ..boot_state() }).unwrap_err().to_string();
    assert!(error.contains("KVM_SET_SREGS") && error.contains("vCPU 3"), "{error}");
    let error = vm.create_vcpu(3).err().unwrap().to_string();
    assert!(error.contains("KVM_CREATE_VCPU") && error.contains("vCPU 3"), "{error}");
}

#[test]
fn a_single_step_exits_behind_each_instruction() {
    let platform = kvm!();
    let (_vm, mut vcpu) = start(&platform, &assemble(&[Op::Write(Space::Pio(PORT), vec![1])]), false);
    vcpu.setup().set_single_step(true).unwrap();
    // mov edx, imm32 has 5 bytes; mov rax, imm64 10.
    for expected in [CODE + 5, CODE + 15] {
        match vcpu.run(VmEntry::Resume).unwrap() {
            VmExit::Debug(DebugInfo { pc, syndrome }) => {
                assert_eq!(pc, expected);
                assert_ne!(syndrome & 1 << 14, 0, "DR6 says that it was a step: {syndrome:#x}");
            }
            other => panic!("{other:x?}"),
        }
    }
    vcpu.setup().set_single_step(false).unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), true, &[1]));
}

/// A signal alone is not a kick: the guest goes on.
#[test]
fn a_strangers_signal_is_not_a_kick() {
    let platform = kvm!();
    let (_vm, mut vcpu) = start(&platform, &assemble(&[Op::ReadForEver(PORT)]), false);
    // SAFETY: no argument.
    let me = unsafe { libc::pthread_self() } as usize;
    let (stop, stopped) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while stopped
                .recv_timeout(Duration::from_micros(50))
                .is_err_and(|e| e.to_string().contains("timed out"))
            {
                // SAFETY: the thread lives until this one was joined by the scope.
                unsafe { libc::pthread_kill(me as libc::pthread_t, libc::SIGRTMIN()) };
            }
        });
        let mut entry = VmEntry::Resume;
        for _ in 0..3000 {
            assert_eq!(vcpu.run(entry).unwrap(), access(Space::Pio(PORT), false, &[0]));
            entry = VmEntry::Reply(bytes(&[0]));
        }
        drop(stop);
    });
}

/// Real kicks among signals that are none, in a guest that never exits by itself.
#[test]
fn no_kick_is_lost_among_strangers_signals() {
    let platform = kvm!();
    let vm = platform.load(&assemble(&[Op::Compute]), false);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_boot_state(&boot_state()).unwrap();
    let kick = vcpu.kick_handle();
    let (report, reported) = channel();
    let (name, named) = channel();
    const KICKS: u32 = 3000;
    let runner = thread::spawn(move || {
        let mut vcpu = vcpu.bind().unwrap();
        // SAFETY: no argument.
        name.send(unsafe { libc::pthread_self() } as usize).unwrap();
        for _ in 0..KICKS {
            report.send(vcpu.run(VmEntry::Resume).unwrap()).unwrap();
        }
    });
    let target = named.recv().unwrap();
    let (stop, stopped) = channel::<()>();
    let stranger = thread::spawn(move || {
        while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            // SAFETY: the thread is joined only after this one.
            unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGRTMIN()) };
            thread::sleep(Duration::from_micros(5));
        }
    });
    for round in 0..KICKS {
        let start = Instant::now();
        while start.elapsed() < Duration::from_nanos(u64::from(round * 89 % 20_000)) {}
        kick.kick();
        let exit = reported.recv_timeout(Duration::from_secs(5));
        assert_eq!(exit.unwrap_or_else(|_| panic!("kick {round} is lost")), VmExit::Kicked);
    }
    drop(stop);
    stranger.join().unwrap();
    runner.join().unwrap();
}

/// An instruction whose operand spans two pages of device memory owes two accesses: `finish` yields the second.
#[test]
fn an_access_across_pages_comes_in_pieces() {
    let platform = kvm!();
    let (_vm, mut vcpu) = start(&platform, &assemble(&[Op::Read(Space::Mmio(0xd000_0ffc), 8)]), false);
    let first = vcpu.run(VmEntry::Resume).unwrap();
    let VmExit::Mmio { addr: 0xd000_0ffc, write: false, data } = first else { panic!("{first:x?}") };
    if data.len() == 8 {
        eprintln!("SKIP: this KVM does not split an access at a page's end");
        return;
    }
    assert_eq!(data.len(), 4);
    let second =
        vcpu.finish(VmEntry::Reply(bytes(&[1, 2, 3, 4]))).unwrap().expect("half an access is finished");
    assert_eq!(second, access(Space::Mmio(0xd000_1000), false, &[0; 4]));
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[5, 6, 7, 8]))).unwrap(), None);
    let Regs::X86_64 { gprs, .. } = vcpu.get_regs().unwrap() else { panic!("not x86-64") };
    assert_eq!(gprs[X86Gpr::Rax as usize], 0x0807_0605_0403_0201);
}

/// 4000 elements are more than one run page holds: KVM delivers them in several exits, and a kick comes through between two.
#[test]
fn a_long_string_read_can_be_kicked_and_loses_nothing() {
    let platform = kvm!();
    let program = [Op::ReadString { port: PORT, bytes: 1, count: 4000 }];
    let (vm, mut vcpu) = start(&platform, &assemble(&program), false);
    let (mut entry, mut served, mut kicks) = (VmEntry::Resume, 0_usize, 0);
    while served < 4000 {
        if served == 1500 {
            vcpu.cancel();
        }
        match vcpu.run(entry).unwrap() {
            VmExit::Kicked => {
                kicks += 1;
                entry = VmEntry::Resume;
            }
            exit => {
                assert_eq!(exit, access(Space::Pio(PORT), false, &[0]), "{served}");
                entry = VmEntry::Reply(bytes(&[(served % 251) as u8]));
                served += 1;
            }
        }
    }
    let show = vcpu.finish(entry).unwrap();
    assert_eq!(show, None);
    assert!(kicks == 1 || vcpu.run(VmEntry::Resume).unwrap() == VmExit::Kicked);
    let mut got = vec![0; 4000];
    vm.memory().read_slice(&mut got, GuestAddress(cellblock_conformance::assembler::BUFFER)).unwrap();
    assert!(got.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index % 251));
}

#[test]
fn an_interrupt_before_the_guest_enabled_its_apic_is_an_error() {
    let platform = kvm!();
    let (vm, vcpu) = start(&platform, &assemble(&[Op::Compute]), false);
    let error = vcpu.inject_irq(Irq::edge(0x41)).unwrap_err().to_string();
    assert!(error.contains("KVM_SIGNAL_MSI") && error.contains("vector 65"), "{error}");
    assert!(vm.inject_irq(7, Irq::edge(0x41)).is_err());
}

#[test]
fn every_fatal_text_says_where() {
    let platform = kvm!();
    // A jump to where nothing is: no bytes can be fetched.
    let mut image = Image::default();
    image.code.extend([0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]); // mov eax, 0xd0000000; jmp rax
    let (_vm, mut vcpu) = start(&platform, &image, false);
    let exit = vcpu.run(VmEntry::Resume).unwrap();
    let VmExit::InternalError(text) = exit else { panic!("{exit:x?}") };
    assert!(text.contains("vCPU 0") && text.contains("RIP 0xd0000000"), "{text}");
}

#[test]
fn the_probe_tells_how_this_host_runs_kernel_code() {
    let platform = kvm!();
    let start = Instant::now();
    let speed = probe::kernel_code_speed(&platform.0).unwrap();
    eprintln!("{speed:?}: {} instructions per second, probed in {:?}", speed.per_second(), start.elapsed());
    assert!(speed.instructions > 0 && start.elapsed() < Duration::from_secs(20));
    let capabilities = probe::capabilities(&platform.0);
    assert!(
        capabilities.iter().filter(|capability| capability.required).all(|capability| capability.present)
    );
}

#[test]
fn memory_around_the_hole_is_one_vm() {
    let platform = kvm!();
    let ram = GuestRam::create(cellblock_memory::LOW_LIMIT + UNIT, false).unwrap();
    let vm = platform.0.create_vm(&ram).unwrap();
    vm.memory().write_obj(1_u8, GuestAddress(cellblock_memory::HIGH_BASE)).unwrap();
}

#[test]
fn a_wrong_fd_is_refused() {
    let error =
        cellblock_hypervisor_kvm::Kvm::open(std::fs::File::open("/dev/null").unwrap().into()).err().unwrap();
    assert!(error.to_string().contains("/dev/kvm"), "{error}");
}
