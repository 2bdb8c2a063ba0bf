//! Dates of the proleptic Gregorian calendar, UTC, without leap seconds.

/// A moment, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// Seconds in a day.
pub const DAY: i64 = 86_400;
/// 0000-01-01 and 9999-12-31 23:59:59, as seconds since 1970: what the registers can show.
pub const RANGE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// Days from 1970-01-01 to `year`-`month`-`day`. Days past the month's end run on into the next.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years are counted from March, so that the leap day is a year's last; 400 of them are an era of 146,097 days.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl Fields {
    /// Seconds since 1970.
    pub fn seconds(&self) -> i64 {
        let days = days(self.year.into(), self.month.into(), self.day.into());
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// The moment `seconds` after 1970, which is brought into [`RANGE`].
    pub fn at(seconds: i64) -> Fields {
        let seconds = seconds.clamp(*RANGE.start(), *RANGE.end());
        let (day_number, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let shifted = day_number + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Fields {
            year: year as u16,
            month: month as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// 1 = Sunday to 7 = Saturday.
    pub fn day_of_week(&self) -> u8 {
        // 1970-01-01 was a Thursday, number 5.
        ((self.seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_days() {
        let moment = Fields { year: 2026, month: 11, day: 21, hour: 22, minute: 20, second: 21 };
        assert_eq!(moment.seconds(), 1_795_299_621);
        assert_eq!(moment.day_of_week(), 7, "a Saturday");
        assert_eq!(Fields::at(0), Fields { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0 });
        assert_eq!(
            Fields::at(951_782_400),
            Fields { year: 2000, month: 2, day: 29, hour: 0, minute: 0, second: 0 }
        );
        assert_eq!(Fields::at(*RANGE.start()).year, 0);
        assert_eq!(Fields::at(*RANGE.end()).year, 9999);
        assert_eq!(Fields::at(i64::MAX), Fields::at(*RANGE.end()));
    }

    proptest! {
        #[test]
        fn every_second_comes_back(seconds in RANGE) {
            prop_assert_eq!(Fields::at(seconds).seconds(), seconds);
        }

        #[test]
        fn the_week_goes_on(day in 0i64..2_900_000) {
            let seconds = day * DAY;
            let (one, next) = (Fields::at(seconds).day_of_week(), Fields::at(seconds + DAY).day_of_week());
            prop_assert_eq!(one % 7 + 1, next);
        }
    }
}
