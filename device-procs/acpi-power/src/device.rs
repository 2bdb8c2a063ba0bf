//! The power registers' behaviour.

use cellblock_sdk::device::{Access, Action, Clock, Device, Event, Trigger};
use cellblock_sdk::state::{Encoder, StateError};

use crate::spec::{REPEAT_NS, REPEATS, RESET_VALUE, event, offset, sleep_control};
use crate::state::State;

/// Sleep, reset and power-button registers.
///
/// A press of the power button is kept until the guest reads it, and its interrupt repeated until then: an edge that comes
/// before the guest has a driver for it is gone.
#[derive(Debug)]
pub struct AcpiPower<T, C> {
    trigger: T,
    clock: C,
    state: State,
}

impl<T: Trigger, C: Clock> AcpiPower<T, C> {
    /// The registers after power-on.
    pub fn new(trigger: T, clock: C) -> Self {
        AcpiPower { trigger, clock, state: State::default() }
    }

    fn read_register(&mut self, register: u64) -> u8 {
        match register {
            offset::SLEEP_CONTROL => self.state.sleep_type,
            offset::SLEEP_STATUS | offset::RESET => 0,
            offset::EVENT_STATUS => self.take_events(),
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) -> Action {
        match register {
            offset::SLEEP_CONTROL => self.control_sleep(value),
            offset::RESET if value == RESET_VALUE => Action::Reset,
            _ => Action::None,
        }
    }

    fn control_sleep(&mut self, value: u8) -> Action {
        self.state.sleep_type = value & sleep_control::SLP_TYP_MASK;
        let wanted = self.state.sleep_type >> sleep_control::SLP_TYP_SHIFT;
        let off = value & sleep_control::SLP_EN != 0 && wanted == sleep_control::S5;
        if off { Action::PowerOff } else { Action::None }
    }

    fn take_events(&mut self) -> u8 {
        self.state.repeat_at = None;
        std::mem::take(&mut self.state.events)
    }

    fn press(&mut self) {
        self.state.events |= event::POWER_BUTTON;
        self.state.repeats = 0;
        self.raise();
    }

    fn raise(&mut self) {
        self.trigger.pulse();
        let again = self.state.repeats < REPEATS;
        self.state.repeat_at = again.then(|| self.clock.monotonic().saturating_add(REPEAT_NS));
    }

    fn repeat(&mut self) {
        if self.state.repeat_at.is_some_and(|at| at <= self.clock.monotonic()) {
            // A state that was taken over may say that there is one more to come after the last.
            self.state.repeats = self.state.repeats.saturating_add(1).min(REPEATS);
            self.raise();
        }
    }
}

impl<T: Trigger, C: Clock> Device for AcpiPower<T, C> {
    fn read(&mut self, access: Access) -> u64 {
        access.read_bytes(|register| if access.region == 0 { self.read_register(register) } else { 0xff })
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        access.write_bytes(data, |register, value| {
            if access.region == 0 { self.write_register(register, value) } else { Action::None }
        })
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::PowerButton => self.press(),
            Event::Timer => self.repeat(),
            _ => {}
        }
    }

    fn deadline(&self) -> Option<u64> {
        self.state.repeat_at
    }

    fn save(&self, out: &mut Encoder<'_>) {
        self.state.save(out);
    }

    /// A press that was not read is told again.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        self.state = State::restore(saved)?;
        if self.state.events != 0 {
            self.trigger.pulse();
        }
        Ok(())
    }
}
