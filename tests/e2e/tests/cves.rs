//! Escapes that other monitors had, by code that a guest gets to run in a device: a worker takes its place, and gets nowhere. Those that
//! are no matter of code are in `device-procs/block/tests/cves.rs` and `vmm/cellblock/src/front/paths.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use cellblock_e2e::User;
use cellblock_e2e::hostile_workers::{infiltrate, judge, lab};

/// Whoever runs code in the worker of `device` gets nothing beside what that was granted, and its VM and the supervisor go on.
fn contained(device: &str) {
    let Some(lab) = lab(device) else { return };
    if !lab.places().workers().iter().any(|worker| worker == device) {
        return cellblock_e2e::skip(&format!("there is no {device} here"));
    }
    infiltrate(&lab, device, device);
    judge(&lab, &User::Own, true, &[(device.to_owned(), device.to_owned())]);
}

/// A floppy controller's FIFO overflowed by its commands: our board has no floppy; of its kind, port I/O with state, is the keyboard controller.
#[test]
fn cve_2015_3456_a_port_device_that_is_overrun_is_contained() {
    contained("i8042");
}

/// A USB device's setup buffer read and written beyond its end: messages whose length the guest tells, as a console's control queue has.
#[test]
fn cve_2020_14364_a_device_of_messages_that_is_overrun_is_contained() {
    contained("console");
}

/// slirp's reassembly of packets overflowed its heap: user-mode networking is passt's, behind a socket, and packets are the net worker's.
/// QEMU's network device used memory after it had given it back, at a buffer that the guest made odd.
#[test]
fn cve_2019_14378_cve_2021_3748_a_network_that_is_overrun_is_contained() {
    contained("net");
}

/// Firecracker's vsock read and wrote beyond guest memory.
#[test]
fn cve_2019_18960_a_socket_device_that_is_overrun_is_contained() {
    contained("vsock");
}

/// QEMU's disk overrun by its requests; Cloud Hypervisor's, likewise.
#[test]
fn cve_2026_48914_cve_2026_45782_a_disk_that_is_overrun_is_contained() {
    contained("block");
}
