//! Doorbells: ringing never blocks, whatever the worker does with its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::os::fd::OwnedFd;
use std::time::Instant;

use cellblock_channel::doorbell::{self, Bell};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

fn rung(bell: &Bell) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn rings_add_up_and_are_silenced_together() {
    let (ringer, bell) = doorbell::pair().unwrap();
    assert!(!rung(&bell));
    for _ in 0..1000 {
        ringer.ring();
    }
    assert!(rung(&bell));
    assert!(bell.silence());
    assert!(!rung(&bell));
    assert!(bell.silence(), "silencing a silent bell does not block");
    ringer.ring();
    assert!(rung(&bell));
}

#[test]
fn a_full_pipe_never_blocks_even_if_the_worker_makes_its_end_blocking() {
    let (ringer, bell) = doorbell::pair().unwrap();
    let flags = fcntl_getfl(&bell).unwrap();
    fcntl_setfl(&bell, flags - OFlags::NONBLOCK).unwrap();
    assert!(fcntl_getfl(&ringer).unwrap().contains(OFlags::NONBLOCK), "the ends are separate open files");
    let start = Instant::now();
    for _ in 0..200_000 {
        ringer.ring();
    }
    assert!(start.elapsed().as_secs() < 20);
    assert!(rung(&bell));
}

#[test]
fn a_dead_workers_bell_can_be_rung_and_a_dead_supervisors_is_seen() {
    let (ringer, bell) = doorbell::pair().unwrap();
    drop(bell);
    ringer.ring();
    let (ringer, bell) = doorbell::pair().unwrap();
    ringer.ring();
    drop(ringer);
    let bell = Bell::from_fd(OwnedFd::from(bell));
    let heard = bell.silence();
    assert!(!heard || !bell.silence(), "the end of the pipe is seen, at once or at the next look");
}
