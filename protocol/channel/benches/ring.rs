//! What the ring costs: `cargo bench -p cellblock-channel`. Prints medians; fails nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::time::{Duration, Instant};

use cellblock_channel::{Requester, Responder, StateWriter, clock, doorbell, kick, memory};
use cellblock_ring::state_page::Shape;
use cellblock_ring::{Access, LaneId, Outcome, answer, layout};
use cellblock_wire::slot::{Action, Op, Reply, Space};
use rustix::event::{PollFd, PollFlags, poll};

const READ: Access = Access { space: Space::Pio, op: Op::Read, size: 1, region: 0, offset: 5, data: 0 };

fn main() {
    for bytes in [16, 256, 4096] {
        println!("commit of {bytes} bytes: {:.0} ns", commit(bytes));
    }
    println!("round trip, both spin: {:.0} ns", round_trip(Duration::from_micros(200), true));
    println!("round trip, futex and doorbell: {:.0} ns", round_trip(Duration::ZERO, false));
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn commit(bytes: usize) -> f64 {
    let shape = Shape::new(2, bytes);
    let sealed = memory::create_state("state", memory::bytes(shape.words())).unwrap();
    let page = memory::open_write(&sealed.fd, memory::bytes(shape.words())).unwrap();
    let (mut writer, _) = StateWriter::open(page, shape, 1).unwrap();
    let device = vec![7; bytes];
    let samples = (1..100).map(|sequence| {
        let reply = Reply { sequence, generation: 1, action: Action::None, data: 0 };
        let start = Instant::now();
        for _ in 0..1000 {
            writer.commit(std::hint::black_box(&device), Some((LaneId::new(0), &reply))).unwrap();
        }
        start.elapsed().as_nanos() as f64 / 1000.0
    });
    median(samples.collect())
}

fn round_trip(spin: Duration, worker_spins: bool) -> f64 {
    let (request_bytes, reply_bytes) =
        (memory::bytes(layout::request_words(1)), memory::bytes(layout::reply_words(1)));
    let requests = memory::create_requests("requests", request_bytes).unwrap();
    let replies = memory::create_replies("replies", reply_bytes).unwrap();
    let (ringer, bell) = doorbell::pair().unwrap();
    let there = memory::open_read(&requests.fd, request_bytes).unwrap();
    let back = memory::open_write(&replies.fd, reply_bytes).unwrap();
    let mut responder = Responder::new(there, back, 1, 1).unwrap();
    let worker = std::thread::spawn(move || {
        loop {
            while let Some(Ok((lane, request))) = responder.next() {
                responder.reply(lane, &answer(&request, Action::None, 1));
                if request.region == 1 {
                    return;
                }
            }
            if worker_spins {
                std::hint::spin_loop();
            } else if responder.prepare_sleep() {
                poll(&mut [PollFd::new(&bell, PollFlags::IN)], None).unwrap();
                bell.silence();
                responder.awake();
            }
        }
    });
    let (_kick, mut kicks) = kick();
    let mut requester = Requester::new(requests.map.clone(), replies.map.clone(), 0, 1).unwrap();
    let mut once = |access: &Access| {
        let start = Instant::now();
        if requester.post(access) {
            ringer.ring();
        }
        let deadline = clock::deadline_in(Duration::from_secs(10));
        assert!(matches!(requester.wait(&mut kicks, spin, deadline), Ok(Outcome::Replied(_))));
        start.elapsed().as_nanos() as f64
    };
    let samples = (0..20_000).map(|_| once(&READ)).collect();
    once(&Access { region: 1, ..READ });
    worker.join().unwrap();
    median(samples)
}
