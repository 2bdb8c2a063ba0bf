//! What of a transport survives its process.
//!
//! Not how far a queue got: that is the used ring's index, in guest memory.

use cellblock_wire::device::MAX_QUEUES;

use super::config::{MAX_WRITABLE, Space};
use super::queue::Layout;
use super::spec::status;
use super::transport::Identity;
use crate::state::{Decoder, Encoder, StateError};

const TAG: u8 = 0x56;
const VERSION: u8 = 3;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) status: u8,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
    /// A reset was asked for, and waits for requests in flight.
    pub(super) resetting: bool,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) layout: Layout,
    pub(super) ready: bool,
    /// It was made unready, and waits for its request in flight.
    pub(super) stopping: bool,
}

/// What a predecessor left.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) registers: Registers,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    /// Of the configuration space.
    pub(super) generation: u32,
    /// The bytes of the configuration space that the driver may write.
    pub(super) written: Vec<u8>,
    /// The device's own word.
    pub(super) kept: u64,
}

impl Registers {
    /// As after a reset, with `queues` queues of `queue_size`.
    pub(super) fn new(queues: u16, queue_size: u16) -> Self {
        let layout = Layout { size: queue_size, ..Layout::default() };
        let queue = QueueRegisters { layout, ready: false, stopping: false };
        Registers {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: vec![queue; queues.min(MAX_QUEUES).into()],
            resetting: false,
        }
    }

    /// Whether all of `bits` are set.
    pub(super) fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    /// Appends all fields, the interrupt's, those of the configuration space, and the device's own word: 45 bytes, those that the
    /// driver may write, and 28 for each queue. So the most are 509.
    pub(super) fn save(
        &self,
        (interrupt_status, needs_reset): (u32, bool),
        config: &Space,
        kept: u64,
        out: &mut Encoder<'_>,
    ) {
        out.head(TAG, VERSION);
        out.u8(self.status);
        out.u32(self.device_features_sel);
        out.u32(self.driver_features_sel);
        out.u64(self.driver_features);
        out.u32(self.queue_sel);
        out.bool(self.resetting);
        out.u32(interrupt_status);
        out.bool(needs_reset);
        let (generation, written, length) = config.saved();
        out.u32(generation);
        out.u8(length as u8);
        out.bytes(written.get(..length).unwrap_or_default());
        out.u64(kept);
        out.u8(self.queues.len() as u8);
        for QueueRegisters { layout, ready, stopping } in &self.queues {
            out.bytes(&layout.size.to_le_bytes());
            out.u64(layout.desc);
            out.u64(layout.driver);
            out.u64(layout.device);
            out.bool(*ready);
            out.bool(*stopping);
        }
    }

    /// What is in `saved` of a device like `identity`.
    ///
    /// # Errors
    /// Bytes that [`Registers::save`] never writes.
    pub(super) fn restore(saved: &[u8], identity: &Identity) -> Result<Restored, StateError> {
        let (queues, features) = (usize::from(identity.queues.min(MAX_QUEUES)), identity.features);
        const STATUS: u8 =
            status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;
        let mut fields = Decoder::new(saved, TAG, VERSION)?;
        let status = fields.u8_where("status", "bits 0 to 3 and 7", |value| value & !STATUS == 0)?;
        let device_features_sel = fields.u32("device_features_sel")?;
        let driver_features_sel = fields.u32("driver_features_sel")?;
        let driver_features = fields.u64("driver_features")?;
        if status & status::FEATURES_OK != 0 && driver_features & !features != 0 {
            let allowed = "what this device offers";
            return Err(StateError::Field { field: "driver_features", value: driver_features, allowed });
        }
        let queue_sel = fields.u32("queue_sel")?;
        let resetting = fields.bool("resetting")?;
        let interrupt_status = fields.u32("interrupt_status")? & 3;
        let needs_reset = fields.bool("needs_reset")?;
        let generation = fields.u32("config_generation")?;
        let length = identity.config.writable().min(MAX_WRITABLE);
        let allowed = "as many as the driver may write";
        fields.u8_where("config_written", allowed, |count| usize::from(count) == length)?;
        let written = (0..length).map(|_| fields.u8("config")).collect::<Result<_, _>>()?;
        let kept = fields.u64("kept")?;
        fields.u8_where("queues", "as many as this device has", |count| usize::from(count) == queues)?;
        let queues = (0..queues).map(|_| restore_queue(&mut fields)).collect::<Result<_, _>>()?;
        fields.end()?;
        let registers = Registers {
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues,
            resetting,
        };
        Ok(Restored { registers, interrupt_status, needs_reset, generation, written, kept })
    }
}

/// Nothing about a layout is checked here: that is done, against guest memory, when it is used.
fn restore_queue(fields: &mut Decoder<'_>) -> Result<QueueRegisters, StateError> {
    let layout = Layout {
        size: fields.bytes("queue.size").map(u16::from_le_bytes)?,
        desc: fields.u64("queue.desc")?,
        driver: fields.u64("queue.driver")?,
        device: fields.u64("queue.device")?,
    };
    Ok(QueueRegisters {
        layout,
        ready: fields.bool("queue.ready")?,
        stopping: fields.bool("queue.stopping")?,
    })
}
