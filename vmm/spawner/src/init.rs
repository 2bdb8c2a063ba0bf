//! Init of the VM's pid namespace: while it lives the workers may live, and with it they end. Apart from the spawner, so that
//! the spawner's death costs the VM no more than the replacement of workers.
//!
//! It has the spawner's jail and does next to nothing: it waits for the end of the spawner, which it tells the supervisor of, and
//! for the supervisor's, with which it ends itself.

use std::os::fd::{AsFd, OwnedFd};

use cellblock_channel::socket::{Control, SocketError};
use cellblock_jail::sys;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::keep_only;
use crate::protocol::{Cause, Event, Refusal, Request};
use crate::service::{BROKEN, ENDED, UNABLE, cause};

/// What init's own life leads to.
enum Next {
    /// The spawner is gone.
    Alone(Cause),
    /// Everything ends.
    End(i32),
}

/// In the jail, as the parent of `spawner`: until the end. `lock` keeps the uid range the VM's as long as a worker can live.
pub(crate) fn run(socket: &Control, spawner: &OwnedFd, lock: Option<&OwnedFd>) -> ! {
    let mut kept = vec![socket.as_fd(), spawner.as_fd()];
    kept.extend(lock.map(AsFd::as_fd));
    let status = match keep_only(&kept) {
        Err(_) => UNABLE,
        Ok(()) => match attend(socket, spawner) {
            Next::End(status) => status,
            Next::Alone(cause) => go_on(socket, cause),
        },
    };
    // Whatever still runs ends now, with pid 1 of its namespace.
    sys::exit_now(status)
}

/// While there is a spawner: it alone reads the socket, whose end is seen here as well.
fn attend(socket: &Control, spawner: &OwnedFd) -> Next {
    loop {
        let mut watched = [PollFd::new(spawner, PollFlags::IN), PollFd::new(socket, PollFlags::empty())];
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Next::End(BROKEN),
        }
        let [ended, closed] = watched.map(|watch| !watch.revents().is_empty());
        if closed {
            return Next::End(ENDED);
        }
        if ended {
            break;
        }
    }
    match waitid(WaitId::PidFd(spawner.as_fd()), WaitIdOptions::EXITED) {
        // Both have said why, or have nobody to say it to.
        Ok(Some(status)) if matches!(status.exit_status(), Some(ENDED | UNABLE)) => Next::End(ENDED),
        Ok(Some(status)) => Next::Alone(cause(&status)),
        Ok(None) | Err(_) => Next::End(BROKEN),
    }
}

/// Without a spawner: says so, and refuses what is asked.
fn go_on(socket: &Control, cause: Cause) -> i32 {
    sys::forget_children();
    let mut answer = Event::Lost(cause);
    loop {
        // A supervisor that does not read loses it.
        let _ = socket.send_message(&answer, &[]);
        answer = loop {
            match poll(&mut [PollFd::new(socket, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return BROKEN,
            }
            match socket.try_recv_message::<Request>(1) {
                Ok((Request::Start { worker, instance, .. }, _)) => {
                    break Event::Refused { worker, instance, reason: Refusal::Lost };
                }
                Ok(_) | Err(SocketError::NotReady) => {}
                Err(SocketError::Closed) => return ENDED,
                Err(_) => return BROKEN,
            }
        };
    }
}
