//! The keyboard controller's behaviour.

use cellblock_sdk::device::{Access, Action, Device, Event, Trigger};
use cellblock_sdk::state::{Encoder, StateError};

use crate::spec::{answer, command, config, output, region, status};
use crate::state::{State, Waiting};

/// A controller whose keyboard connector is empty.
///
/// Every command that has an answer gets it at once, for a driver polls up to half a second for one. A byte for the
/// keyboard is answered as the controller does when nobody takes it: 0xfe with the timeout flag, so that a driver's probe
/// fails quickly. There is no second port: its test says that the line is stuck.
#[derive(Debug)]
pub struct I8042<T> {
    trigger: T,
    state: State,
}

impl<T: Trigger> I8042<T> {
    /// The controller after power-on and firmware.
    pub fn new(trigger: T) -> Self {
        I8042 { trigger, state: State::default() }
    }

    fn read_status(&self) -> u8 {
        let waiting = self.state.waiting.map_or(0, |waiting| status::OBF | waiting.flags);
        let written = if self.state.after_command { status::COMMAND } else { 0 };
        waiting | written | status::UNLOCKED | (self.state.config & config::SYSTEM_FLAG)
    }

    fn read_data(&mut self) -> u8 {
        if let Some(waiting) = self.state.waiting.take() {
            self.state.last = waiting.byte;
        }
        self.state.last
    }

    fn write_command(&mut self, value: u8) -> Action {
        self.state.after_command = true;
        self.state.expects = None;
        let config = &mut self.state.config;
        match value {
            command::AUXILIARY_OFF => *config |= config::AUXILIARY_OFF,
            command::AUXILIARY_ON => *config &= !config::AUXILIARY_OFF,
            command::KEYBOARD_OFF => *config |= config::KEYBOARD_OFF,
            command::KEYBOARD_ON => *config &= !config::KEYBOARD_OFF,
            command::AUXILIARY_TEST => self.put(answer::CLOCK_STUCK_LOW, 0),
            command::KEYBOARD_TEST => self.put(answer::LINES_GOOD, 0),
            command::SELF_TEST => {
                *config = config::DEFAULT | config::KEYBOARD_OFF;
                self.put(answer::SELF_TEST_PASSED, 0);
            }
            command::READ_INPUT => self.put(answer::INPUT_PORT, 0),
            command::READ_OUTPUT => self.put(self.state.output, 0),
            command::READ_MEMORY..0x40 => self.put(self.state.memory(value), 0),
            command::WRITE_MEMORY..0x80 | command::WRITE_OUTPUT..=command::TO_AUXILIARY => {
                self.state.expects = Some(value);
            }
            command::PULSE.. if value & output::NOT_RESET == 0 => return Action::Reset,
            _ => {}
        }
        Action::None
    }

    fn write_data(&mut self, value: u8) -> Action {
        self.state.after_command = false;
        match self.state.expects.take() {
            None => {
                // Writing to the keyboard switches its clock on.
                self.state.config &= !config::KEYBOARD_OFF;
                self.put(answer::NO_DEVICE, status::TIMEOUT);
            }
            Some(command::WRITE_OUTPUT) => {
                self.state.output = value | output::NOT_RESET;
                if value & output::NOT_RESET == 0 {
                    return Action::Reset;
                }
            }
            Some(command::LOOP_KEYBOARD) => self.put(value, 0),
            // Without the flag of the second port: there is none, and a driver that looks for it learns so here.
            Some(command::LOOP_AUXILIARY) => self.put(value, 0),
            Some(command::TO_AUXILIARY) => self.put(answer::NO_DEVICE, status::TIMEOUT | status::AUXILIARY),
            Some(write) => self.state.set_memory(write, value),
        }
        Action::None
    }

    /// Fills the output buffer; a byte that was not read is lost, as on the chip. The interrupt line follows OBF.
    fn put(&mut self, byte: u8, flags: u8) {
        self.state.waiting = Some(Waiting { byte, flags });
        self.tell();
    }

    fn tell(&mut self) {
        let keyboard = self.state.waiting.is_some_and(|waiting| waiting.flags & status::AUXILIARY == 0);
        if keyboard && self.state.config & config::KEYBOARD_INTERRUPT != 0 {
            self.trigger.pulse();
        }
    }
}

impl<T: Trigger> Device for I8042<T> {
    fn read(&mut self, access: Access) -> u64 {
        access.read_bytes(|port| match (access.region, port) {
            (region::DATA, 0) => self.read_data(),
            (region::COMMAND, 0) => self.read_status(),
            _ => 0xff,
        })
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        access.write_bytes(data, |port, value| match (access.region, port) {
            (region::DATA, 0) => self.write_data(value),
            (region::COMMAND, 0) => self.write_command(value),
            _ => Action::None,
        })
    }

    fn event(&mut self, _event: Event) {}

    fn save(&self, out: &mut Encoder<'_>) {
        self.state.save(out);
    }

    /// The interrupt of a byte that waits is raised again.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        self.state = State::restore(saved)?;
        self.tell();
        Ok(())
    }
}
