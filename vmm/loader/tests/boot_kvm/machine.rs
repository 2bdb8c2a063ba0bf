//! The least machine that a bare-metal guest runs on: KVM, this crate's output, and its ports served in this process.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use cellblock_arch::{AcpiConfig, boot_state, cpuid, layout, msrs};
use cellblock_hypervisor::{ExitData, KickHandle, UnboundVcpu, Vcpu, VmEntry, VmExit};
use cellblock_hypervisor_kvm::{Kvm, KvmVm};
use cellblock_loader::{LoadRequest, Loaded, Protocol, load};
use cellblock_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;

/// A guest that has not ended by then hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reset,
    TripleFault,
    InternalError(String),
    /// It printed what [`Guest::until`] says.
    Printed,
    Hung,
}

/// What to run.
#[derive(Default)]
pub(crate) struct Guest<'a> {
    pub(crate) name: &'a str,
    pub(crate) cmdline: &'a str,
    pub(crate) protocol: Protocol,
    pub(crate) cpus: u32,
    pub(crate) initrd: Option<&'a Path>,
    /// Ends the run when the output ends with this.
    pub(crate) until: Option<&'a str>,
    /// Serial input once the guest has printed `ready`.
    pub(crate) input: &'a [u8],
    /// Press the power button once the guest has printed `ready`.
    pub(crate) press: bool,
}

pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) output: String,
    pub(crate) loaded: Loaded,
    /// From the first entry to the first byte on the serial port.
    pub(crate) first_byte: Option<Duration>,
}

/// `/dev/kvm`, or a line that says why not.
pub(crate) fn kvm() -> Option<Kvm> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(Kvm::open(file.into()).expect("/dev/kvm is not KVM")),
        Err(error) => {
            eprintln!("SKIP: /dev/kvm cannot be opened: {error}");
            None
        }
    }
}

/// The folder with the built guests.
pub(crate) fn guests() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/build");
        let status = Command::new(script).arg(&out).status().expect("tests/guests/build cannot run");
        assert!(status.success(), "tests/guests/build failed");
        out
    })
}

/// Runs `guest` to its end.
pub(crate) fn run(kvm: &Kvm, guest: &Guest<'_>) -> Outcome {
    let ram = GuestRam::create(64 << 20, false).unwrap();
    let mut kernel = File::open(guests().join(guest.name)).unwrap();
    let mut initrd = guest.initrd.map(|path| File::open(path).unwrap());
    let cpus = guest.cpus.max(1);
    let request = LoadRequest {
        kernel: &mut kernel,
        initrd: initrd.as_mut(),
        cmdline: guest.cmdline,
        protocol: guest.protocol,
        rng_seed: [3; 32],
        acpi: AcpiConfig { cpus, virtio_slots: vec![] },
    };
    let loaded = load(&ram.map().unwrap(), request).unwrap();
    loaded.check(ram.bytes()).unwrap();
    let vm = kvm.create_vm(&ram).unwrap();
    let board = Arc::new(Mutex::new(Board::new(guest, &vm)));
    let supported = kvm.supported_cpuid().unwrap();
    let vcpus: Vec<_> = (0..cpus)
        .map(|id| {
            let vcpu = vm.create_vcpu(id).unwrap();
            vcpu.setup().set_cpuid(&cpuid::for_vcpu(&supported, id, cpus)).unwrap();
            vcpu.setup().set_msrs(&msrs::at_reset()).unwrap();
            vcpu.setup().set_lapic_pins().unwrap();
            if id == 0 {
                vcpu.setup().set_boot_state(&boot_state(&loaded.entry).unwrap()).unwrap();
            }
            vcpu
        })
        .collect();
    board.lock().unwrap().kicks = vcpus.iter().map(UnboundVcpu::kick_handle).collect();
    let threads: Vec<_> = vcpus
        .into_iter()
        .map(|vcpu| {
            let board = board.clone();
            thread::spawn(move || run_vcpu(vcpu.bind().unwrap(), &board))
        })
        .collect();
    watch(&board);
    for thread in threads {
        thread.join().unwrap();
    }
    let board = board.lock().unwrap();
    Outcome {
        end: board.end.clone().unwrap(),
        output: String::from_utf8_lossy(&board.output).into_owned(),
        loaded,
        first_byte: board.first_byte,
    }
}

