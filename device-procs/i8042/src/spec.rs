//! The 8042 keyboard controller of the PC/AT, named as in IBM's PC/AT Technical Reference (1984, §1 "Keyboard
//! Controller") and, for the second port, the PS/2's; with the names of Linux's `drivers/input/serio/i8042.h`.

/// Regions: each is one port.
pub mod region {
    /// Port 0x60: data.
    pub const DATA: u32 = 0;
    /// Port 0x64: status (read), command (write).
    pub const COMMAND: u32 = 1;
}

/// Status register.
pub mod status {
    /// Output buffer full: a byte waits at the data port.
    pub const OBF: u8 = 1 << 0;
    /// Self test passed.
    pub const SYSTEM_FLAG: u8 = 1 << 2;
    /// The last write was a command, not data.
    pub const COMMAND: u8 = 1 << 3;
    /// The keyboard is not locked.
    pub const UNLOCKED: u8 = 1 << 4;
    /// The byte that waits is from the second port.
    pub const AUXILIARY: u8 = 1 << 5;
    /// The device did not answer in time.
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Configuration ("command") byte.
pub mod config {
    /// Interrupt when a keyboard byte waits.
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    /// Copied to the status register's flag.
    pub const SYSTEM_FLAG: u8 = 1 << 2;
    /// The keyboard's clock is off.
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    /// The second port's clock is off.
    pub const AUXILIARY_OFF: u8 = 1 << 5;
    /// Scan codes are translated.
    pub const TRANSLATE: u8 = 1 << 6;
    /// As PC firmware leaves it: no interrupts, no second port.
    pub const DEFAULT: u8 = SYSTEM_FLAG | AUXILIARY_OFF | TRANSLATE;
}

/// Commands.
pub mod command {
    /// Reads the controller's memory at bits 0 to 4; the configuration byte is at 0.
    pub const READ_MEMORY: u8 = 0x20;
    /// Writes it with the next data byte.
    pub const WRITE_MEMORY: u8 = 0x60;
    /// Second port off.
    pub const AUXILIARY_OFF: u8 = 0xa7;
    /// Second port on.
    pub const AUXILIARY_ON: u8 = 0xa8;
    /// Tests the second port's lines.
    pub const AUXILIARY_TEST: u8 = 0xa9;
    /// Self test.
    pub const SELF_TEST: u8 = 0xaa;
    /// Tests the keyboard's lines.
    pub const KEYBOARD_TEST: u8 = 0xab;
    /// Keyboard off.
    pub const KEYBOARD_OFF: u8 = 0xad;
    /// Keyboard on.
    pub const KEYBOARD_ON: u8 = 0xae;
    /// Reads the input port.
    pub const READ_INPUT: u8 = 0xc0;
    /// Reads the output port.
    pub const READ_OUTPUT: u8 = 0xd0;
    /// Writes the output port with the next data byte.
    pub const WRITE_OUTPUT: u8 = 0xd1;
    /// The next data byte comes back as if the keyboard had sent it.
    pub const LOOP_KEYBOARD: u8 = 0xd2;
    /// The next data byte comes back as if the second port had sent it.
    pub const LOOP_AUXILIARY: u8 = 0xd3;
    /// The next data byte goes to the second port.
    pub const TO_AUXILIARY: u8 = 0xd4;
    /// 0xf0 to 0xff pulse those output lines low whose bit is clear in the command.
    pub const PULSE: u8 = 0xf0;
}

/// Output port.
pub mod output {
    /// The CPU's reset line, active low.
    pub const NOT_RESET: u8 = 1 << 0;
    /// Address line 20 passes. This machine has no gate on it.
    pub const A20: u8 = 1 << 1;
    /// After power-on.
    pub const DEFAULT: u8 = 0xcc | NOT_RESET | A20;
}

/// Answers.
pub mod answer {
    /// The self test has passed.
    pub const SELF_TEST_PASSED: u8 = 0x55;
    /// The keyboard's lines are in order.
    pub const LINES_GOOD: u8 = 0x00;
    /// A line is stuck: there is no second port.
    pub const CLOCK_STUCK_LOW: u8 = 0x01;
    /// The input port: keyboard not locked.
    pub const INPUT_PORT: u8 = 0x80;
    /// What the controller puts there for a device that does not answer ("resend").
    pub const NO_DEVICE: u8 = 0xfe;
}
