//! A real worker that commits what workers die of: it dies of that and nothing else, and its last words tell what it was. The
//! worker is this very program, started by another name.
#![no_main]
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)] // Crimes; tests.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use cellblock_channel::last_words::LastWords;
use cellblock_policy::{Arch, Section, compile_file};
use cellblock_ring::Access;
use cellblock_sdk::device::{self, Action, Device};
use cellblock_sdk::state::{Encoder, StateError};
use cellblock_sdk::testing::process::{Program, Supervised, Wanted, run_tests};
use cellblock_sdk::worker;
use cellblock_wire::control::FromWorker;
use cellblock_wire::device::{DeviceConfig, DeviceKind};
use cellblock_wire::slot::{Op, Space};

/// As the test starts workers.
const WORKER: &str = "worker";
/// What no mapping is at.
const WILD: u64 = 0x10;

/// What the device does when a byte is written.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Crime {
    RefusedCall,
    WildWrite,
    BadInstruction,
    ByAnotherThread,
    Panic,
    /// None: it is sent a signal.
    Victim,
}

cellblock_channel::c_main!(work_or_test());

fn work_or_test() -> i32 {
    if std::env::args().next().as_deref() == Some(WORKER) {
        return work();
    }
    run_tests(&[
        ("a_refused_call_is_told_by_its_number", a_refused_call_is_told_by_its_number),
        ("a_fault_is_told_by_its_address", a_fault_is_told_by_its_address),
        ("a_signal_that_was_sent_is_told_as_such", a_signal_that_was_sent_is_told_as_such),
        ("who_is_killed_says_nothing", who_is_killed_says_nothing),
        ("a_bug_is_told_by_its_place", a_bug_is_told_by_its_place),
    ])
}

struct Criminal;

impl Device for Criminal {
    fn read(&mut self, _: device::Access) -> u64 {
        0
    }

    fn write(&mut self, _: device::Access, data: u64) -> Action {
        match data {
            data if data == Crime::RefusedCall as u64 => refused_call(),
            data if data == Crime::WildWrite as u64 => wild_write(),
            data if data == Crime::BadInstruction as u64 => bad_instruction(),
            data if data == Crime::ByAnotherThread as u64 => {
                OTHER.get().unwrap().unpark();
            }
            data if data == Crime::Panic as u64 => panic!("a device's bug"),
            _ => {}
        }
        Action::None
    }

    fn save(&self, out: &mut Encoder<'_>) {
        out.head(1, 1);
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

static OTHER: std::sync::OnceLock<std::thread::Thread> = std::sync::OnceLock::new();

fn refused_call() {
    // SAFETY: harmless where it is allowed.
    unsafe { libc::syscall(libc::SYS_getppid, 1, 2, 3) };
}

fn wild_write() {
    // SAFETY: not at all; it is to fault.
    unsafe { std::ptr::without_provenance_mut::<u8>(WILD as usize).write_volatile(1) };
}

fn bad_instruction() {
    // SAFETY: traps.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("ud2")
    };
    // SAFETY: traps.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("udf #0")
    };
}

/// The worker, under what every virtio worker may do: it has a second thread.
fn work() -> i32 {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policy");
    let policy = policies.join(std::env::consts::ARCH).join("virtio.policy");
    let program =
        compile_file(&policy, Arch::named(std::env::consts::ARCH).unwrap(), Section::Serve).unwrap();
    worker::run(DeviceKind::Rtc, &program, |parts| {
        parts.interrupt(0);
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            OTHER.set(std::thread::current()).unwrap();
            started.send(()).unwrap();
            std::thread::park();
            wild_write();
        });
        wait.recv().unwrap();
        Ok(Criminal)
    })
}

/// A worker that commits `crime`, and how it ended.
fn committed(crime: Crime, then: impl FnOnce(&Supervised)) -> (ExitStatus, Option<LastWords>) {
    let program = Program::own(&std::env::current_exe().unwrap());
    let config = DeviceConfig::Rtc;
    let wanted = Wanted { config, lanes: 1, poll_max_us: 0, pipes: false, nonblocking: false };
    let mut worker = Supervised::start(&program, &wanted).unwrap();
    let data = crime as u64;
    worker.post(0, &Access { space: Space::Pio, op: Op::Write, size: 1, region: 0, offset: 0, data });
    then(&worker);
    (worker.ended().unwrap(), worker.last_words())
}

fn a_refused_call_is_told_by_its_number() {
    let (status, words) = committed(Crime::RefusedCall, |_| {});
    assert_eq!(status.signal(), Some(libc::SIGSYS), "it dies of it: {status}");
    let words = words.unwrap();
    assert_eq!((words.signal, words.call), (libc::SIGSYS as u32, Some(libc::SYS_getppid as u32)));
    assert!(words.code > 0, "{words:?}");
}

fn a_fault_is_told_by_its_address() {
    for (crime, signal) in [
        (Crime::WildWrite, libc::SIGSEGV),
        (Crime::ByAnotherThread, libc::SIGSEGV),
        (Crime::BadInstruction, libc::SIGILL),
    ] {
        let (status, words) = committed(crime, |_| {});
        assert_eq!(status.signal(), Some(signal), "{status}");
        let words = words.unwrap();
        assert_eq!((words.signal, words.call), (signal as u32, None));
        if signal == libc::SIGSEGV {
            assert_eq!(words.address, WILD);
        }
        // Code of this program, whose image is some MiB long, and not of a library.
        let own = std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len();
        assert!(words.instruction > 0 && words.instruction < own, "{words:?}");
    }
}

fn a_signal_that_was_sent_is_told_as_such() {
    let send = |worker: &Supervised| {
        // SAFETY: takes numbers.
        unsafe { libc::kill(worker.pid() as i32, libc::SIGSEGV) };
    };
    let (status, words) = committed(Crime::Victim, send);
    assert_eq!(status.code(), Some(128 + libc::SIGSEGV), "{status}");
    let words = words.unwrap();
    assert!(words.signal == libc::SIGSEGV as u32 && words.code <= 0, "{words:?}");
}

fn who_is_killed_says_nothing() {
    let kill = |worker: &Supervised| {
        // SAFETY: takes numbers.
        unsafe { libc::kill(worker.pid() as i32, libc::SIGKILL) };
    };
    let (status, words) = committed(Crime::Victim, kill);
    assert_eq!((status.signal(), words), (Some(libc::SIGKILL), None));
}

/// Under the program that it serves under.
fn a_bug_is_told_by_its_place() {
    let mut told = None;
    let (status, words) = committed(Crime::Panic, |worker| told = Some(worker.message()));
    let Some(Ok(FromWorker::Log { text, .. })) = told else {
        panic!("it told {told:?}, and ended with {status}")
    };
    assert!(text.contains("a device's bug") && text.contains(file!()), "{text}");
    assert_eq!((status.code(), words), (Some(worker::status::PANICKED), None));
}
