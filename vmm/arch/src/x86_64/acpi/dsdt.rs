//! The DSDT: which devices the board has, where, and how their interrupts look.
//!
//! All interrupts are edge-triggered, active high and exclusive (design §3). In ASL:
//!
//! ```text
//! Name (\_S5, Package () { 5, 0 })
//! Scope (\_SB) {
//!     Device (COM1) { PNP0501, ports 0x3f8-0x3ff, interrupt 4 }
//!     Device (RTC_) { PNP0B00, ports 0x70-0x71, interrupt 8 }
//!     Device (PWRB) { PNP0C0C }
//!     Device (GED_) { ACPI0013, interrupt 5, Method (_EVT, 1) { if the event status has bit 0 { Notify (PWRB, 0x80) } } }
//!     Device (Vnnn) { LNRO0005, registers, interrupt }   // for each virtio-mmio slot in use
//! }
//! ```
//!
//! The i8042 is not described: nothing is connected to it, and Linux would spend 55 accesses on finding that out. It is there for resets,
//! which need no description (`reboot=k`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::super::layout::{self, VirtioSlot};
use super::{DSDT_REVISION, table};

/// `SLP_TYP` that powers the machine off.
const SLEEP_TYPE_OFF: u8 = 5;
/// Notification that a power button was pressed (ACPI 6.5 §4.8.2.2.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// The table for a board with these virtio-mmio slots.
pub(super) fn build(slots: &[VirtioSlot]) -> Sdt {
    let mut body = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF, &ZERO])).to_aml_bytes(&mut body);
    let mut devices = Vec::new();
    serial(&mut devices);
    rtc(&mut devices);
    power_button(&mut devices);
    event_device(&mut devices);
    for slot in slots {
        virtio(slot, &mut devices);
    }
    body.extend(Scope::raw("\\_SB_".into(), devices));
    table(*b"DSDT", DSDT_REVISION, &body)
}

fn serial(out: &mut Vec<u8>) {
    let hid = EISAName::new("PNP0501");
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    device("COM1", &hid, &[&ports, &interrupt(layout::SERIAL_GSI)], out);
}

fn rtc(out: &mut Vec<u8>) {
    let hid = EISAName::new("PNP0B00");
    let ports = IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2);
    device("RTC_", &hid, &[&ports, &interrupt(layout::RTC_GSI)], out);
}

fn power_button(out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("PWRB".into(), vec![&hid]).to_aml_bytes(out);
}

/// The generic event device (ACPI 6.5 §5.6.9) turns its one interrupt into notifications, as the event status register says.
fn event_device(out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    let interrupt = interrupt(layout::POWER_GSI);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &layout::POWER_EVENT_PORT, &ONE);
    let status = Field::new(
        "EREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"ESTS", 8)],
    );
    // Read once: a read clears the register.
    let (events, bit, register, button) = (Local(0), Local(1), Path::new("ESTS"), Path::new("\\_SB_.PWRB"));
    let read = Store::new(&events, &register);
    let mask = And::new(&bit, &events, &ONE);
    let pressed = Equal::new(&bit, &ONE);
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let when_pressed = If::new(&pressed, vec![&notify]);
    let method = Method::new("_EVT".into(), 1, true, vec![&read, &mask, &when_pressed]);
    Device::new("GED_".into(), vec![&hid, &uid, &resources, &region, &status, &method]).to_aml_bytes(out);
}

/// A virtio-mmio device (Linux `drivers/virtio/virtio_mmio.c`, `virtio_mmio_acpi_match`).
fn virtio(slot: &VirtioSlot, out: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, slot.address as u32, layout::VIRTIO_SLOT_BYTES as u32);
    let interrupt = interrupt(slot.gsi);
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &slot.number);
    let coherent = Name::new("_CCA".into(), &ONE);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt]));
    let name = format!("V{:03}", slot.number);
    Device::new(name.as_str().into(), vec![&hid, &uid, &coherent, &resources]).to_aml_bytes(out);
}

/// A device with an EISA id, one of its kind, and its resources.
fn device(name: &str, hid: &EISAName, resources: &[&dyn Aml], out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &ZERO);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()));
    Device::new(name.into(), vec![&hid, &uid, &resources]).to_aml_bytes(out);
}

/// Consumer, edge-triggered, active high, exclusive.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
