//! The exit ring between the supervisor and one device worker, and the state page that outlives the worker.
//!
//! The algorithm is written once, over the traits of [`words`]: shared words, fences, a futex, a clock. The crate
//! `cellblock-channel` implements them over sealed memfds and names the shipped types (`cellblock_channel::Requester`
//! and so on); the tests implement them over `loom`'s atomics and over scripted, hostile memory.
//!
//! # Memory
//! Two memfds with one writer each ([`layout`]). **Requests** (written by the supervisor): per lane a 64-byte slot and
//! a 64-byte line with the supervisor's *waiting* flag. **Replies** (written by the worker): a header with the worker's
//! *sleeping* flag and its [`Stance`], then 64 bytes per lane. One lane per vCPU, so each lane has one producer and one consumer.
//!
//! # Supervisor's side
//! One [`Requester`] per (vCPU, worker), owned by the vCPU's thread. [`Requester::post`] publishes an access and says
//! whether the doorbell must be rung; [`Requester::wait`] spins, then sleeps until the reply, a [`Kick`] or the deadline.
//! `Kicked` and `Deadline` leave the request outstanding: look at the mailbox, then wait again, or give it to a successor
//! with [`Requester::succeed`]. Every kick ends one wait, also a kick that came before the wait or before the post: the
//! thread's [`KickWatch`] remembers which kicks it has seen, so look into the mailbox only *after* a `Kicked`.
//!
//! # Worker's side
//! One [`Responder`] for all lanes, owned by the register thread. Per round: [`Responder::next`] until it is `None`; for each
//! request compute the reply ([`answer`]), commit it with [`state_page::Writer::commit`], then [`Responder::reply`].
//! Before it blocks on its doorbell: [`Responder::prepare_sleep`]; sleep only if that says so, then [`Responder::awake`].
//!
//! # What is guaranteed
//! 1. A reply is accepted only if it answers exactly the outstanding sequence and generation; anything but that and the
//!    reply before it is a [`Violation`]. Each shared word is read once per look. (`hostile.rs` in the tests)
//! 2. No wake-up is lost in either direction, and no kick. (`loom.rs`)
//! 3. Nothing here panics, allocates after creation, or waits longer than its deadline, whatever the peer writes.
//!
//! # Which fence stops which lost wake-up
//! *Reply against sleep:* the supervisor raises its waiting flag, fences, and reads the reply word; the worker writes the
//! reply word, fences, and reads the flag. With a SeqCst fence on both sides at least one sees the other's write: the
//! supervisor does not sleep, or the worker wakes it. *Request against sleep:* the same, with the worker's sleeping flag
//! and the request word; the wake-up there is the doorbell. What happens between the last look and the sleep itself is the
//! kernel's to compare: `futex_waitv` refuses to sleep if a word has changed, and a doorbell's pipe stays readable.
//!
//! # Who spins where
//! Spinning pays only if the other side runs meanwhile, so each says where it is. With each request goes the CPU that the vCPU is on
//! ([`Requester::set_home`]): the worker sleeps *there*, where waking it takes no interrupt to another CPU. After several requests
//! close to each other it goes elsewhere to spin. It says what it does and where ([`Responder::announce`]); only for one that spins elsewhere
//! does the vCPU spin, too ([`Requester::stance`]). All of it is hints: a worker that lies makes its own device slow, for no longer than the spin.
//! How long to spin, and whether sleeping on the vCPU's CPU pays, is learned ([`pacing`]).
//!
//! # Example
//! ```
//! use cellblock_ring::{Access, Outcome, Requester, Responder, answer, layout, memory::Plain};
//! use cellblock_wire::slot::{Action, Op, Space};
//!
//! // In the product these two are memfds: see cellblock-channel. `Plain` is ordinary memory, for one thread.
//! let requests = Plain::zeroed(layout::request_words(1));
//! let replies = Plain::zeroed(layout::reply_words(1));
//! let mut requester = Requester::new(requests.clone(), replies.clone(), 0, 1)?;
//! let mut responder = Responder::new(requests, replies, 1, 1)?;
//!
//! // Supervisor: a guest's `in al, 0x3fd`.
//! let ring = requester.post(&Access { space: Space::Pio, op: Op::Read, size: 1, region: 0, offset: 5, data: 0 });
//! assert!(!ring); // the worker does not sleep
//!
//! // Worker.
//! while let Some(next) = responder.next() {
//!     let (lane, request) = next?;
//!     responder.reply(lane, &answer(&request, Action::None, 0x60));
//! }
//!
//! // Supervisor.
//! assert_eq!(requester.poll()?.unwrap().data, 0x60);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(not(target_endian = "little"))]
compile_error!("the futex word is the low half of a 64-bit word: only little-endian targets are supported");

mod kick;
pub mod layout;
pub mod memory;
pub mod pacing;
mod requester;
mod responder;
mod stance;
pub mod state_page;
mod violation;
pub mod words;

pub use kick::{Kick, KickWatch};
pub use requester::{Access, Outcome, Requester, Succeeding, Succession};
pub use responder::{LaneId, Responder, answer};
pub use stance::Stance;
pub use violation::{TooSmall, Violation};
pub use words::Deadline;
