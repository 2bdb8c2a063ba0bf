//! A CMOS real-time clock.
