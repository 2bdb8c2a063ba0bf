//! What is said between the loop and one worker.

use cellblock_channel::socket::SocketError;
use cellblock_wire::Version;
use cellblock_wire::control::{BalloonReport, FromWorker, LogLevel, ToWorker};
use cellblock_wire::device::{DeviceConfig, DeviceKind};

use super::{Stage, Worker};
use crate::link::DeviceState;

/// Messages taken from one worker before the loop looks at the others.
pub(super) const MESSAGES_PER_TURN: usize = 16;
/// Log lines taken from one worker in its life; a chatty one is cut off, not obeyed.
const MAX_LOG_LINES: u32 = 1000;

/// What came from a worker.
#[derive(Debug)]
pub(crate) enum News {
    /// It serves.
    Ready,
    /// A line for the log.
    Log(LogLevel, String),
    /// Its predecessor's state made no sense, and it goes on without: why.
    StateLost(String),
    /// What was asked of the balloon.
    Balloon(BalloonReport),
    /// It has come to rest, as it was asked to.
    Quiesced,
    /// It closed its socket: its process ends.
    Closed,
    /// It is not to be talked to any more: why.
    Broken(String),
}

impl Worker {
    /// Sends `message`; a worker that does not read loses it.
    pub(crate) fn tell(&self, message: &ToWorker) {
        let _ = self.control.send_message(message, &[]);
    }

    /// Asks for what it has counted.
    pub(crate) fn ask_counters(&mut self) {
        self.watch.asked();
        self.tell(&ToWorker::ReportCounters);
    }

    /// Whether it may still tell what it was asked for.
    pub(crate) fn owes_counters(&self) -> bool {
        self.watch.owes_sign() && self.state == DeviceState::Serving
    }

    /// Tells a console of its terminal's size; a successor will be told the same.
    pub(crate) fn resize(&mut self, port: u32, columns: u16, rows: u16) {
        if let (0, DeviceConfig::Console(config)) = (port, &mut self.config) {
            (config.columns, config.rows) = (columns, rows);
            self.tell(&ToWorker::Resize { port, columns, rows });
        }
    }

    /// Has the guest's power button pressed, if it is the device that has it: now, or when it can remember that.
    pub(crate) fn press_power_button(&mut self) {
        if self.kind() != DeviceKind::AcpiPower {
            return;
        }
        // It may serve before it is known which process it is.
        let hears =
            self.state == DeviceState::Serving && self.hand_over().is_none_or(|at| at == Stage::Greeting);
        if hears {
            self.tell(&ToWorker::PowerButton);
        } else {
            self.pressed = true;
        }
    }

    /// Tells it what the host has said that its predecessor may not have heard; what it knows already changes nothing.
    pub(crate) fn tell_host_settings(&mut self) {
        if std::mem::take(&mut self.pressed) {
            self.tell(&ToWorker::PowerButton);
        }
        if let (Some(pages), DeviceConfig::Balloon(config)) = (self.balloon_pages.take(), &mut self.config) {
            config.pages = pages;
        }
        match &self.config {
            DeviceConfig::Balloon(config) => self.tell(&ToWorker::SetBalloon { pages: config.pages }),
            DeviceConfig::Console(config) => {
                let (columns, rows) = (config.columns, config.rows);
                self.tell(&ToWorker::Resize { port: 0, columns, rows });
            }
            _ => {}
        }
    }

    /// Asks for a balloon's report, after setting its size; a successor will be told the same size.
    pub(crate) fn ask_balloon(&mut self, set: Option<u32>) {
        if let (Some(pages), DeviceConfig::Balloon(config)) = (set, &mut self.config) {
            // A worker that is yet to be granted this would not find it new, and not tell the guest.
            match self.state {
                DeviceState::Serving => config.pages = pages,
                _ => self.balloon_pages = Some(pages),
            }
            self.tell(&ToWorker::SetBalloon { pages });
        }
        self.balloon_asked = true;
        self.tell(&ToWorker::ReportBalloon);
    }

