//! The clock's behaviour.

use cellblock_sdk::device::{Access, Action, Clock, Device, Event, SECOND, Trigger};
use cellblock_sdk::state::{Encoder, StateError};

use crate::calendar::{DAY, Fields, RANGE};
use crate::spec::{ALARM_ANY, MEMORY_BYTES, UIP_NS, a, b, c, d, offset, period, register};
use crate::state::State;

/// The largest distance of the guest's time from the host's, in seconds: all of the calendar.
pub(crate) const OFFSET_LIMIT: u64 = (*RANGE.end() - *RANGE.start()) as u64;

/// An MC146818A that shows the host's time in UTC, moved by what the guest set.
///
/// Nothing ticks: time is looked up when it is asked for, and a timer is wanted only while an interrupt is enabled and
/// not pending. IRQF is a level on the chip and an edge on the line: it is pulsed when IRQF becomes set.
#[derive(Debug)]
pub struct Rtc<T, C> {
    trigger: T,
    clock: C,
    state: State,
}

impl<T: Trigger, C: Clock> Rtc<T, C> {
    /// A clock as PC firmware leaves it: BCD, 24 hours, no interrupts.
    pub fn new(trigger: T, clock: C) -> Self {
        let state = State { flags_seen: clock.wall(), ..State::default() };
        Rtc { trigger, clock, state }
    }

    /// The guest's time: seconds since 1970, and the ns in the second.
    fn now(&self) -> (i64, u64) {
        let wall = self.clock.wall();
        let second = wall.div_euclid(SECOND as i64);
        (second.saturating_add(self.state.offset), wall.rem_euclid(SECOND as i64) as u64)
    }

    /// What the time registers show: the running time, or the one being set.
    fn shown(&self) -> Fields {
        self.state.setting.unwrap_or_else(|| Fields::at(self.now().0))
    }

