//! The bare-metal guests of `tests/guests`, loaded by this crate and run by this machine's KVM.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness outside #[test] functions is still a test"
)]

#[path = "machine.rs"]
mod machine;

use cellblock_loader::Protocol;
use machine::{End, Guest, Outcome, file, kvm, run};

/// Runs `guest` in both variants: by the 64-bit protocol, and by PVH.
fn run_both(guest: &Guest<'_>, check: impl Fn(&Outcome)) {
    let Some(kvm) = kvm() else { return };
    let pvh = format!("{}-pvh", guest.name);
    for (name, protocol) in
        [(guest.name, Protocol::Auto), (pvh.as_str(), Protocol::Auto), (pvh.as_str(), Protocol::Linux64)]
    {
        let outcome = run(&kvm, &Guest { name, protocol, ..*guest });
        eprintln!("{name} by {protocol:?}: {:?}, first byte after {:?}", outcome.end, outcome.first_byte);
        assert!(!outcome.loaded.linux, "{name} is no Linux");
        check(&outcome);
    }
}

fn expect(name: &str, output: &str, end: End) {
    run_both(&Guest { name, ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), (output, &end));
    });
}

#[test]
fn hello_prints() {
    run_both(&Guest { name: "hello", until: Some("hello\n"), ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("hello\n", &End::Printed));
    });
}

#[test]
fn ends_are_told_apart() {
    expect("poweroff", "power off\n", End::PowerOff);
    expect("reset-acpi", "reset by acpi\n", End::Reset);
    expect("reset-i8042", "reset by i8042\n", End::Reset);
    expect("triple-fault", "triple fault\n", End::TripleFault);
}

/// Linux's way out where the command line names none: code at the reset vector does what the ACPI reset register does.
#[test]
fn a_jump_to_the_reset_vector_resets() {
    run_both(&Guest { name: "reset-bios", cpus: 2, ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("reset by bios\n", &End::Reset));
    });
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_an_internal_error() {
    run_both(&Guest { name: "bad-insn", ..Guest::default() }, |outcome| {
        assert_eq!(outcome.output, "bad instruction\n");
        assert!(matches!(&outcome.end, End::InternalError(_)), "{:?}", outcome.end);
    });
}

#[test]
fn interrupts_reach_the_guest() {
    run_both(&Guest { name: "irq", cmdline: "count=3", ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("ticks count=3\n", &End::PowerOff));
    });
    run_both(&Guest { name: "echo", input: b"abc\x04", ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("ready\nabc", &End::PowerOff));
    });
    run_both(&Guest { name: "powerbutton", press: true, ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("ready\nbutton\n", &End::PowerOff));
    });
}

/// A hardware-reduced board has no 8259: the one that KVM makes with its interrupt controllers must not reach a guest that leaves
/// LINT0 as it is at boot. (Linux gets away with it: it disables its local APIC first, which masks LINT0.)
#[test]
fn no_8259_interrupts_the_guest() {
    run_both(&Guest { name: "echo", cmdline: "lint0=1", input: b"abc\x04", ..Guest::default() }, |outcome| {
        assert_eq!((outcome.output.as_str(), &outcome.end), ("ready\nabc", &End::PowerOff));
    });
}

#[test]
fn the_guest_finds_every_cpu_in_the_madt_and_starts_it() {
    for cpus in [1, 2, 4] {
        let list: String = (0..cpus).map(|id| format!("cpu {id:02}\n")).collect();
        let output = format!("{list}cpus count={cpus}\n");
        run_both(&Guest { name: "smp", cpus, ..Guest::default() }, |outcome| {
            assert_eq!((outcome.output.as_str(), &outcome.end), (output.as_str(), &End::PowerOff));
        });
    }
}

#[test]
fn string_output_and_byte_output_print_the_same() {
    let flood = |cmdline| {
        let kvm = kvm()?;
        Some(run(&kvm, &Guest { name: "flood", cmdline, ..Guest::default() }).output)
    };
    let (Some(bytes), Some(strings)) = (flood("lines=20"), flood("lines=20 string=1")) else { return };
    assert_eq!(bytes, strings);
    assert!(bytes.lines().count() == 20 && bytes.contains("\n0000020 the quick"), "{bytes}");
}

#[test]
fn what_the_loader_wrote_is_what_the_guest_reads() {
    let initrd = file("initrd", &[2; 5000]);
    let guest =
        Guest { name: "cmdline", cmdline: "root=x a=0x10", initrd: Some(&initrd), ..Guest::default() };
    run_both(&guest, |outcome| {
        let text = &outcome.output;
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert!(
            text.starts_with("linux64: root=x a=0x10\n") || text.starts_with("pvh: root=x a=0x10\n"),
            "{text}"
        );
        let expected = [
            "initrd 0x0003ffe000 0x0000001388 kind=10000",
            "ram 0x0000000000 0x000009fc00 kind=1",
            "ram 0x000009fc00 0x0000060400 kind=2",
            "ram 0x0000100000 0x0003f00000 kind=1",
            "rsdp 0x00000e0000 0x0000000024 kind=0",
        ];
        assert_eq!(lines[..5], expected);
        if text.starts_with("linux64") {
            assert_eq!(lines[5], "seed 0x000001f000 0x0000000020 kind=9");
        }
    });
}

#[test]
fn the_rtc_and_exits_guests_end_well() {
    run_both(&Guest { name: "rtc", ..Guest::default() }, |outcome| {
        assert_eq!(outcome.end, End::PowerOff);
        assert!(outcome.output.starts_with("rtc 3209-08-07 04:02:00 weekday=06 a=26"), "{}", outcome.output);
    });
    // Between the two lines are samples, which are no text.
    run_both(&Guest { name: "exits", cmdline: "count=50 kinds=3", ..Guest::default() }, |outcome| {
        assert_eq!(outcome.end, End::PowerOff);
        assert!(outcome.output.starts_with("clock multiplier="), "{}", outcome.output);
        assert!(outcome.output.contains("load done="), "{}", outcome.output);
    });
}
