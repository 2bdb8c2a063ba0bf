//! The exit path asks the allocator for nothing.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cellblock_conformance::assembler::assemble;
use cellblock_conformance::platforms::{KvmPlatform, boot_state};
use cellblock_conformance::{Op, Space, bytes};
use cellblock_hypervisor::{UnboundVcpu as _, Vcpu as _, VmEntry, VmExit};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_exit_allocates_nothing() {
    let platform = match KvmPlatform::open() {
        Ok(platform) => platform,
        Err(why) => {
            eprintln!("SKIP: {why}");
            return;
        }
    };
    let mmio = Space::Mmio(0xd000_0000);
    let program = [
        Op::Read(mmio, 8),
        Op::Write(mmio, vec![1; 8]),
        Op::WriteString { port: 1, elements: vec![vec![1; 4]; 20] },
        Op::ReadForEver(0x3f8),
    ];
    let vm = platform.load(&assemble(&program), false);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.setup().set_boot_state(&boot_state()).unwrap();
    let mut vcpu = vcpu.bind().unwrap();
    let before = COUNT.get();
    assert!(before > 0, "the allocator is not counted");
    let (mut entry, mut kicks) = (VmEntry::Resume, 0);
    for round in 0..500 {
        if round % 50 == 0 {
            vcpu.cancel();
        }
        entry = match vcpu.run(entry).unwrap() {
            VmExit::Pio { write: false, data, .. } | VmExit::Mmio { write: false, data, .. } => {
                VmEntry::Reply(bytes(&data))
            }
            VmExit::Kicked => {
                kicks += 1;
                VmEntry::Resume
            }
            _ => VmEntry::Done,
        };
    }
    assert_eq!((COUNT.get() - before, kicks), (0, 10));
}
