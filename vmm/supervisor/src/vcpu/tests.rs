//! A scripted guest on one side, a worker's end of the ring on the other; the actor between them is the one that ships.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cellblock_bus::{Bus, Range, Target};
use cellblock_channel::doorbell::{self, Ringer};
use cellblock_channel::{Kick, Requester, Responder, memory};
use cellblock_hypervisor::mock::{Mock, MockVm, Step};
use cellblock_hypervisor::{ExitData, Hypervisor, KickHandle, UnboundVcpu, Vm, VmExit};
use cellblock_ring::layout;
use cellblock_wire::slot::{Action, Op, Reply, Request, Space};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Command, Ended, Mouth, Report, VcpuActor};
use crate::exits::Exits;
use crate::pace::Means;
use crate::proxy::{Proxy, Successor};

const PORT: u16 = 0x3f8;

/// What the other end of the ring does with a request; `None` = stay silent.
type Answer = fn(&Request) -> Option<Reply>;

fn honest(request: &Request) -> Option<Reply> {
    let Request { sequence, generation, op, offset, .. } = *request;
    let data = if op == Op::Read { 0xa0 + offset } else { 0 };
    Some(Reply { sequence, generation, action: Action::None, data })
}

struct Rig {
    vm: MockVm,
    kick: Kick,
    entry_kick: KickHandle,
    commands: Sender<Command>,
    reports: Receiver<Report>,
    requests: memory::Sealed<memory::Writable>,
    served: Arc<Exits>,
    exits: Arc<AtomicU64>,
    actor: thread::JoinHandle<Ended>,
    done: Arc<AtomicBool>,
    workers: Vec<thread::JoinHandle<()>>,
}

/// A worker of incarnation `generation` that answers with `answer`; its replies' memory.
fn worker(
    requests: &memory::Sealed<memory::Writable>,
    generation: u32,
    answer: Answer,
    stop: Arc<AtomicBool>,
) -> (memory::Sealed<memory::ReadOnly>, thread::JoinHandle<()>) {
    let replies = memory::create_replies("test", memory::bytes(layout::reply_words(1))).unwrap();
    let requests_there = memory::open_read(&requests.fd, memory::bytes(layout::request_words(1))).unwrap();
    let replies_there = memory::open_write(&replies.fd, memory::bytes(layout::reply_words(1))).unwrap();
    let mut responder = Responder::new(requests_there, replies_there, 1, generation).unwrap();
    let work = move || {
        while !stop.load(Ordering::Relaxed) {
            while let Some(Ok((lane, request))) = responder.next() {
                if let Some(reply) = answer(&request) {
                    responder.reply(lane, &reply);
                }
            }
            thread::yield_now();
        }
    };
    (replies, thread::spawn(work))
}

/// An actor that runs `script` against a worker that answers with `answer`.
fn rig(script: Vec<Step>, answer: Answer, patience: Duration) -> Rig {
    let requests = memory::create_requests("test", memory::bytes(layout::request_words(1))).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (replies, first) = worker(&requests, 1, answer, Arc::clone(&done));
    let (ringer, _bell): (Ringer, _) = doorbell::pair().unwrap();
    let ringer = Arc::new(ringer);

    let mut bus = Bus::default();
    bus.insert(Range { space: Space::Pio, base: PORT.into(), length: 8 }, Target { device: 0, region: 0 })
        .unwrap();
    let (served, exits): (Arc<Exits>, Arc<AtomicU64>) = Default::default();
    let requester = Requester::new(requests.map.clone(), replies.map, 0, 1).unwrap();
    let proxy =
        Proxy::new(None, requester, Arc::clone(&ringer), Arc::clone(&served), Means::default(), patience)
            .allowing(&[Action::Reset]);
    let vm = Mock::new([script]).create_vm(&()).unwrap();
    let unbound = vm.create_vcpu(0).unwrap();
    let entry_kick = unbound.kick_handle();
    let (kick, kicks) = cellblock_channel::kick();
    let (commands, mailbox) = bounded(8);
    commands.send(Command::Begin).unwrap();
    let (reporter, reports) = bounded(8);
    let mouth = Mouth { id: 0, reporter, ringer };
    let counted = Arc::clone(&exits);
    let actor = thread::spawn(move || {
        let vcpu = unbound.bind().unwrap();
        let (bus, proxies) = (Arc::new(bus), vec![proxy]);
        let exits = counted;
        VcpuActor { vcpu, bus, proxies, kicks, commands: mailbox, mouth, exits, stats: None, pause: None }
            .run()
    });
    Rig {
        vm,
        kick,
        entry_kick,
        commands,
        reports,
        requests,
        served,
        exits,
        actor,
        done,
        workers: vec![first],
    }
}

