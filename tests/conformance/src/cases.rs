//! Exits, entries, registers, interrupts.

use cellblock_hypervisor::{Error, Irq, Regs, UnboundVcpu, Vcpu, Vm, VmEntry, VmExit, X86Gpr};

use crate::platforms::access;
use crate::{Bound, Op, Platform, READY, Space, bytes, pattern};

const MMIO: u64 = 0xd000_0000;
const PORT: u16 = 0x3f8;

/// A bound vCPU 0, or the case is skipped.
fn start<P: Platform>(platform: &P, program: &[Op], bare: bool) -> Option<(P::Vm, Bound<P>)> {
    match platform.vm(program, bare) {
        Ok(vm) => {
            let vcpu = vm.create_vcpu(0).unwrap().bind().unwrap();
            Some((vm, vcpu))
        }
        Err(why) => {
            eprintln!("SKIP: {why}");
            None
        }
    }
}

fn rax(vcpu: &impl Vcpu) -> u64 {
    match vcpu.get_regs().unwrap() {
        Regs::X86_64 { gprs, .. } => gprs[X86Gpr::Rax as usize],
        other => panic!("{other:?}"),
    }
}

fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn all_accesses() -> impl Iterator<Item = (Space, usize)> {
    let mmio = [1, 2, 4, 8].map(|width| (Space::Mmio(MMIO + 8 * width as u64), width));
    let pio = [1, 2, 4].map(|width| (Space::Pio(PORT + width as u16), width));
    mmio.into_iter().chain(pio)
}

/// MMIO of 1, 2, 4, 8 and ports of 1, 2, 4 bytes: the guest gets exactly the reply.
pub fn reads_of_every_width<P: Platform>(platform: &P) {
    let program: Vec<_> = all_accesses().map(|(space, width)| Op::Read(space, width)).collect();
    let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
    let mut entry = VmEntry::Resume;
    for (index, (space, width)) in all_accesses().enumerate() {
        assert_eq!(vcpu.run(entry).unwrap(), access(space, false, &vec![0; width]));
        let data = pattern(width, index as u8);
        assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&data))).unwrap(), None);
        assert_eq!(rax(&vcpu), value(&data), "{space:?} {width}");
        entry = VmEntry::Resume;
    }
}

/// MMIO of 1, 2, 4, 8 and ports of 1, 2, 4 bytes: the exit has exactly the guest's bytes.
pub fn writes_of_every_width<P: Platform>(platform: &P) {
    let program: Vec<_> =
        all_accesses().map(|(space, width)| Op::Write(space, pattern(width, 0x80))).collect();
    let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
    let mut entry = VmEntry::Resume;
    for (space, width) in all_accesses() {
        assert_eq!(vcpu.run(entry).unwrap(), access(space, true, &pattern(width, 0x80)));
        entry = VmEntry::Done;
    }
}

/// `rep ins`: one exit per element, and the guest's memory has what was replied, in order.
pub fn string_reads<P: Platform>(platform: &P) {
    for width in [1, 2, 4] {
        let count = 5;
        let program = [Op::ReadString { port: PORT, bytes: width, count }, Op::Read(Space::Pio(1), 1)];
        let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
        let mut entry = VmEntry::Resume;
        for element in 0..count {
            assert_eq!(
                vcpu.run(entry).unwrap(),
                access(Space::Pio(PORT), false, &vec![0; width]),
                "{element}"
            );
            entry = VmEntry::Reply(bytes(&pattern(width, element as u8)));
        }
        // Real guests now show what they got; the mock goes straight on.
        let mut shown = Vec::new();
        loop {
            match vcpu.run(entry).unwrap() {
                VmExit::Pio { port: PORT, write: true, data } => shown.push(data.to_vec()),
                other => break assert_eq!(other, access(Space::Pio(1), false, &[0])),
            }
            entry = VmEntry::Done;
        }
        let replied: Vec<_> = (0..count).map(|element| pattern(width, element as u8)).collect();
        assert!(shown.is_empty() || shown == replied, "{width}: {shown:x?}");
    }
}

