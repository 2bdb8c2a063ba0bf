//! The program's own ring, with nothing behind it, while both sides spin.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cellblock_channel::{Requester, Responder, clock, kick, memory};
use cellblock_ring::{Access, Outcome, answer, layout};
use cellblock_wire::slot::{Action, Op, Space};

use super::{BATCH, bind};
use crate::guest::percentile;

const READ: Access = Access { space: Space::Pio, op: Op::Read, size: 1, region: 0, offset: 5, data: 0 };
/// A request to this region is the last.
const END: u32 = 1;
/// Longer than any wait.
const SPIN: Duration = Duration::from_secs(1);

/// The median round trip between CPU `ours` and CPU `theirs`, in ns.
pub(super) fn round_trip(ours: usize, theirs: usize, rounds: u32) -> Result<f64> {
    let (ask, reply) = (memory::bytes(layout::request_words(1)), memory::bytes(layout::reply_words(1)));
    let (requests, replies) =
        (memory::create_requests("requests", ask)?, memory::create_replies("replies", reply)?);
    let (there, back) = (memory::open_read(&requests.fd, ask)?, memory::open_write(&replies.fd, reply)?);
    let mut responder = Responder::new(there, back, 1, 1)?;
    let worker = thread::spawn(move || {
        bind(&[theirs])?;
        loop {
            let Some(next) = responder.next() else {
                std::hint::spin_loop();
                continue;
            };
            let (lane, request) = next?;
            responder.reply(lane, &answer(&request, Action::None, 0x60));
            if request.region == END {
                return anyhow::Ok(());
            }
        }
    });
    bind(&[ours])?;
    let (_kick, mut kicks) = kick();
    let mut requester = Requester::new(requests.map, replies.map, 0, 1)?;
    let mut exchange = |access: &Access| {
        // A responder that spins need not be rung.
        let _ = requester.post(access);
        match requester.wait(&mut kicks, SPIN, clock::deadline_in(2 * SPIN))? {
            Outcome::Replied(_) => Ok(()),
            other => bail!("the ring: {other:?}"),
        }
    };
    exchange(&READ)?;
    let mut samples = Vec::new();
    for _ in 0..rounds / BATCH {
        let start = Instant::now();
        for _ in 0..BATCH {
            exchange(&READ)?;
        }
        samples.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    exchange(&Access { region: END, ..READ })?;
    worker.join().ok().context("the ring's other side")??;
    samples.sort_by(f64::total_cmp);
    Ok(percentile(&samples, 50))
}
