//! A tap interface's queue: each read and each write moves one frame with its header, which the kernel fills and judges, straight
//! between guest memory and the kernel's buffers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cellblock_channel::tap::{self, offload};
use cellblock_sdk::virtio::{Gather, Scatter};
use rustix::io::Errno;

use super::{Backend, Received, Sent, Steer};
use crate::spec::{ETHERNET_BYTES, LARGEST_FRAME, USUAL_MTU, VLAN_BYTES, feature, header};

/// Frames that are thrown away at most when a driver begins: more than a tap's queue holds.
const MOST_STALE: usize = 4096;

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: Arc<OwnedFd>,
    /// The largest whole frame, with its header.
    whole: u64,
    /// The largest that the driver takes.
    largest: u64,
    merges: bool,
}

impl Tap {
    /// Over a descriptor that is attached to the interface and does not block. `mtu` is the largest packet, 0 = as usual.
    pub fn new(fd: Arc<OwnedFd>, mtu: u16) -> Self {
        let mtu = if mtu == 0 { USUAL_MTU } else { mtu.into() };
        let whole = header::BYTES + ETHERNET_BYTES + VLAN_BYTES + mtu;
        Tap { fd, whole, largest: whole, merges: false }
    }

    /// Throws away what waits in the queue. A read too short for a frame takes it nevertheless.
    fn drop_stale(&self) {
        for _ in 0..MOST_STALE {
            match rustix::io::read(&*self.fd, &mut [0; header::BYTES as usize]) {
                Ok(1..) | Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// What of the offloads the tap's reader takes.
fn offloads(features: u64) -> usize {
    let bits = [
        (feature::GUEST_CSUM, offload::CSUM),
        (feature::GUEST_TSO4, offload::TSO4),
        (feature::GUEST_TSO6, offload::TSO6),
    ];
    // The kernel refuses segmentation without checksums; so does the specification (§5.1.3.1).
    let all = bits.iter().filter(|(bit, _)| features & bit != 0).map(|(_, bit)| bit).sum();
    if all & offload::CSUM == 0 { 0 } else { all }
}

impl Backend for Tap {
    fn begin(&mut self, features: u64, stale: bool) {
        let offloads = offloads(features);
        // A tap that refuses goes on as the front has set it up: without any.
        let _ = tap::set_offloads(&*self.fd, offloads);
        self.largest =
            if offloads & !offload::CSUM == 0 { self.whole } else { header::BYTES + LARGEST_FRAME };
        self.merges = features & feature::MRG_RXBUF != 0;
        if stale {
            self.drop_stale();
        }
    }

    /// A byte more than the largest frame, for one that fills all its room may have been longer. A driver that does not merge
    /// need not give that byte.
    fn wanted(&mut self) -> Option<u64> {
        Some(self.largest + u64::from(self.merges))
    }

    fn receive(&mut self, room: &Scatter) -> Received {
        match room.fill_from(self.fd.as_fd()) {
            Ok(0) => Received::Dead,
            Ok(bytes) => {
                let bytes = bytes as u64;
                let cut = bytes == room.bytes() && bytes < self.largest;
                if cut || bytes > self.largest || bytes < header::BYTES + ETHERNET_BYTES {
                    Received::Dropped
                } else {
                    Received::Frame(bytes)
                }
            }
            Err(error) if passes(&error) => Received::Nothing,
            Err(_) => Received::Dead,
        }
    }

    fn send(&mut self, chain: &Gather) -> Sent {
        match chain.send_to(self.fd.as_fd()) {
            Ok(_) => Sent::Gone,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::BADFD | Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Sent::Dead,
                // A header that makes no sense, an interface that is down, no memory: as a frame lost on the way.
                _ => Sent::Gone,
            },
        }
    }
}

/// Whether a failed read says nothing of the next. `EFAULT` comes once when an interface is taken away.
fn passes(error: &io::Error) -> bool {
    let passing = [Errno::AGAIN, Errno::NOMEM, Errno::NOBUFS, Errno::FAULT];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// The queues of a tap with several. Those that are not used get no frames, and keep none.
#[derive(Debug)]
pub struct TapQueues(Vec<Arc<OwnedFd>>);

impl TapQueues {
    /// Queue 0 is first.
    pub fn new(queues: Vec<Arc<OwnedFd>>) -> Self {
        TapQueues(queues)
    }
}

impl Steer for TapQueues {
    fn use_pairs(&mut self, pairs: u16) -> bool {
        let done = self.0.iter().zip(0u16..).skip(1).map(|(queue, number)| {
            // Invalid: it is so already.
            matches!(tap::use_queue(&**queue, number < pairs), Ok(()) | Err(Errno::INVAL))
        });
        done.fold(true, |all, one| all & one)
    }
}