/// `rep outs`: one exit per element; four `outb` never become one `outl`.
pub fn string_writes<P: Platform>(platform: &P) {
    for width in [1, 2, 4] {
        for count in [1_usize, 4, 200] {
            let elements: Vec<_> = (0..count).map(|element| pattern(width, element as u8)).collect();
            let program =
                [Op::WriteString { port: PORT, elements: elements.clone() }, Op::Read(Space::Pio(1), 1)];
            let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
            let mut entry = VmEntry::Resume;
            for element in &elements {
                assert_eq!(vcpu.run(entry).unwrap(), access(Space::Pio(PORT), true, element));
                entry = VmEntry::Done;
            }
            assert_eq!(vcpu.run(entry).unwrap(), access(Space::Pio(1), false, &[0]));
        }
    }
}

/// Without interrupt controllers in the hypervisor a HLT exits. (With them it waits inside; see the KVM tests.)
pub fn a_halt_without_controllers<P: Platform>(platform: &P) {
    let Some((_vm, mut vcpu)) = start(platform, &[Op::Halt], true) else { return };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Hlt);
}

/// A fault in the double-fault handler is not a power-off.
pub fn a_triple_fault<P: Platform>(platform: &P) {
    let Some((_vm, mut vcpu)) = start(platform, &[Op::TripleFault], false) else { return };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::TripleFault);
}

/// What the hypervisor cannot do ends the VM with a text that has the address and the instruction's bytes.
pub fn an_internal_error<P: Platform>(platform: &P) {
    let Some((_vm, mut vcpu)) = start(platform, &[Op::Unknown], false) else { return };
    match vcpu.run(VmEntry::Resume).unwrap() {
        VmExit::InternalError(text) => {
            eprintln!("{text}");
            assert!(text.contains("vCPU 0") && text.contains("RIP 0x"), "{text}");
            assert!(text.contains(platform.refused_instruction()), "{text}");
        }
        other => panic!("{other:x?}"),
    }
}

/// What was set is read back, in every register.
pub fn registers_round_trip<P: Platform>(platform: &P) {
    let Some((_vm, mut vcpu)) = start(platform, &[Op::Compute], false) else { return };
    let mut gprs = [0; 16];
    for (index, gpr) in gprs.iter_mut().enumerate() {
        *gpr = 0x0123_4567_89ab_cdef_u64.rotate_left(4 * index as u32);
    }
    gprs[X86Gpr::Flags as usize] = 0x8c7; // OF SF ZF PF CF and the bit that is always one
    let set = Regs::X86_64 { rip: 0x1_0000, rsp: 0x7_fff8, gprs };
    vcpu.set_regs(&set).unwrap();
    assert_eq!(vcpu.get_regs().unwrap(), set);
}

/// Any entry but the one that answers is refused by type, changes nothing, and the guest does not run.
pub fn wrong_entries_are_refused<P: Platform>(platform: &P) {
    let write = pattern(4, 1);
    let program = [
        Op::Read(Space::Mmio(MMIO), 4),
        Op::Write(Space::Mmio(MMIO), write.clone()),
        Op::Read(Space::Pio(PORT), 2),
        Op::WriteString { port: PORT, elements: vec![vec![1], vec![2]] },
    ];
    let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
    let (read4, read2) = (VmEntry::Reply(bytes(&pattern(4, 2))), VmEntry::Reply(bytes(&[1, 2])));
    let exits = [
        (VmEntry::Resume, access(Space::Mmio(MMIO), false, &[0; 4])),
        (read4, access(Space::Mmio(MMIO), true, &write)),
        (VmEntry::Done, access(Space::Pio(PORT), false, &[0; 2])),
        (read2, access(Space::Pio(PORT), true, &[1])),
        (VmEntry::Done, access(Space::Pio(PORT), true, &[2])),
    ];
    for (right, exit) in exits {
        let candidates = (0..=9).map(|len| VmEntry::Reply(bytes(&vec![0; len])));
        for wrong in candidates.chain([VmEntry::Resume, VmEntry::Done]) {
            let right_kind = match (&wrong, &right) {
                (VmEntry::Reply(wrong), VmEntry::Reply(right)) => wrong.len() == right.len(),
                (wrong, right) => wrong == right,
            };
            if right_kind {
                continue;
            }
            assert!(matches!(vcpu.run(wrong.clone()), Err(Error::WrongEntry { vcpu: 0, .. })), "{wrong:?}");
            assert!(
                matches!(vcpu.finish(wrong.clone()), Err(Error::WrongEntry { vcpu: 0, .. })),
                "{wrong:?}"
            );
        }
        assert_eq!(vcpu.run(right).unwrap(), exit);
    }
}

