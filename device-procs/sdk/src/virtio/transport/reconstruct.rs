//! A device that goes on from what its driver has written to the registers.

use cellblock_wire::device::{DriverQueue, DriverRegisters};

use super::Transport;
use crate::fail_point::{Step, reach};
use crate::state::StateError;
use crate::virtio::engine::Engine;
use crate::virtio::queue::Layout;
use crate::virtio::spec::status;
use crate::virtio::state::{Registers, Restored};

impl<E: Engine> Transport<E> {
    /// Takes the registers from `driver`, and what no driver writes from `saved`. If that is not there, what only the device knew
    /// is lost: if there was such a thing the device needs a reset, else the driver does not notice.
    pub(super) fn begin_from(
        &mut self,
        driver: &DriverRegisters,
        saved: Option<&[u8]>,
    ) -> Result<(), StateError> {
        let saved = saved.map(|saved| Registers::restore(saved, &self.identity)).transpose()?;
        let (mut needs_reset, mut changes) = (false, true);
        if let Some(saved) = &saved {
            self.kept.check(saved.kept)?;
            // A driver that is not there has reset the device, whether or not the one before got as far as that.
            let begun = driver.status & status::DRIVER_OK != 0;
            needs_reset = saved.needs_reset && begun;
            changes = self.take_the_rest(saved, begun);
        }
        self.replay(driver);
        reach(Step::RegistersRestored);
        if !self.registers.has(status::DRIVER_OK) || needs_reset {
            return Ok(());
        }
        if saved.is_none() && self.kept.is_used() {
            self.interrupt.lost();
            return Ok(());
        }
        self.start_all(self.going_on())?;
        // Either may have been raised for the last time by a predecessor.
        self.interrupt.used_buffer();
        self.restored = true;
        self.tell_changes(changes);
        Ok(())
    }

    /// Whether the driver has to look at the configuration space anew.
    fn take_the_rest(&mut self, saved: &Restored, begun: bool) -> bool {
        self.kept.restore(if begun { saved.kept } else { 0 });
        self.interrupt.restore(saved.interrupt_status, saved.needs_reset && begun);
        self.identity.config.restore(saved.generation, &saved.written)
    }

    /// Writes the registers once more, by the rules that hold for a driver; no queue is served yet.
    fn replay(&mut self, driver: &DriverRegisters) {
        let before_features = driver.status & !(status::FEATURES_OK | status::DRIVER_OK);
        self.advance(before_features);
        for (select, half) in [(0, driver.driver_features as u32), (1, (driver.driver_features >> 32) as u32)]
        {
            self.registers.driver_features_sel = select;
            self.accept_features(half);
        }
        self.advance(driver.status & !status::DRIVER_OK);
        if self.registers.has(status::FEATURES_OK) {
            for (own, written) in self.registers.queues.iter_mut().zip(&driver.queues) {
                own.layout = layout(written, own.layout.size);
                own.ready = written.ready;
            }
            self.registers.status |= driver.status & status::DRIVER_OK;
        }
        for (offset, byte) in &driver.config {
            self.identity.config.write(usize::from(*offset), &[*byte]);
        }
        self.registers.device_features_sel = driver.device_features_sel;
        self.registers.driver_features_sel = driver.driver_features_sel;
        self.registers.queue_sel = driver.queue_sel;
    }
}

/// A size that was not written is the largest, as after a reset; one that does not fit is as wrong as zero.
fn layout(written: &DriverQueue, largest: u16) -> Layout {
    let DriverQueue { size, desc, driver, device, .. } = *written;
    let size = if size == 0 { largest } else { u16::try_from(size).unwrap_or(0) };
    Layout { size, desc, driver, device }
}
