//! A network device as its driver finds it, and who serves its queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cellblock_sdk::device::Clock;

use cellblock_sdk::virtio::spec::device_id;
use cellblock_sdk::virtio::{Identity, Interrupt, QueueError, Queues, Ram, Space, Wait, Work};
use cellblock_wire::device::NetConfig;

use crate::backend::{Backend, Steer};
use crate::control::Commands;
use crate::limit::Flow;
use crate::receive::Receiver;
use crate::spec::{CONFIG_BYTES, CONFIG_STATUS, LINK_UP, QUEUE_SIZE, feature};
use crate::transmit::Transmitter;

/// Slots of a pair's queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// A pair's one source: its far end.
const SOURCE: u32 = 0;

/// What the driver is told of the device that `config` describes.
pub fn identity(config: &NetConfig) -> Identity {
    Identity {
        id: device_id::NET,
        features: features(config),
        queues: 2 * config.pairs + u16::from(config.pairs > 1),
        queue_size: QUEUE_SIZE,
        config: Space::fixed(configuration_space(config)),
    }
}

fn features(config: &NetConfig) -> u64 {
    let when = |condition, bits| if condition { bits } else { 0 };
    let offloads = feature::CSUM
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::GUEST_CSUM
        | feature::GUEST_TSO4
        | feature::GUEST_TSO6;
    feature::MAC
        | feature::STATUS
        | feature::MRG_RXBUF
        | when(config.mtu != 0, feature::MTU)
        | when(config.offloads, offloads)
        | when(config.pairs > 1, feature::CTRL_VQ | feature::MQ)
}

/// §5.1.4. Fields of features that are not offered are zero.
fn configuration_space(config: &NetConfig) -> Vec<u8> {
    let mut space = Vec::with_capacity(CONFIG_BYTES);
    space.extend(config.mac);
    space.extend(LINK_UP.to_le_bytes());
    space.extend(if config.pairs > 1 { config.pairs } else { 0 }.to_le_bytes());
    space.extend(config.mtu.to_le_bytes());
    space
}

/// Whether the far end is there: told to the driver by the status field (§5.1.4). Clones are the same.
#[derive(Debug, Clone)]
struct Link {
    space: Space,
    dead: Arc<AtomicBool>,
}

impl Link {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    fn die(&self, interrupt: &Interrupt) {
        if !self.dead.swap(true, Ordering::Relaxed) {
            self.space.set(CONFIG_STATUS, &[0, 0], interrupt);
        }
    }
}

/// A queue pair at work; the first has the control queue, too, if there is one.
#[derive(Debug)]
pub struct Pair<B, C> {
    backend: B,
    receiver: Receiver<C>,
    transmitter: Transmitter<C>,
    commands: Option<Commands>,
    link: Link,
    /// There was a driver before.
    had_driver: bool,
    /// The far end had nothing when it was last asked.
    dry: bool,
}

/// The pairs of the device that `config` and `identity` describe, each with the numbers of its queues. There is a backend for
/// each pair, and `steer` says over which of several frames come.
pub fn pairs<B: Backend, C: Clock + Clone>(
    config: &NetConfig,
    identity: &Identity,
    ram: &Ram,
    clock: &C,
    backends: Vec<B>,
    steer: Box<dyn Steer + Send>,
) -> Vec<(Pair<B, C>, Vec<u16>)> {
    let link = Link { space: identity.config.clone(), dead: Arc::default() };
    let receive = Flow::new(&config.receive, clock.clone());
    let transmit = Flow::new(&config.transmit, clock.clone());
    let mut commands = (config.pairs > 1).then(|| Commands::new(steer, config.pairs));
    let pair = |(backend, number): (B, u16)| {
        let commands = commands.take();
        let mut queues = vec![2 * number, 2 * number + 1];
        queues.extend(commands.is_some().then_some(2 * config.pairs));
        let pair = Pair {
            backend,
            receiver: Receiver::new(ram.clone(), receive.clone()),
            transmitter: Transmitter::new(ram.clone(), transmit.clone()),
            commands,
            link: link.clone(),
            had_driver: false,
            dry: false,
        };
        (pair, queues)
    };
    backends.into_iter().zip(0..config.pairs).map(pair).collect()
}

impl<B: Backend, C: Clock> Work for Pair<B, C> {
    fn begin(&mut self, slot: usize, features: u64) {
        if slot != RECEIVE {
            return;
        }
        // A successor finds the queues in use as its predecessor left them; another driver begins with one pair.
        if let Some(commands) = &mut self.commands
            && (self.had_driver || features & feature::MQ == 0)
        {
            commands.reset();
        }
        self.backend.begin(features, self.had_driver);
        self.receiver.begin(features);
        self.had_driver = true;
    }

    fn end(&mut self, slot: usize) {
        if slot == RECEIVE {
            self.receiver.end();
            self.dry = false;
        }
    }

    fn work(&mut self, queues: &mut Queues) -> Result<Wait, QueueError> {
        let mut wait = Wait::default();
        self.command(queues, &mut wait)?;
        self.transmit(queues, &mut wait)?;
        self.receive(queues, &mut wait)?;
        // What was not pushed to asks for nothing.
        queues.signal_all(&[RECEIVE, TRANSMIT])?;
        Ok(wait)
    }

    fn streams(&self) -> bool {
        true
    }
}

impl<B: Backend, C: Clock> Pair<B, C> {
    fn command(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let Some(commands) = &mut self.commands else { return Ok(()) };
        let Some(queue) = queues.get(CONTROL) else { return Ok(()) };
        let (used, again) = commands.work(queue)?;
        wait.again |= again;
        if used { queues.signal(CONTROL) } else { Ok(()) }
    }

    fn transmit(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        let Some(queue) = queues.get(TRANSMIT) else { return Ok(()) };
        let dead = self.link.is_dead();
        let rest = self.transmitter.work(queue, &mut self.backend, dead)?;
        if rest.dead {
            self.link.die(queues.interrupt());
        }
        wait.again |= rest.again;
        wait.writable |= u32::from(rest.source && !self.link.is_dead()) << SOURCE;
        wait.until = earlier(wait.until, rest.until);
        // Who answers what was sent may have done so already.
        self.dry &= !rest.used;
        Ok(())
    }

    fn receive(&mut self, queues: &mut Queues, wait: &mut Wait) -> Result<(), QueueError> {
        if self.dry && !queues.source_ready(SOURCE) {
            // A kick of another queue.
            wait.readable |= 1 << SOURCE;
            return Ok(());
        }
        let Some(queue) = queues.get(RECEIVE).filter(|_| !self.link.is_dead()) else { return Ok(()) };
        let rest = self.receiver.work(queue, &mut self.backend)?;
        if rest.dead {
            self.link.die(queues.interrupt());
        }
        self.dry = rest.source;
        wait.again |= rest.again;
        wait.readable |= u32::from(rest.source) << SOURCE;
        wait.until = earlier(wait.until, rest.until);
        Ok(())
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}
