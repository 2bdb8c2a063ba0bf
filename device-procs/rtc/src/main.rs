//! A CMOS real-time clock.

fn main() {}