fn watch(board: &Mutex<Board>) {
    let start = Instant::now();
    while board.lock().unwrap().end.is_none() {
        if start.elapsed() > DEADLINE {
            board.lock().unwrap().finish(End::Hung);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn run_vcpu(mut vcpu: impl Vcpu, board: &Mutex<Board>) {
    let mut entry = VmEntry::Resume;
    loop {
        let exit = vcpu.run(entry).unwrap();
        let mut board = board.lock().unwrap();
        entry = board.answer(exit);
        if board.end.is_some() {
            return;
        }
    }
}

/// The devices, and what became of the guest.
struct Board {
    output: Vec<u8>,
    input: VecDeque<u8>,
    until: Vec<u8>,
    press: bool,
    events: u8,
    cmos_index: u8,
    serial_line: EventFd,
    power_line: EventFd,
    kicks: Vec<KickHandle>,
    end: Option<End>,
    start: Instant,
    first_byte: Option<Duration>,
}

impl Board {
    fn new(guest: &Guest<'_>, vm: &KvmVm) -> Self {
        let line = |gsi| {
            let event = EventFd::new(0).unwrap();
            let raw = event.as_raw_fd();
            vm.irqfd(borrow(&event, raw), gsi).unwrap();
            event
        };
        Self {
            output: Vec::new(),
            input: guest.input.iter().copied().collect(),
            until: guest.until.unwrap_or_default().into(),
            press: guest.press,
            events: 0,
            cmos_index: 0,
            serial_line: line(layout::SERIAL_GSI),
            power_line: line(layout::POWER_GSI),
            kicks: Vec::new(),
            end: None,
            start: Instant::now(),
            first_byte: None,
        }
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        for kick in &self.kicks {
            kick.kick();
        }
    }

    fn answer(&mut self, exit: VmExit) -> VmEntry {
        match exit {
            VmExit::Pio { port, write: true, data } => {
                self.out(port, data[0]);
                VmEntry::Done
            }
            VmExit::Pio { port, write: false, data } => {
                let mut reply = ExitData::from_elem(0xff, data.len());
                reply[0] = self.input(port);
                VmEntry::Reply(reply)
            }
            VmExit::Mmio { write: true, .. } => VmEntry::Done,
            VmExit::Mmio { write: false, data, .. } => VmEntry::Reply(ExitData::from_elem(0xff, data.len())),
            VmExit::Kicked => VmEntry::Resume,
            VmExit::TripleFault => self.ended(End::TripleFault),
            VmExit::InternalError(text) => self.ended(End::InternalError(text)),
            other => panic!("unexpected exit {other:?}"),
        }
    }

    fn ended(&mut self, end: End) -> VmEntry {
        self.finish(end);
        VmEntry::Resume
    }

    fn out(&mut self, port: u16, value: u8) {
        match (port, value) {
            (layout::SERIAL_PORT, byte) => self.print(byte),
            (layout::POWER_PORT, 0x34) => self.finish(End::PowerOff),
            (layout::POWER_RESET_PORT, layout::POWER_RESET_VALUE) => self.finish(End::Reset),
            (layout::I8042_COMMAND_PORT, 0xfe) => self.finish(End::Reset),
            (layout::RTC_PORT, index) => self.cmos_index = index,
            _ => {}
        }
    }

    fn input(&mut self, port: u16) -> u8 {
        const LINE_STATUS: u16 = layout::SERIAL_PORT + 5;
        const RTC_DATA: u16 = layout::RTC_PORT + 1;
        match port {
            layout::SERIAL_PORT => self.input.pop_front().unwrap_or(0),
            LINE_STATUS => 0x60 | u8::from(!self.input.is_empty()),
            RTC_DATA if self.cmos_index == 0x0a => 0x26,
            RTC_DATA => self.cmos_index,
            layout::POWER_EVENT_PORT => std::mem::take(&mut self.events),
            _ => 0xff,
        }
    }

    fn print(&mut self, byte: u8) {
        self.first_byte.get_or_insert_with(|| self.start.elapsed());
        self.output.push(byte);
        if self.output.ends_with(b"ready\n") {
            if !self.input.is_empty() {
                self.serial_line.write(1).unwrap();
            }
            if self.press {
                self.events = 1;
                self.power_line.write(1).unwrap();
            }
        }
        if !self.until.is_empty() && self.output.ends_with(&self.until) {
            self.finish(End::Printed);
        }
    }
}

/// `vmm-sys-util`'s `EventFd` does not implement `AsFd`.
#[allow(unsafe_code)]
fn borrow(_owner: &EventFd, raw: i32) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as its owner lives, which the lifetime says.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

/// A file of these bytes that outlives the test.
pub(crate) fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    path
}
