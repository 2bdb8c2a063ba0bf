//! Hardware-reduced ACPI (ACPI 6.5 §4.1): no PM timer, no SCI, no fixed power button, no PIT and no PIC behind it.
//!
//! RSDP, XSDT, FADT, MADT and DSDT in one blob at [`layout::ACPI`], the RSDP first.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout;
use crate::boot::{AcpiConfig, Error, MAX_CPUS, Piece};

const OEM: [u8; 6] = *b"CELBLK";
const OEM_TABLE: [u8; 8] = *b"CELLBLOC";
const OEM_REVISION: u32 = 1;
/// DSDT revision: 2 and later makes AML integers 64 bits wide.
const DSDT_REVISION: u8 = 2;
/// MADT revision of ACPI 6.3 and later.
const MADT_REVISION: u8 = 5;
/// Bytes of the header that all tables but the RSDP begin with.
const TABLE_HEADER: u32 = 36;
/// Local APIC NMI structure (ACPI 6.5 §5.2.12.7): type 4, length 6, all processors, polarity and trigger of the bus, LINT1.
const LOCAL_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];
/// Tables start at multiples of this.
const ALIGNMENT: usize = 16;

/// IAPC_BOOT_ARCH (ACPI 6.5 §5.2.9.3): there are devices on the ISA bus; no i8042 to look for (bit 1 clear: ours only resets); no VGA,
/// no PCIe ASPM; a CMOS RTC (bit 5 clear).
const BOOT_ARCH: u16 = 1 | 1 << 2 | 1 << 4;

/// All tables for `config`, to be put at [`layout::ACPI`], where the RSDP begins.
///
/// # Errors
/// [`Error::Cpus`], [`Error::VirtioSlot`]: a value of `config` that the board does not have.
pub fn build(config: &AcpiConfig) -> Result<Piece, Error> {
    if config.cpus == 0 || config.cpus > MAX_CPUS {
        return Err(Error::Cpus { value: config.cpus });
    }
    let slots = virtio_slots(&config.virtio_slots)?;
    let mut blob = Blob { bytes: vec![0; Rsdp::len()] };
    let dsdt = blob.append(&dsdt::build(&slots));
    let fadt = blob.append(&fadt(dsdt));
    let madt = blob.append(&madt(config.cpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = blob.append(&xsdt);
    blob.set_start(&Rsdp::new(OEM, xsdt));
    if blob.bytes.len() > layout::ACPI_BYTES {
        return Err(Error::TooBig {
            what: "ACPI tables",
            bytes: blob.bytes.len(),
            limit: layout::ACPI_BYTES,
        });
    }
    Ok(Piece { address: layout::ACPI, bytes: blob.bytes })
}

/// The slots of these numbers, each at most once.
fn virtio_slots(numbers: &[u32]) -> Result<Vec<layout::VirtioSlot>, Error> {
    let mut used = [false; layout::VIRTIO_SLOTS as usize];
    let mut slots = Vec::new();
    for number in numbers {
        let error = Error::VirtioSlot { slot: *number, last: layout::VIRTIO_SLOTS - 1 };
        match (layout::virtio_slot(*number), used.get_mut(*number as usize)) {
            (Some(slot), Some(used)) if !*used => {
                *used = true;
                slots.push(slot);
            }
            _ => return Err(error),
        }
    }
    Ok(slots)
}

/// Tables one after another from [`layout::ACPI`] on.
struct Blob {
    bytes: Vec<u8>,
}

impl Blob {
    /// Adds a table and says at which guest-physical address it is.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = layout::ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    fn set_start(&mut self, table: &dyn Aml) {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.bytes[..bytes.len()].copy_from_slice(&bytes);
    }
}

/// FADT (ACPI 6.5 §5.2.9) with the registers of power-off (§4.8.3.7) and reset (§4.8.3.6).
fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // "1": no fixed power and sleep button; the power button is a device in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        // The caches are coherent and WBINVD works: Linux insists on it.
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::POWER_RESET_PORT);
    fadt.reset_value = layout::POWER_RESET_VALUE;
    fadt.sleep_control_reg = port(layout::POWER_PORT);
    fadt.sleep_status_reg = port(layout::POWER_STATUS_PORT);
    fadt.finalize()
}

/// A register of one byte in I/O space.
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

/// MADT (ACPI 6.5 §5.2.12). Its flags stay 0: there is no pair of 8259s (PCAT_COMPAT clear). Interrupts below 16 need no source
/// override: without one they are edge-triggered and active high, which is what the board has.
fn madt(cpus: u32) -> Sdt {
    let mut body = Vec::new();
    body.extend(layout::LOCAL_APIC.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    for id in 0..cpus.min(MAX_CPUS) as u8 {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    // KVM's I/O APIC has id 0 at reset.
    IoApic::new(0, layout::IO_APIC, 0).to_aml_bytes(&mut body);
    body.extend(LOCAL_NMI);
    table(*b"APIC", MADT_REVISION, &body)
}

/// A table with its body.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, TABLE_HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

#[cfg(test)]
mod tests;
