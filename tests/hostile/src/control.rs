//! What can be said on the control socket.

use std::os::fd::BorrowedFd;

use cellblock_channel::socket::{Control, MAX_DESCRIPTORS};
use cellblock_wire::Version;
use cellblock_wire::control::{BalloonReport, Counters, FromWorker, LogLevel, MAX_MESSAGE, MAX_TEXT, encode};
use cellblock_wire::device::DeviceKind;
use rustix::net::{Shutdown, shutdown};

use crate::{Noise, Worker, hello, own, rest};

/// Messages of a flood between two looks for requests.
const BATCH: u32 = 64;

/// Says what it is, or something else.
pub(crate) fn greet(control: &Control, case: &str) {
    let say = |message: &FromWorker| drop(control.send_message(message, &[]));
    match case {
        "greeting-garbage" => drop(control.send(&[0xff; 64], &[])),
        "greeting-version" => {
            say(&FromWorker::Hello {
                version: Version { major: 99, minor: 0 },
                device: Some(DeviceKind::Rtc),
            });
        }
        "greeting-device" => {
            say(&FromWorker::Hello { version: Version::CURRENT, device: Some(DeviceKind::Serial) });
        }
        "greeting-ready" => say(&FromWorker::Ready),
        "greeting-twice" => {
            say(&hello());
            say(&hello());
        }
        "greeting-refusal" => say(&FromWorker::Refused { reason: "\u{1b}[2Jno\nthanks".to_owned() }),
        "greeting-exit" => std::process::exit(9),
        _ => return say(&hello()),
    }
    rest();
}

impl Worker {
    /// `None` = the case is of another kind.
    pub(crate) fn break_control(&mut self, case: &str) -> Option<bool> {
        let say = |message: &FromWorker| drop(self.control.send_message(message, &[]));
        let send = |bytes: &[u8]| drop(self.control.send(bytes, &[]));
        match case {
            "garbage" => send(&[0xff; 100]),
            "empty" => send(&[]),
            "long" => send(&[0; MAX_MESSAGE + 1]),
            // A message, and half of one.
            "trailing" => {
                send(&[&encode(&FromWorker::Counters(Counters::default())).unwrap()[..], &[3, 0]].concat())
            }
            "truncated" => {
                send(&encode(&FromWorker::Log { level: LogLevel::Warn, text: "x".repeat(99) }).unwrap()[..50])
            }
            // Refused, with a text of 4 GiB, and of 16 EiB.
            "four-gib" => send(&[2, 252, 255, 255, 255, 255]),
            "sixteen-eib" => send(&[2, 253, 255, 255, 255, 255, 255, 255, 255, 255]),
            "nesting" => send(&[1; MAX_MESSAGE]),
            "unknown" => send(&[99]),
            "not-utf-8" => send(&[3, 0, 2, 0xff, 0xff]),
            "long-text" => say(&FromWorker::Log { level: LogLevel::Warn, text: "x".repeat(MAX_TEXT + 1) }),
            "descriptor" => {
                drop(self.control.send_message(&FromWorker::Quiesced { number: 0 }, &[own(&self.page)]))
            }
            "descriptors" => {
                let many: Vec<BorrowedFd<'_>> = vec![own(&self.page); MAX_DESCRIPTORS];
                let _ = self.control.send_message(&FromWorker::Quiesced { number: 0 }, &many);
            }
            "hello-again" => say(&hello()),
            "ready-again" => say(&FromWorker::Ready),
            "state-lost" => say(&FromWorker::StateLost { reason: "why not".to_owned() }),
            "balloon" => say(&FromWorker::Balloon(BalloonReport::default())),
            "gives-up" => say(&FromWorker::Refused { reason: "\u{1b}]0;owned\u{7}never".to_owned() }),
            "quiesced" => (0..100).for_each(|number| say(&FromWorker::Quiesced { number })),
            "log-flood" => self.noise = Noise::Log,
            "counter-flood" => self.noise = Noise::Counters,
            "closed" => {
                let _ = shutdown(self.control, Shutdown::Both);
            }
            "half-closed" => {
                let _ = shutdown(self.control, Shutdown::Write);
            }
            "deaf" => self.deaf = true,
            _ => return None,
        }
        Some(true)
    }

    /// Sends messages as fast as they are taken, but looks for requests in between.
    pub(crate) fn flood(&mut self, message: &FromWorker) {
        let bytes = encode(message).unwrap();
        for _ in 0..BATCH {
            if self.control.send(&bytes, &[]).is_err() {
                return;
            }
            self.sent += 1;
        }
    }
}