    fn read_data(&mut self) -> u8 {
        let index = self.state.index;
        if is_time(index) {
            return self.read_time(index);
        }
        match index {
            register::A => self.state.a | if self.updating() { a::UIP } else { 0 },
            register::B => self.state.b,
            register::C => self.read_flags(),
            register::D => d::VRT,
            _ => self.state.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_data(&mut self, value: u8) {
        let index = self.state.index;
        if is_time(index) {
            return self.write_time(index, value);
        }
        match index {
            register::A => {
                self.gather_flags();
                self.state.a = value & !a::UIP;
            }
            register::B => self.write_b(value),
            register::C | register::D => {}
            _ => {
                if let Some(byte) = self.state.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }

    fn updating(&self) -> bool {
        self.state.setting.is_none() && self.now().1 >= SECOND - UIP_NS
    }

    fn read_time(&self, index: u8) -> u8 {
        let shown = self.shown();
        match index {
            register::SECONDS => self.coded(shown.second),
            register::MINUTES => self.coded(shown.minute),
            register::HOURS => self.coded_hour(shown.hour),
            register::DAY_OF_WEEK => self.coded(shown.day_of_week()),
            register::DAY_OF_MONTH => self.coded(shown.day),
            register::MONTH => self.coded(shown.month),
            register::YEAR => self.coded((shown.year % 100) as u8),
            _ => self.coded((shown.year / 100) as u8),
        }
    }

    /// Sets one part of the time. A value out of its range is brought into it.
    fn write_time(&mut self, index: u8, value: u8) {
        let mut fields = self.shown();
        let plain = self.decoded(value);
        match index {
            register::SECONDS => fields.second = plain.min(59),
            register::MINUTES => fields.minute = plain.min(59),
            register::HOURS => fields.hour = self.decoded_hour(value),
            register::DAY_OF_MONTH => fields.day = plain.clamp(1, 31),
            register::MONTH => fields.month = plain.clamp(1, 12),
            register::YEAR => fields.year = fields.year / 100 * 100 + u16::from(plain.min(99)),
            register::CENTURY => fields.year = u16::from(plain.min(99)) * 100 + fields.year % 100,
            // The day of the week follows from the date.
            _ => {}
        }
        match &mut self.state.setting {
            Some(setting) => *setting = fields,
            None => self.set_to(fields),
        }
    }

    /// The guest's time goes on from `fields`.
    fn set_to(&mut self, fields: Fields) {
        self.gather_flags();
        self.state.offset = self.state.offset.saturating_add(fields.seconds().saturating_sub(self.now().0));
        let limit = OFFSET_LIMIT as i64;
        self.state.offset = self.state.offset.clamp(-limit, limit);
    }

    fn write_b(&mut self, value: u8) {
        self.gather_flags();
        let setting = value & b::SET != 0;
        match (setting, self.state.setting) {
            (true, None) => self.state.setting = Some(self.shown()),
            (false, Some(fields)) => {
                self.state.setting = None;
                self.set_to(fields);
            }
            _ => {}
        }
        // SET clears UIE ("Register B").
        self.state.b = if setting { value & !b::UIE } else { value };
        self.signal();
    }

    /// Register C: the flags, which reading clears.
    fn read_flags(&mut self) -> u8 {
        self.gather_flags();
        std::mem::take(&mut self.state.c)
    }

    /// Sets the flags of what has happened since they were looked at last.
    fn gather_flags(&mut self) {
        let (since, wall) = (self.state.flags_seen, self.clock.wall());
        self.state.flags_seen = wall;
        if self.next_period(since).is_some_and(|at| at <= wall) {
            self.state.c |= c::PF;
        }
        if self.next_update(since).is_some_and(|at| at <= wall) {
            self.state.c |= c::UF;
        }
        if self.next_alarm(since).is_some_and(|at| at <= wall) {
            self.state.c |= c::AF;
        }
    }

    /// Sets IRQF and pulses the line if an enabled flag is set and IRQF is not.
    fn signal(&mut self) {
        let raised = self.state.b & self.state.c & c::FLAGS != 0;
        if raised && self.state.c & c::IRQF == 0 {
            self.state.c |= c::IRQF;
            self.trigger.pulse();
        }
    }

    /// The first end of a period after `since`, both in ns of the host's wall time.
    fn next_period(&self, since: i64) -> Option<i64> {
        let period = period(self.state.a)? as i64;
        since.div_euclid(period).checked_add(1)?.checked_mul(period)
    }

    /// The first second's beginning after `since`.
    fn next_update(&self, since: i64) -> Option<i64> {
        let running = self.state.setting.is_none();
        let second = since.div_euclid(SECOND as i64).checked_add(1)?;
        if running { second.checked_mul(SECOND as i64) } else { None }
    }

    /// The first second after `since` that the alarm matches. It comes within a day, or never.
    fn next_alarm(&self, since: i64) -> Option<i64> {
        if self.state.setting.is_some() {
            return None;
        }
        let [second, minute, hour] = self.alarm();
        let first = since.div_euclid(SECOND as i64).saturating_add(self.state.offset).saturating_add(1);
        let of_day = first.rem_euclid(DAY) as u32;
        let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let same = |want: Option<u32>, at: u32| want.is_none_or(|want| want == at);
        let from = |want: Option<u32>, at: u32| want.unwrap_or(at);
        // The earliest match at or after h:m:s: the latest part that may stay as it is decides.
        let later_second = second.map_or(Some(s), |want| (want >= s).then_some(want));
        let candidate = if let (true, true, Some(s)) = (same(hour, h), same(minute, m), later_second) {
            Some((h, m, s))
        } else if let (true, Some(m)) = (same(hour, h), following(minute, m, 60)) {
            Some((h, m, from(second, 0)))
        } else {
            following(hour, h, 24).map(|h| (h, from(minute, 0), from(second, 0)))
        };
        // None today: the first of the next day.
        let (day, (h, m, s)) =
            candidate.map_or((1, (from(hour, 0), from(minute, 0), from(second, 0))), |found| (0, found));
        let legal = h < 24 && m < 60 && s < 60;
        let midnight = first.saturating_sub(of_day.into()).saturating_add(day * DAY);
        let at = midnight.saturating_add((h * 3600 + m * 60 + s).into()).saturating_sub(self.state.offset);
        legal.then(|| at.checked_mul(SECOND as i64)).flatten()
    }

    /// The alarm's second, minute and hour; `None` = any.
    fn alarm(&self) -> [Option<u32>; 3] {
        let byte = |index: u8| self.state.memory.get(usize::from(index)).copied().unwrap_or(ALARM_ANY);
        let [second, minute, hour] =
            [byte(register::SECONDS_ALARM), byte(register::MINUTES_ALARM), byte(register::HOURS_ALARM)];
        let plain = |value: u8| (value < ALARM_ANY).then(|| self.decoded(value).into());
        // In 12-hour mode bit 7 means PM; 0xc0 and up still match all.
        let hour = (hour < ALARM_ANY).then(|| self.decoded_alarm_hour(hour).into());
        [plain(second), plain(minute), hour]
    }

    fn coded(&self, value: u8) -> u8 {
        if self.state.b & b::DM != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decoded(&self, value: u8) -> u8 {
        if self.state.b & b::DM != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn coded_hour(&self, hour: u8) -> u8 {
        if self.state.b & b::HOURS_24 != 0 {
            return self.coded(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        afternoon | self.coded(if hour.is_multiple_of(12) { 12 } else { hour % 12 })
    }

    fn decoded_hour(&self, value: u8) -> u8 {
        self.decoded_alarm_hour(value).min(23)
    }

    fn decoded_alarm_hour(&self, value: u8) -> u8 {
        if self.state.b & b::HOURS_24 != 0 {
            return self.decoded(value);
        }
        let afternoon = if value & 0x80 != 0 { 12 } else { 0 };
        self.decoded(value & 0x7f) % 12 + afternoon
    }
}

/// The first value after `at` and below `end` that `want` allows.
fn following(want: Option<u32>, at: u32, end: u32) -> Option<u32> {
    let next = want.unwrap_or(at + 1);
    (next > at && next < end).then_some(next)
}

const fn is_time(index: u8) -> bool {
    matches!(
        index,
        register::SECONDS | register::MINUTES | register::HOURS | register::DAY_OF_WEEK
            ..=register::YEAR | register::CENTURY
    )
}

impl<T: Trigger, C: Clock> Device for Rtc<T, C> {
    fn read(&mut self, access: Access) -> u64 {
        access.read_bytes(|port| if port == offset::DATA { self.read_data() } else { 0xff })
    }

    fn write(&mut self, access: Access, data: u64) -> Action {
        access.write_bytes(data, |port, value| {
            match port {
                offset::INDEX => self.state.index = value % MEMORY_BYTES as u8,
                offset::DATA => self.write_data(value),
                _ => {}
            }
            Action::None
        })
    }

    fn event(&mut self, event: Event) {
        if event == Event::Timer {
            self.gather_flags();
            self.signal();
        }
    }

    /// The next enabled event, unless an interrupt is pending already.
    fn deadline(&self) -> Option<u64> {
        let enabled = |enable: u8| self.state.b & enable != 0 && self.state.c & c::IRQF == 0;
        if !enabled(b::PIE | b::AIE | b::UIE) {
            return None;
        }
        let since = self.state.flags_seen;
        let events = [
            enabled(b::PIE).then(|| self.next_period(since)),
            enabled(b::UIE).then(|| self.next_update(since)),
            enabled(b::AIE).then(|| self.next_alarm(since)),
        ];
        let first = events.into_iter().flatten().flatten().min()?;
        let ahead = first.saturating_sub(self.clock.wall()).max(0);
        Some(self.clock.monotonic().saturating_add(ahead.unsigned_abs()))
    }

    fn save(&self, out: &mut Encoder<'_>) {
        self.state.save(out);
    }

    /// An interrupt that is pending is told again: the predecessor may have died before it did.
    fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        self.state = State::restore(saved)?;
        if self.state.c & c::IRQF != 0 {
            self.trigger.pulse();
        }
        Ok(())
    }
}
