//! No kick is lost, whenever it comes; none counts twice.
//!
//! Where a lost kick would leave a vCPU in the guest for ever, the case waits with a deadline and fails by it. The thread that is then stuck ends with
//! the test process.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_hypervisor::{KickHandle, Regs, UnboundVcpu, Vcpu, Vm, VmEntry, VmExit, X86Gpr};

use crate::platforms::access;
use crate::{Op, Platform, READY, Space, Unbound, bytes};

const PORT: u16 = 0x3f8;
/// A kick that took longer is lost.
const DEADLINE: Duration = Duration::from_secs(5);

/// The vCPU's VM must be kept as long as the vCPU.
fn unbound<P: Platform>(platform: &P, program: &[Op]) -> Option<(P::Vm, Unbound<P>)> {
    match platform.vm(program, false) {
        Ok(vm) => {
            let vcpu = vm.create_vcpu(0).unwrap();
            Some((vm, vcpu))
        }
        Err(why) => {
            eprintln!("SKIP: {why}");
            None
        }
    }
}

/// Any answer that fits.
fn answer(exit: &VmExit) -> VmEntry {
    match exit {
        VmExit::Mmio { write: false, data, .. } | VmExit::Pio { write: false, data, .. } => {
            VmEntry::Reply(data.clone())
        }
        VmExit::Mmio { .. } | VmExit::Pio { .. } => VmEntry::Done,
        VmExit::Kicked => VmEntry::Resume,
        other => panic!("{other:x?}"),
    }
}

/// Serves the guest on this thread and reports each `Kicked`, until `stop` is disconnected.
fn serve(mut vcpu: impl Vcpu, kicked: &Sender<()>) {
    let mut entry = VmEntry::Resume;
    loop {
        let exit = vcpu.run(entry).unwrap();
        entry = answer(&exit);
        if exit == VmExit::Kicked && kicked.send(()).is_err() {
            return;
        }
    }
}

/// A vCPU thread that serves its guest.
fn spawn<V: UnboundVcpu + 'static>(vcpu: V) -> (KickHandle, Receiver<()>, thread::JoinHandle<()>) {
    let handle = vcpu.kick_handle();
    let (report, kicked) = channel();
    let thread = thread::spawn(move || serve(vcpu.bind().unwrap(), &report));
    (handle, kicked, thread)
}

fn stop(handle: &KickHandle, kicked: Receiver<()>, thread: thread::JoinHandle<()>) {
    drop(kicked);
    handle.kick();
    thread.join().unwrap();
}

/// Kicks `times` with delays that sweep over the guest's cycle; each must arrive, and none twice.
fn sweep<P: Platform>(platform: &P, program: &[Op], times: u32)
where
    Unbound<P>: 'static,
{
    let Some((_vm, vcpu)) = unbound(platform, program) else { return };
    let (handle, kicked, thread) = spawn(vcpu);
    for round in 0..times {
        handle.kick();
        kicked
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|error| panic!("kick {round} of {times} is lost: {error}"));
        assert!(kicked.try_recv().is_err(), "kick {round} counted twice");
        spin(Duration::from_nanos(u64::from(round * 137 % 40_000)));
    }
    stop(&handle, kicked, thread);
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The handle works before the vCPU has a thread.
pub fn before_the_binding<P: Platform>(platform: &P) {
    let Some((_vm, vcpu)) = unbound(platform, &[Op::Read(Space::Pio(PORT), 1)]) else { return };
    vcpu.kick_handle().kick();
    let mut vcpu = vcpu.bind().unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), false, &[0]));
}

/// A bound vCPU that was kicked does not enter the guest.
pub fn before_the_first_entry<P: Platform>(platform: &P) {
    let Some((_vm, vcpu)) = unbound(platform, &[Op::Read(Space::Pio(PORT), 1)]) else { return };
    let mut vcpu = vcpu.bind().unwrap();
    vcpu.cancel();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), false, &[0]));
}

/// Kicks before the exit that reports them are one.
pub fn many_are_one<P: Platform>(platform: &P) {
    let Some((_vm, vcpu)) = unbound(platform, &[Op::Read(Space::Pio(PORT), 1)]) else { return };
    let mut vcpu = vcpu.bind().unwrap();
    let other = vcpu.kick_handle();
    for _ in 0..1000 {
        vcpu.cancel();
        other.kick();
    }
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), false, &[0]));
}

/// A kick between an exit and its reply: the guest has the reply when `Kicked` is returned.
pub fn a_kick_delivers_the_reply_first<P: Platform>(platform: &P) {
    let mmio = Space::Mmio(0xd000_0000);
    let program = [Op::Read(mmio, 4), Op::Write(mmio, vec![1]), Op::Read(Space::Pio(PORT), 1)];
    let Some((_vm, vcpu)) = unbound(platform, &program) else { return };
    let mut vcpu = vcpu.bind().unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(mmio, false, &[0; 4]));
    vcpu.cancel();
    assert_eq!(vcpu.run(VmEntry::Reply(bytes(&[4, 3, 2, 1]))).unwrap(), VmExit::Kicked);
    let Regs::X86_64 { gprs, .. } = vcpu.get_regs().unwrap() else { panic!("not x86-64") };
    assert_eq!(gprs[X86Gpr::Rax as usize], 0x0102_0304);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(mmio, true, &[1]));
    vcpu.cancel();
    assert_eq!(vcpu.run(VmEntry::Done).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), false, &[0]));
}