impl Rig {
    fn end(self) -> (Ended, MockVm) {
        let ended = self.actor.join().unwrap();
        self.done.store(true, Ordering::Relaxed);
        self.workers.into_iter().for_each(|worker| worker.join().unwrap());
        (ended, self.vm)
    }

    /// The worker is taken as dead, and one that answers with `answer` succeeds it.
    fn succeed(&mut self, generation: u32, answer: Answer) {
        let (replies, worker) = worker(&self.requests, generation, answer, Arc::clone(&self.done));
        self.workers.push(worker);
        self.hand_over(replies, generation);
    }

    fn hand_over(&mut self, replies: memory::Sealed<memory::ReadOnly>, generation: u32) {
        let successor = Successor {
            died: true,
            fell: true,
            requests: self.requests.map.clone(),
            replies: replies.map,
            generation,
        };
        self.commands.send(Command::Succeed { device: 0, successor }).unwrap();
        self.kick.bump();
    }

    fn trouble(&self) -> String {
        match self.reports.recv_timeout(LONG).unwrap() {
            Report::Trouble { device: 0, generation: 1, blame } => blame.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

fn pio(port: u16, write: bool, data: &[u8]) -> Step {
    Step::exit(VmExit::Pio { port, write, data: ExitData::from_slice(data) })
}

fn off() -> Step {
    Step::exit(VmExit::Shutdown)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_read_is_answered_by_the_worker_and_a_write_waits_for_it() {
    let script =
        vec![pio(PORT + 5, false, &[0]), pio(PORT, true, b"x"), pio(PORT + 4, false, &[0; 4]), off()];
    let rig = rig(script, honest, LONG);
    let (served, exits) = (Arc::clone(&rig.served), Arc::clone(&rig.exits));
    let (ended, vm) = rig.end();
    assert_eq!(ended, Ended::PowerOff);
    assert_eq!(vm.replies(0), [ExitData::from_slice(&[0xa5]), ExitData::from_slice(&[0xa4, 0, 0, 0])]);
    assert_eq!((served.count(), exits.load(Ordering::Relaxed)), (3, 4));
}

#[test]
fn what_nobody_claims_reads_all_ones_and_asks_no_worker() {
    // Beside the device, across its end, and of a width that no slot carries.
    let script =
        vec![pio(0x80, false, &[0; 2]), pio(PORT + 6, false, &[0; 4]), pio(PORT, false, &[0; 3]), off()];
    let rig = rig(script, honest, LONG);
    let served = Arc::clone(&rig.served);
    let (ended, vm) = rig.end();
    assert_eq!(ended, Ended::PowerOff);
    assert_eq!(vm.replies(0), [2, 4, 3].map(|width| ExitData::from_elem(0xff, width)));
    assert_eq!(served.count(), 0);
}

#[test]
fn an_action_takes_effect_before_the_guest_is_entered_again() {
    let reset: Answer = |request| Some(Reply { action: Action::Reset, ..honest(request)? });
    let (ended, vm) = rig(vec![pio(PORT, false, &[0]), off()], reset, LONG).end();
    assert_eq!((ended, vm.replies(0).len()), (Ended::Reset, 0));
}

#[test]
fn an_action_that_is_not_the_devices_is_not_done_and_its_worker_blamed() {
    let off_at_once: Answer = |request| Some(Reply { action: Action::PowerOff, ..honest(request)? });
    let reset = VmExit::Reset;
    let rig = rig(vec![pio(PORT, false, &[0]), Step::exit(reset)], off_at_once, LONG);
    let Report::Trouble { device: 0, generation: 1, blame } = rig.reports.recv_timeout(LONG).unwrap() else {
        panic!("not told")
    };
    assert!(blame.to_string().contains("PowerOff"), "{blame}");
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0).len()), (Ended::Reset, 1));
}

#[test]
fn a_silent_worker_is_told_of_at_the_deadline_and_its_successor_answers() {
    let mut rig = rig(vec![pio(PORT + 2, false, &[0]), off()], |_| None, Duration::from_millis(50));
    // It says so again, and waits on.
    for _ in 0..3 {
        let Report::Late { vcpu: 0, device: 0, generation: 1, request, .. } =
            rig.reports.recv_timeout(LONG).unwrap()
        else {
            panic!("not told")
        };
        assert_eq!(request, "a read of 1 bytes at offset 0x2 of region 0");
    }
    assert!(rig.vm.replies(0).is_empty(), "no invented data");
    rig.succeed(2, honest);
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0)), (Ended::PowerOff, vec![ExitData::from_slice(&[0xa2])]));
}

