//! What Linux's i8042 driver does (drivers/input/serio/i8042.c, 6.1), as accesses that run on any [`Host`].

use cellblock_sdk::testing::Host;

fn status(controller: &mut impl Host) -> u64 {
    controller.read(1, 0, 1)
}

/// `i8042_command()`: a command, its parameter, and the answer, which must be there at once.
fn command(controller: &mut impl Host, code: u64, parameter: Option<u64>, answers: bool) -> Option<u64> {
    assert_eq!(status(controller) & 2, 0, "the input buffer is free");
    controller.write(1, 0, 1, code);
    if let Some(value) = parameter {
        assert_eq!(status(controller) & 2, 0);
        controller.write(0, 0, 1, value);
    }
    if !answers {
        return None;
    }
    let waiting = status(controller);
    assert_eq!(waiting & 1, 1, "command {code:#x} is answered at once");
    let byte = controller.read(0, 0, 1);
    // What the driver takes as "auxerr".
    (code != 0xd3 || waiting & 0x20 != 0).then_some(byte)
}

/// `i8042_controller_selftest`, `i8042_controller_init`, `i8042_check_aux`.
pub fn linux_init(controller: &mut impl Host) {
    for _ in 0..16 {
        if status(controller) & 1 == 0 {
            break;
        }
        controller.read(0, 0, 1);
    }
    assert_eq!(command(controller, 0xaa, None, true), Some(0x55), "self test");
    let config = command(controller, 0x20, None, true).unwrap();
    assert_eq!(command(controller, 0x20, None, true), Some(config), "it reads the same twice");
    assert_ne!(status(controller) & 0x10, 0, "the keyboard is not locked");
    command(controller, 0x60, Some((config | 0x10) & !1), false);
    assert_eq!(command(controller, 0x20, None, true), Some((config | 0x10) & !1));

    assert_eq!(command(controller, 0xd3, Some(0x5a), true), None, "no loop through a second port");
    let test = command(controller, 0xa9, None, true).unwrap();
    assert!(!matches!(test, 0 | 0xfa | 0xff), "no second port: {test:#x}");
    assert_eq!(command(controller, 0xab, None, true), Some(0));
}

/// `i8042_enable_kbd_port`.
pub fn enable_keyboard(controller: &mut impl Host) {
    let config = command(controller, 0x20, None, true).unwrap();
    command(controller, 0x60, Some((config & !0x10) | 1), false);
}
