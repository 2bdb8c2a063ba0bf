//! An i8042 keyboard controller: the reset line and an empty keyboard.