#[test]
fn a_late_answer_is_an_answer() {
    let slow: Answer = |request| {
        thread::sleep(Duration::from_millis(100));
        honest(request)
    };
    let rig = rig(vec![pio(PORT + 2, false, &[0]), off()], slow, Duration::from_millis(20));
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0)), (Ended::PowerOff, vec![ExitData::from_slice(&[0xa2])]));
}

#[test]
fn a_lie_is_told_of_with_the_field_named_and_the_successor_answers() {
    let future: Answer = |request| Some(Reply { sequence: request.sequence + 1, ..honest(request)? });
    let mut rig = rig(vec![pio(PORT, false, &[0]), off()], future, LONG);
    let reason = rig.trouble();
    assert!(reason.contains("protocol violation") && reason.contains("sequence"), "{reason}");
    rig.succeed(2, honest);
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0)), (Ended::PowerOff, vec![ExitData::from_slice(&[0xa0])]));
}

#[test]
fn a_successor_takes_over_from_a_vcpu_that_waits() {
    let mut rig = rig(vec![pio(PORT + 1, false, &[0]), off()], |_| None, LONG);
    thread::sleep(Duration::from_millis(20));
    rig.succeed(2, honest);
    let reports = rig.reports.clone();
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0)), (Ended::PowerOff, vec![ExitData::from_slice(&[0xa1])]));
    assert!(reports.try_recv().is_err(), "nothing to complain of");
}

#[test]
fn a_request_on_which_two_workers_died_reads_all_ones_and_the_next_is_answered() {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let dies_of_it: Answer = |request| {
        if request.offset == 0 {
            TAKEN.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        honest(request)
    };
    let mut rig = rig(vec![pio(PORT, false, &[0; 2]), pio(PORT + 3, false, &[0]), off()], dies_of_it, LONG);
    for (deaths, answer) in [(1, dies_of_it), (2, honest)] {
        while TAKEN.load(Ordering::Relaxed) < deaths {
            thread::yield_now();
        }
        rig.succeed(deaths as u32 + 1, answer);
    }
    let reports = rig.reports.clone();
    let (ended, vm) = rig.end();
    assert_eq!(ended, Ended::PowerOff);
    assert_eq!(vm.replies(0), [ExitData::from_slice(&[0xff; 2]), ExitData::from_slice(&[0xa3])]);
    let Ok(Report::Poison { device: 0, request }) = reports.try_recv() else { panic!("not told") };
    assert_eq!(request, "a read of 2 bytes at offset 0x0 of region 0");
}

#[test]
fn workers_that_died_before_they_took_a_request_did_not_die_of_it() {
    let mut rig = rig(vec![pio(PORT, false, &[0]), off()], |_| None, LONG);
    thread::sleep(Duration::from_millis(20));
    // One has died of it, perhaps; these are dead from the start.
    for generation in 2..6 {
        let replies = memory::create_replies("test", memory::bytes(layout::reply_words(1))).unwrap();
        rig.hand_over(replies, generation);
    }
    rig.succeed(6, honest);
    let reports = rig.reports.clone();
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0)), (Ended::PowerOff, vec![ExitData::from_slice(&[0xa0])]));
    assert!(reports.try_recv().is_err(), "nothing to complain of");
}

impl Rig {
    fn tell(&self, command: Command) {
        self.commands.send(command).unwrap();
        self.kick.bump();
        self.entry_kick.kick();
    }

