//! The kernel objects under the protocol: sealed memfds and their mappings ([`memory`]), guest memory ([`ram`]), futexes ([`futex`]), doorbells
//! ([`doorbell`]) and the control socket ([`socket`]); the ring's types over them; and what a process at either end asks of the
//! kernel for itself ([`process`]).
//!
//! # Supervisor's side
//! Per worker: [`memory::create_requests`], [`memory::create_replies`], [`memory::create_state`], [`doorbell::pair`] and
//! [`socket::pair`]; per (vCPU, worker) a [`Requester`] over clones of the mappings; per vCPU thread one [`kick()`].
//!
//! # Worker's side
//! Receives the grant with its descriptors, opens requests read-only ([`memory::open_read`]), replies and state page for
//! writing ([`memory::open_write`]), and has one [`Responder`] and one [`StateWriter`].
//!
//! # Example
//! ```
//! use std::time::Duration;
//!
//! use cellblock_channel::{Requester, Responder, clock, doorbell, kick, memory};
//! use cellblock_ring::{Access, Outcome, answer, layout};
//! use cellblock_wire::slot::{Action, Op, Space};
//! use rustix::event::{PollFd, PollFlags, poll};
//!
//! // Supervisor.
//! let requests = memory::create_requests("serial requests", memory::bytes(layout::request_words(1)))?;
//! let replies = memory::create_replies("serial replies", memory::bytes(layout::reply_words(1)))?;
//! let (ringer, bell) = doorbell::pair()?;
//! let (kick, mut kicks) = kick(); // `kick.bump()` from any thread ends the vCPU thread's wait
//! let mut requester = Requester::new(requests.map.clone(), replies.map.clone(), 0, 1)?;
//!
//! // Worker, with the descriptors that the grant brought.
//! let requests_here = memory::open_read(&requests.fd, memory::bytes(layout::request_words(1)))?;
//! let replies_here = memory::open_write(&replies.fd, memory::bytes(layout::reply_words(1)))?;
//! let mut responder = Responder::new(requests_here, replies_here, 1, 1)?;
//! let worker = std::thread::spawn(move || {
//!     loop {
//!         while let Some(next) = responder.next() {
//!             let Ok((lane, request)) = next else { continue };
//!             responder.reply(lane, &answer(&request, Action::None, 0x60)); // commit the state page before this
//!             return;
//!         }
//!         if responder.prepare_sleep() {
//!             let _ = poll(&mut [PollFd::new(&bell, PollFlags::IN)], None); // an epoll in the SDK
//!             bell.silence();
//!             responder.awake();
//!         }
//!     }
//! });
//!
//! // Supervisor: a guest's `in al, 0x3fd`.
//! if requester.post(&Access { space: Space::Pio, op: Op::Read, size: 1, region: 0, offset: 5, data: 0 }) {
//!     ringer.ring();
//! }
//! match requester.wait(&mut kicks, Duration::from_micros(50), clock::deadline_in(Duration::from_secs(1)))? {
//!     Outcome::Replied(reply) => assert_eq!(reply.data, 0x60),
//!     Outcome::Kicked => unreachable!("then look at the mailbox and wait again"),
//!     Outcome::Deadline => unreachable!("then see whether the worker is starved or hangs"),
//! }
//! # worker.join().unwrap(); drop(kick); Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod clock;
pub mod doorbell;
pub mod futex;
pub mod last_words;
pub mod memory;
pub mod process;
pub mod ram;
pub mod register_page;
pub mod scheduling;
pub mod socket;
pub mod tap;
pub mod vectors;

use memory::{Mapping, ReadOnly, Writable};
pub use register_page::RegisterPage;

/// The supervisor's side of one lane.
pub type Requester = cellblock_ring::Requester<Mapping<Writable>, Mapping<ReadOnly>>;
/// The worker's side of all lanes.
pub type Responder = cellblock_ring::Responder<Mapping<ReadOnly>, Mapping<Writable>>;
/// Ends the waits of one vCPU thread; clone it for whoever may have to.
pub type Kick = cellblock_ring::Kick<futex::PrivateWord>;
/// The vCPU thread's end of its [`Kick`].
pub type KickWatch = cellblock_ring::KickWatch<futex::PrivateWord>;
/// The worker's end of the state page.
pub type StateWriter = cellblock_ring::state_page::Writer<Mapping<Writable>>;

/// A kick for one vCPU thread, and the watch that this thread keeps.
pub fn kick() -> (Kick, KickWatch) {
    cellblock_ring::Kick::new(futex::PrivateWord::default())
}
