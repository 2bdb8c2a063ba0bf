//! A console as its driver finds it, and who serves its queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cellblock_sdk::device::Event;
use cellblock_sdk::host::Tally;
use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Interrupt, Kept, Kicker, QueueError, Queues, Space, Wait, Work};
use cellblock_wire::device::ConsoleConfig;

use crate::control::{Control, Message, Size};
use crate::port::{Pipes, Port};
use crate::spec::{CONFIG_BYTES, QUEUE_SIZE, feature, queue};
use crate::state::Standing;

/// Control messages taken or given in one turn; then it is the ports'.
const MESSAGES: usize = 32;

/// What the driver is told of the console that `config` describes.
pub fn identity(config: &ConsoleConfig) -> Identity {
    let multiport = if config.is_multiport() { feature::MULTIPORT } else { 0 };
    Identity {
        id: device_id::CONSOLE,
        features: feature::SIZE | multiport,
        queues: config.queues(),
        queue_size: QUEUE_SIZE,
        config: Space::fixed(configuration_space(config)),
    }
}

/// §5.3.4. Fields of features that are not offered are zero.
fn configuration_space(config: &ConsoleConfig) -> Vec<u8> {
    let ports = if config.is_multiport() { config.ports.len() as u32 } else { 0 };
    let mut space = Vec::with_capacity(CONFIG_BYTES);
    space.extend(config.columns.to_le_bytes());
    space.extend(config.rows.to_le_bytes());
    space.extend(ports.to_le_bytes());
    space.extend(0u32.to_le_bytes()); // emerg_wr
    space
}

/// The size that the console's terminal has; clones are the same. The register thread sets it, the post tells it.
#[derive(Debug, Clone)]
pub struct Screen(Arc<AtomicU32>);

impl Screen {
    /// As the configuration says.
    pub fn new(config: &ConsoleConfig) -> Self {
        Screen(Arc::new(AtomicU32::new(word(config.columns, config.rows))))
    }

    /// The terminal has another size now. Says what the first bytes of the configuration space are.
    pub fn set(&self, columns: u16, rows: u16) -> [u8; 4] {
        let word = word(columns, rows);
        // SYNC POINT: none; the size is all there is to it.
        self.0.store(word, Ordering::Relaxed);
        word.to_le_bytes()
    }

    fn size(&self) -> Size {
        let word = self.0.load(Ordering::Relaxed);
        Size { columns: word as u16, rows: (word >> 16) as u16 }
    }
}

/// What the register thread does with the supervisor's events: a change of the console's size is told in the configuration
/// space, and the post that `post` wakes tells it by a message. Only port 0 is a console.
pub fn handler(
    identity: &Identity,
    screen: Screen,
    interrupt: Interrupt,
    post: Kicker,
) -> impl FnMut(Event) + 'static {
    let space = identity.config.clone();
    move |event| {
        if let Event::Resize { port: 0, columns, rows } = event {
            space.set(0, &screen.set(columns, rows), &interrupt);
            post.kick();
        }
    }
}

fn word(columns: u16, rows: u16) -> u32 {
    u32::from(columns) | u32::from(rows) << 16
}

/// Serves all queues of a console.
#[derive(Debug)]
pub struct Console {
    ports: Vec<Port>,
    control: Control,
    screen: Screen,
    /// How driver and device stand, for a successor.
    kept: Kept,
    /// The driver knows of ports.
    multiport: bool,
    /// The driver is to look at the console's size, although it has not changed.
    size_untold: bool,
}

impl Console {
    /// The console that `config` describes, with `pipes` for each of its ports. `kept` keeps a [`Standing`].
    pub fn new(
        config: &ConsoleConfig,
        pipes: Vec<Pipes>,
        screen: Screen,
        kept: Kept,
        tally: &Arc<Tally>,
    ) -> Self {
        let port = |(number, pipes)| Port::new(queue::receive(number), pipes, Arc::clone(tally));
        Console {
            ports: pipes.into_iter().enumerate().map(port).collect(),
            control: Control::new(config),
            screen,
            kept,
            multiport: false,
            size_untold: false,
        }
    }

    fn take_messages(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let Some(queue) = queues.get(queue::CONTROL_TRANSMIT) else { return Ok(()) };
        queue.silence()?;
        let mut used = 0;
        while used < MESSAGES {
            let Some(head) = queue.pop()? else {
                wait.again |= queue.listen()?;
                break;
            };
            // One that is too short, or not in guest memory, says nothing.
            if let Ok(message) = Message::read(&mut queue.chain()) {
                self.control.take(message);
            }
            // Before the driver sees that it was taken.
            self.kept.set(self.control.standing().to_word());
            queue.push(head, 0)?;
            used += 1;
        }
        wait.again |= used == MESSAGES;
        if used > 0 { queues.signal(queue::CONTROL_TRANSMIT) } else { Ok(()) }
    }

    fn give_messages(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let Some(queue) = queues.get(queue::CONTROL_RECEIVE) else { return Ok(()) };
        queue.silence()?;
        let mut used = 0;
        while used < MESSAGES && self.control.has_next() {
            let Some(head) = queue.pop()? else {
                wait.again |= queue.listen()?;
                break;
            };
            let written = self.control.say(&mut queue.chain());
            self.kept.set(self.control.standing().to_word());
            queue.push(head, written)?;
            used += 1;
        }
        wait.again |= used == MESSAGES;
        if used > 0 { queues.signal(queue::CONTROL_RECEIVE) } else { Ok(()) }
    }
}

impl Work for Console {
    fn begin(&mut self, slot: usize, features: u64) {
        self.multiport = features & feature::MULTIPORT != 0;
        self.size_untold |= slot == queue::TRANSMIT_0;
        if slot == queue::CONTROL_TRANSMIT {
            // Nothing, unless a predecessor left it.
            self.control.resume(Standing::from_word(self.kept.get()));
        }
    }

    fn end(&mut self, slot: usize) {
        self.ports.iter_mut().for_each(|port| port.forget(slot));
        if slot == queue::CONTROL_TRANSMIT {
            self.control.reset();
            self.kept.set(0);
        }
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let mut wait = Wait::default();
        let size = self.screen.size();
        self.control.resize(size);
        if std::mem::take(&mut self.size_untold) && size.is_known() && !self.multiport {
            // Without ports, Linux looks at the size only when it is told of a change.
            queues.interrupt().config_changed();
        }
        if self.multiport {
            self.take_messages(queues, &mut wait)?;
            self.give_messages(queues, &mut wait)?;
        }
        let known = if self.multiport { self.ports.len() } else { 1 };
        for (number, port) in self.ports.iter_mut().enumerate().take(known) {
            port.send(queues, &mut wait)?;
            // Linux throws away what comes to a port that nobody has open.
            if !self.multiport || self.control.is_open(number) {
                port.receive(queues, &mut wait)?;
            }
        }
        Ok(wait)
    }
}