    fn paused(&self) -> u32 {
        match self.reports.recv_timeout(LONG).unwrap() {
            Report::Paused { vcpu: 0, number } => number,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pause_comes_between_two_instructions() {
    // The second element of the instruction, too, is served first.
    let exit = |offset| VmExit::Pio { port: PORT + offset, write: false, data: ExitData::from_slice(&[0]) };
    let script = vec![Step::Instruction(vec![exit(0), exit(1)]), pio(PORT + 2, false, &[0]), off()];
    let mut rig = rig(script, |_| None, LONG);
    while rig.exits.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    rig.tell(Command::Pause { number: 4 });
    thread::sleep(Duration::from_millis(20));
    assert!(rig.reports.try_recv().is_err(), "it is paused in the middle of an access");
    rig.succeed(2, honest);
    assert_eq!(rig.paused(), 4);
    let served: Vec<_> = [0xa0, 0xa1].map(|byte| ExitData::from_slice(&[byte])).into();
    assert_eq!(rig.vm.replies(0), served);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.vm.replies(0), served, "it ran while paused");
    // Another order, without the end of the first.
    rig.tell(Command::Pause { number: 5 });
    assert_eq!(rig.paused(), 5);
    rig.tell(Command::Resume);
    let (ended, vm) = rig.end();
    assert_eq!((ended, vm.replies(0).len()), (Ended::PowerOff, 3));
}

#[test]
fn a_vcpu_in_the_guest_is_paused_and_goes_on_where_it_was() {
    let rig = rig(vec![Step::Compute], honest, LONG);
    for number in 0..20 {
        rig.tell(Command::Pause { number });
        assert_eq!(rig.paused(), number);
        rig.tell(Command::Resume);
    }
    rig.tell(Command::Pause { number: 20 });
    rig.tell(Command::Stop);
    assert_eq!(rig.end().0, Ended::Stopped);
}

#[test]
fn a_device_that_is_left_reads_all_ones_until_somebody_answers_again() {
    let script = vec![pio(PORT, false, &[0; 2]), pio(PORT, true, b"x"), pio(PORT + 3, false, &[0]), off()];
    // Of no use: the vCPU waits for a successor.
    let future: Answer = |request| Some(Reply { sequence: request.sequence + 1, ..honest(request)? });
    let rig = rig(script, future, LONG);
    rig.trouble();
    rig.commands.send(Command::Leave { device: 0, generation: 2 }).unwrap();
    rig.kick.bump();
    let (ended, vm) = rig.end();
    assert_eq!(
        (ended, vm.replies(0)),
        (Ended::PowerOff, vec![ExitData::from_slice(&[0xff; 2]), ExitData::from_slice(&[0xff])])
    );

    let mut rig = self::rig(vec![pio(PORT, false, &[0]), pio(PORT + 1, false, &[0]), off()], |_| None, LONG);
    thread::sleep(Duration::from_millis(20));
    rig.commands.send(Command::Leave { device: 0, generation: 2 }).unwrap();
    rig.succeed(3, honest);
    let (ended, vm) = rig.end();
    // The first may have been answered before there was a successor, or after.
    assert!(
        vm.replies(0)[0] == ExitData::from_slice(&[0xff])
            || vm.replies(0)[0] == ExitData::from_slice(&[0xa0])
    );
    assert_eq!((ended, &vm.replies(0)[1]), (Ended::PowerOff, &ExitData::from_slice(&[0xa1])));
}

#[test]
fn a_stop_reaches_a_vcpu_that_waits_for_a_silent_worker() {
    let rig = rig(vec![pio(PORT, false, &[0])], |_| None, LONG);
    thread::sleep(Duration::from_millis(20));
    // A kick without a command is not a stop.
    rig.kick.bump();
    thread::sleep(Duration::from_millis(20));
    assert!(!rig.actor.is_finished());
    rig.commands.send(Command::Stop).unwrap();
    rig.kick.bump();
    let asked = Instant::now();
    assert_eq!(rig.end().0, Ended::Stopped);
    assert!(asked.elapsed() < LONG);
}

#[test]
fn a_stop_reaches_a_vcpu_in_the_guest() {
    let rig = rig(vec![Step::Compute], honest, LONG);
    let entry_kick = rig.vm.create_vcpu(0).unwrap().kick_handle();
    rig.commands.send(Command::Stop).unwrap();
    entry_kick.kick();
    assert_eq!(rig.end().0, Ended::Stopped);
}