    /// What the worker has sent, a bounded part of it.
    pub(crate) fn take_news(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        for _ in 0..MESSAGES_PER_TURN {
            // No worker may send descriptors: a message with some is an error.
            match self.control.try_recv_message::<FromWorker>(0) {
                Err(SocketError::NotReady) => break,
                Err(SocketError::Closed) => {
                    news.push(News::Closed);
                    break;
                }
                Err(error) => {
                    news.push(News::Broken(error.to_string()));
                    break;
                }
                Ok((message, _)) => match self.take_message(message) {
                    Ok(one) => news.extend(one),
                    Err(reason) => {
                        news.push(News::Broken(reason));
                        break;
                    }
                },
            }
        }
        news
    }

    fn take_message(&mut self, message: FromWorker) -> Result<Option<News>, String> {
        match (message, self.state) {
            (FromWorker::Hello { version, device }, DeviceState::Starting) if !self.process.greeted => {
                check_greeting(version, device, self.kind())?;
                self.process.greeted = true;
                Ok(None)
            }
            (FromWorker::Ready, DeviceState::Starting) if self.process.greeted => {
                self.begin_service();
                self.tell_host_settings();
                Ok(Some(News::Ready))
            }
            (FromWorker::StateLost { reason }, DeviceState::Starting) => {
                self.on_registers = true;
                Ok(may_log(&mut self.log_lines).then(|| News::StateLost(plain(&reason))))
            }
            (FromWorker::Refused { reason }, DeviceState::Starting) => {
                Err(format!("it refused its start: {}", plain(&reason)))
            }
            (FromWorker::Refused { reason }, DeviceState::Serving) => {
                Err(format!("it gave up: {}", plain(&reason)))
            }
            (FromWorker::Log { level, text }, _) => {
                let text = plain(&text);
                self.black_box.heard(&text);
                Ok(may_log(&mut self.log_lines).then_some(News::Log(level, text)))
            }
            (FromWorker::Counters(counters), DeviceState::Serving) => {
                self.counters = counters;
                self.watch.answered();
                Ok(None)
            }
            // One that nobody asked for is let fall: the front is not to be flooded.
            (FromWorker::Balloon(report), DeviceState::Serving) if self.kind() == DeviceKind::Balloon => {
                Ok(std::mem::take(&mut self.balloon_asked).then_some(News::Balloon(report)))
            }
            (FromWorker::Quiesced { number }, DeviceState::Serving) => {
                Ok(self.rest.reached(number).then_some(News::Quiesced))
            }
            (other, state) => Err(format!("it sent {other:?} while {}", state.name())),
        }
    }
}

/// One more line of a device's workers, of which `lines` were told; whether it is told.
pub(super) fn may_log(lines: &mut u32) -> bool {
    *lines = lines.saturating_add(1);
    *lines <= MAX_LOG_LINES
}

/// A worker's text, which people see on their terminals, without anything that a terminal obeys.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Whether a process that greets like this can be talked to, as the worker of a device of kind `wanted`.
pub(super) fn check_greeting(
    version: Version,
    device: Option<DeviceKind>,
    wanted: DeviceKind,
) -> Result<(), String> {
    if !Version::CURRENT.accepts(version) {
        return Err(format!("it speaks protocol {version}, this program {}", Version::CURRENT));
    }
    match device {
        Some(other) if other != wanted => Err(format!("it runs the device {other}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::Means;
    use crate::plan::DevicePlan;
    use cellblock_wire::control::FIXED_DESCRIPTORS;

    #[test]
    fn a_press_is_told_once_however_far_the_worker_is() {
        for served_before in [false, true] {
            let (mut worker, _, theirs) =
                Worker::new(DevicePlan::bare(DeviceConfig::AcpiPower), 1, None, Means::default()).unwrap();
            let ready = |worker: &mut Worker| {
                worker.begin_service();
                worker.tell_host_settings();
            };
            if served_before {
                ready(&mut worker);
                assert_eq!(
                    worker.state(),
                    DeviceState::Starting,
                    "the spawner has not said that it started it"
                );
            }
            worker.press_power_button();
            if !served_before {
                ready(&mut worker);
            }
            let told = std::iter::from_fn(|| theirs.try_recv_message::<ToWorker>(FIXED_DESCRIPTORS).ok());
            let presses = told.filter(|(message, _)| matches!(message, ToWorker::PowerButton)).count();
            assert_eq!(presses, 1, "{served_before}");
        }
    }
}