/// An access is completed for saving the registers, and the guest goes on behind it.
pub fn finish_completes_an_access<P: Platform>(platform: &P) {
    let program = [
        Op::Write(Space::Mmio(MMIO), vec![1]),
        Op::Read(Space::Mmio(MMIO), 8),
        Op::Read(Space::Pio(PORT), 4),
        Op::Write(Space::Pio(PORT), vec![9]),
    ];
    let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
    assert_eq!(vcpu.finish(VmEntry::Resume).unwrap(), None, "nothing is pending before the first entry");
    vcpu.run(VmEntry::Resume).unwrap();
    assert_eq!(vcpu.finish(VmEntry::Done).unwrap(), None);
    assert_eq!(vcpu.finish(VmEntry::Resume).unwrap(), None, "twice is once");
    for width in [8, 4] {
        vcpu.run(VmEntry::Resume).unwrap();
        let data = pattern(width, 3);
        assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&data))).unwrap(), None);
        assert_eq!(rax(&vcpu), value(&data));
    }
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), true, &[9]));
}

/// A string instruction's elements come one by one from `finish` too.
pub fn finish_yields_what_an_instruction_still_owes<P: Platform>(platform: &P) {
    let program = [Op::ReadString { port: PORT, bytes: 1, count: 3 }];
    let Some((_vm, mut vcpu)) = start(platform, &program, false) else { return };
    let element = access(Space::Pio(PORT), false, &[0]);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), element);
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[1]))).unwrap(), Some(element.clone()));
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[2]))).unwrap(), Some(element));
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[3]))).unwrap(), None);
}

/// From the vCPU's own thread, and from another while the guest idles.
pub fn an_injected_vector_reaches_its_handler<P: Platform>(platform: &P)
where
    P::Vm: Sync,
{
    let Some((vm, mut vcpu)) = start(platform, &[Op::Serve(PORT)], false) else { return };
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), true, &[READY]));
    for vector in [0x20, 0x41, 0xef] {
        vcpu.inject_irq(Irq::edge(vector)).unwrap();
        assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Pio(PORT), true, &[vector as u8]));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            vm.inject_irq(0, Irq::edge(0x77)).unwrap();
        });
        assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Pio(PORT), true, &[0x77]));
    });
}

/// A level-triggered vector is not quietly made an edge.
pub fn a_level_is_delivered_or_refused_by_type<P: Platform>(platform: &P) {
    let Some((_vm, mut vcpu)) = start(platform, &[Op::Serve(PORT)], false) else { return };
    vcpu.run(VmEntry::Resume).unwrap();
    let injected = vcpu.inject_irq(Irq::level(0x41));
    if platform.delivers_levels() {
        injected.unwrap();
        assert_eq!(vcpu.run(VmEntry::Done).unwrap(), access(Space::Pio(PORT), true, &[0x41]));
    } else {
        assert!(matches!(injected, Err(Error::Unsupported { .. })), "{injected:?}");
    }
}

/// x86 has 256 vectors, the first 16 reserved; no back end lets others through to some other vector.
pub fn impossible_vectors_are_refused<P: Platform>(platform: &P) {
    let Some((vm, vcpu)) = start(platform, &[Op::Serve(PORT)], false) else { return };
    for id in [0, 15, 256, u32::MAX] {
        let error = vcpu.inject_irq(Irq::edge(id)).unwrap_err();
        assert!(matches!(error, Error::BadValue { .. }), "{error}");
    }
    assert!(vm.inject_irq(99, Irq::edge(0x41)).is_err());
}