/// An entry that is refused does not use the kick up.
pub fn a_refused_entry_keeps_the_kick<P: Platform>(platform: &P) {
    let Some((_vm, vcpu)) = unbound(platform, &[Op::Read(Space::Pio(PORT), 1)]) else { return };
    let mut vcpu = vcpu.bind().unwrap();
    vcpu.run(VmEntry::Resume).unwrap();
    vcpu.cancel();
    assert!(vcpu.run(VmEntry::Resume).is_err());
    assert_eq!(vcpu.run(VmEntry::Reply(bytes(&[1]))).unwrap(), VmExit::Kicked);
}

/// A kick in the middle of a string instruction neither skips nor repeats an element.
pub fn a_kick_leaves_a_string_whole<P: Platform>(platform: &P) {
    let count = 6;
    for kicked_at in 0..count {
        let elements: Vec<_> = (0..count as u8).map(|element| vec![element]).collect();
        let programs = [
            Op::ReadString { port: PORT, bytes: 1, count },
            Op::WriteString { port: PORT, elements: elements.clone() },
        ];
        for (write, op) in [false, true].into_iter().zip(programs) {
            let Some((_vm, vcpu)) = unbound(platform, &[op]) else { return };
            let mut vcpu = vcpu.bind().unwrap();
            let (mut entry, mut served, mut kicks) = (VmEntry::Resume, 0, 0);
            while served < count {
                let exit = vcpu.run(entry).unwrap();
                entry = answer(&exit);
                if exit == VmExit::Kicked {
                    kicks += 1;
                    continue;
                }
                let data = if write { served as u8 } else { 0 };
                assert_eq!(exit, access(Space::Pio(PORT), write, &[data]));
                if served == kicked_at {
                    vcpu.cancel();
                }
                served += 1;
            }
            if kicks == 0 {
                assert_eq!(vcpu.run(entry).unwrap(), VmExit::Kicked);
            }
            assert!(kicks <= 1);
        }
    }
}

/// `finish` completes the access and leaves the kick for the next run.
pub fn finish_keeps_the_kick<P: Platform>(platform: &P) {
    let program = [Op::Read(Space::Pio(PORT), 1), Op::Read(Space::Pio(PORT), 2)];
    let Some((_vm, vcpu)) = unbound(platform, &program) else { return };
    let mut vcpu = vcpu.bind().unwrap();
    vcpu.run(VmEntry::Resume).unwrap();
    vcpu.cancel();
    assert_eq!(vcpu.finish(VmEntry::Reply(bytes(&[1]))).unwrap(), None);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Kicked);
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), false, &[0; 2]));
}

/// In the guest, which never exits by itself.
pub fn while_the_guest_computes<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    sweep(platform, &[Op::Compute], 3000);
}

/// A guest that does nothing but exit: most kicks come between two entries.
pub fn while_the_guest_exits<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    sweep(platform, &[Op::ReadForEver(PORT)], 5000);
}

/// The vCPU waits for an interrupt inside the hypervisor.
pub fn while_the_guest_halts<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    sweep(platform, &[Op::Serve(PORT)], 1000);
}

/// At the moment of entry: the vCPU's thread announces each entry, the kicker kicks right then, with delays of 0 to 3 µs.
pub fn on_the_way_in<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    let Some((_vm, vcpu)) = unbound(platform, &[Op::Compute]) else { return };
    let handle = vcpu.kick_handle();
    let (entering, entries) = channel();
    let (report, kicked) = channel();
    const ROUNDS: u32 = 5000;
    thread::spawn(move || {
        let mut vcpu = vcpu.bind().unwrap();
        for _ in 0..ROUNDS {
            entering.send(()).unwrap();
            let exit = vcpu.run(VmEntry::Resume).unwrap();
            report.send(exit).unwrap();
        }
    });
    for round in 0..ROUNDS {
        entries.recv_timeout(DEADLINE).unwrap();
        spin(Duration::from_nanos(u64::from(round % 300) * 10));
        handle.kick();
        let exit = kicked.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("kick {round} is lost"));
        assert_eq!(exit, VmExit::Kicked);
    }
}

/// Four threads at once; after the last of their kicks at least one `Kicked` comes.
pub fn from_many_threads<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    let Some((_vm, vcpu)) = unbound(platform, &[Op::ReadForEver(PORT)]) else { return };
    let (handle, kicked, thread) = spawn(vcpu);
    for _ in 0..200 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| handle.kick()));
            }
        });
        kicked.recv_timeout(DEADLINE).expect("twenty kicks are lost");
        while kicked.recv_timeout(Duration::from_micros(200)).is_ok() {}
    }
    stop(&handle, kicked, thread);
}

/// The handle outlives vCPU, thread and VM, and then does nothing.
pub fn after_the_end<P: Platform>(platform: &P)
where
    Unbound<P>: 'static,
{
    let Some((vm, vcpu)) = unbound(platform, &[Op::Serve(PORT)]) else { return };
    let handle = vcpu.kick_handle();
    let again = handle.clone();
    thread::spawn(move || {
        let mut vcpu = vcpu.bind().unwrap();
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), access(Space::Pio(PORT), true, &[READY]));
    })
    .join()
    .unwrap();
    handle.kick();
    drop(vm);
    again.kick();
    handle.kick();
}
