//! Workers die, hang, stumble and are upgraded under a Linux guest that checks all that it does (in the emulated host): it
//! notices pauses, and nothing else.
//!
//! `CELLBLOCK_CHAOS_KILLS` says how many deaths there are (40), `CELLBLOCK_CHAOS_SEED` from which seed on, and
//! `CELLBLOCK_CHAOS_UPGRADES=1` that there are upgrades between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cellblock_e2e::deaths::Fate;
use cellblock_e2e::dice::{Dice, setting};
use cellblock_e2e::lab::Plan;
use cellblock_e2e::processes::{Process, descendants};
use cellblock_e2e::repeats::repeats;
use cellblock_e2e::tap::Tap;
use cellblock_e2e::{Lab, Line, Vm};

const KILLS: usize = 40;
/// After so many, whatever the supervisor takes once is taken.
const WARM_UP: usize = 15;
const HOST: &str = "192.168.70.1";
/// The most bytes that come again at one restart.
const REACH: usize = 8192;

/// What the guest does at a time, until there is /tmp/stop; each counts its rounds, and those that were wrong. The line feeds are for the
/// reader: the guest gets one line for each function.
const WORK: &[&str] = &[
    // A disk, through the page cache and past it.
    r#"churn() { n=0; bad=0; until [ -e /tmp/stop ]; do
dd if=/dev/urandom of=/tmp/p$1 bs=64k count=4 status=none;
dd if=/tmp/p$1 of=/dev/$1 bs=16k seek=$((n % 8 * 16)) $2 conv=fsync,notrunc status=none || bad=$((bad + 1));
echo 3 >/proc/sys/vm/drop_caches;
dd if=/dev/$1 bs=64k skip=$((n % 8 * 4)) count=4 status=none | cmp - /tmp/p$1 || bad=$((bad + 1));
n=$((n + 1)); done; echo "DID $1 rounds=$n bad=$bad" >>/tmp/did; }"#,
    // TCP out: the host compares. In: the guest does.
    r#"send() { n=0; until [ -e /tmp/stop ]; do nc 192.168.70.1 $1 </tmp/f >/dev/null; n=$((n + 1)); done; echo "DID sent rounds=$n bad=0" >>/tmp/did; }"#,
    r#"get() { n=0; bad=0; until [ -e /tmp/stop ]; do
nc 192.168.70.1 $1 </dev/null >/tmp/g; cmp /tmp/g /tmp/f || bad=$((bad + 1));
n=$((n + 1)); done; echo "DID got rounds=$n bad=$bad" >>/tmp/did; }"#,
    r#"sock() { n=0; until [ -e /tmp/stop ]; do vsock send 6000 200000 >>/tmp/vsock; n=$((n + 1)); done; echo "DID vsock rounds=$n bad=0" >>/tmp/did; }"#,
    r#"random() { n=0; bad=0; until [ -e /tmp/stop ]; do
[ $(dd if=/dev/hwrng bs=64 count=4 iflag=fullblock status=none | wc -c) = 256 ] || bad=$((bad + 1));
n=$((n + 1)); usleep 5000; done; echo "DID entropy rounds=$n bad=$bad" >>/tmp/did; }"#,
    r#"number() { n=0; until [ -e /tmp/stop ]; do n=$((n + 1)); echo "line $n of the $1"; usleep 10000; done; echo "DID $1 rounds=$n bad=0" >>/tmp/did; }"#,
];

/// What TCP connections carry: `seq 1 40000`.
fn numbers() -> Vec<u8> {
    let mut text = String::new();
    (1..=40000).for_each(|number| writeln!(text, "{number}").unwrap());
    text.into_bytes()
}

/// The number after `name=` in the guest's line.
fn number(line: &str, name: &str) -> usize {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// The host's ends of the guest's connections, each served for ever by a thread.
struct Peers {
    /// Connections that brought all of [`numbers`], and others.
    whole: Arc<AtomicUsize>,
    broken: Arc<AtomicUsize>,
    takes: u16,
    gives: u16,
}

impl Peers {
    fn serve(vsock: &Path) -> Peers {
        let (whole, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let taker = TcpListener::bind((HOST, 0)).unwrap();
        let giver = TcpListener::bind((HOST, 0)).unwrap();
        let echo = UnixListener::bind(format!("{}_6000", vsock.display())).unwrap();
        let (takes, gives) = (taker.local_addr().unwrap().port(), giver.local_addr().unwrap().port());
        let counts = (Arc::clone(&whole), Arc::clone(&broken));
        thread::spawn(move || {
            let wanted = numbers();
            for stream in taker.incoming() {
                let mut bytes = vec![];
                let _ = stream.unwrap().read_to_end(&mut bytes);
                let count = if bytes == wanted { &counts.0 } else { &counts.1 };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        thread::spawn(move || {
            let bytes = numbers();
            giver.incoming().for_each(|stream| drop(stream.unwrap().write_all(&bytes)));
        });
        thread::spawn(move || {
            for stream in echo.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut chunk = vec![0; 1 << 16];
                    // A stream whose worker died ends; what the guest makes of that is told by the guest.
                    while let Ok(count @ 1..) = stream.read(&mut chunk) {
                        if stream.write_all(&chunk[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Peers { whole, broken, takes, gives }
    }
}

/// What a process holds: descriptors, threads, private memory in KiB.
fn holdings(pid: i32) -> (usize, usize, usize) {
    let process = Process(pid);
    let memory = process.status("RssAnon").unwrap();
    let memory = memory.trim_end_matches(" kB").parse().unwrap();
    (process.files().unwrap().len(), process.threads().unwrap().len(), memory)
}

/// Has another process take over from a worker while the guest uses it. One that does not come to rest in time, on a slow host,
/// goes on.
fn upgrade(plan: &Plan<'_>, name: &str, kind: &str) -> (String, usize) {
    match plan.tell("upgrade", &[name]) {
        Ok(_) => (format!("{kind} Upgraded"), 0),
        Err(why) if why.contains("did not come to rest in time") => (format!("{kind} NotUpgraded"), 0),
        Err(why) => panic!("{name}: {why}"),
    }
}

/// Has a worker end in some way, and waits until its successor serves; in one of eight cases that is ended on its way there. How many
/// ended.
fn strike(vm: &mut Vm, plan: &Plan<'_>, dice: &mut Dice) -> (String, usize) {
    // One that was upgraded has no file that would tell it as a worker.
    let tree = vm.processes(plan.id()).unwrap();
    let spawner = tree.pid("spawner").unwrap();
    let children = descendants(spawner).unwrap();
    let rows = tree.processes.into_iter().filter(|row| children.contains(&row.pid));
    let victims: Vec<_> = rows.map(|row| (row.process, row.pid)).collect();
    assert!(
        !victims.is_empty(),
        "no worker lives\n--- output\n{}\n--- messages\n{}",
        vm.output(),
        vm.messages()
    );
    let (name, pid) = victims[dice.roll(victims.len() as u64) as usize].clone();
    let numbered = name.rsplit_once('-').filter(|(_, number)| number.parse::<u32>().is_ok());
    let kind = numbered.map_or(&*name, |(kind, _)| kind).to_owned();
    let upgrades = if setting("CELLBLOCK_CHAOS_UPGRADES").unwrap() == Some(1) { 2 } else { 0 };
    let fate = match dice.roll(16 + upgrades) {
        16 | 17 => return upgrade(plan, &name, &kind),
        0..=3 => Fate::Crashed,
        4 | 5 => Fate::Paused(20 + dice.roll(150)),
        6 => Fate::Stopped,
        _ => Fate::Killed,
    };
    // One that hangs is found after a while.
    let again = dice.roll(8) == 0 && fate != Fate::Stopped;
    vm.skip_messages();
    fate.befall(pid).unwrap();
    let what = format!("{kind} {fate:?}");
    if let Fate::Paused(_) = fate {
        return (what, 0);
    }
    if fate == Fate::Crashed {
        // Each worker is asked for its counters, which wakes it.
        vm.processes(plan.id()).unwrap();
    }
    if !again {
        vm.next_message("its successor serves").unwrap();
        return (what, 1);
    }
    let others: Vec<_> = victims.iter().map(|(_, pid)| *pid).collect();
    let successor = loop {
        match descendants(spawner).unwrap().into_iter().find(|pid| !others.contains(pid)) {
            Some(pid) => break pid,
            None => thread::sleep(Duration::from_micros(500)),
        }
    };
    thread::sleep(Duration::from_micros(dice.roll(20_000)));
    Fate::Killed.befall(successor).unwrap();
    for _ in 0..2 {
        vm.next_message("it is replaced").unwrap();
    }
    vm.processes(plan.id()).unwrap();
    (format!("{what}, and its successor"), 2)
}

#[test]
fn a_guest_that_checks_all_it_does_does_not_notice_that_workers_die() {
    let Some(lab) = Lab::with_images("chaos") else { return };
    let mut dice = Dice::seeded("CELLBLOCK_CHAOS_SEED").unwrap();
    let kills = setting("CELLBLOCK_CHAOS_KILLS").unwrap().map_or(KILLS, |kills| kills as usize);
    println!("CELLBLOCK_CHAOS_KILLS={kills}");

    let Some(_tap) = Tap::create(&lab, "e2e0", &format!("{HOST}/24")) else { return };
    let vsock = lab.sockets("sockets").join("v");
    let console_path = lab.folder().join("console");
    let images = ["one.img", "two.img"].map(|name| lab.image(name, &vec![0; 8 << 20]));
    let disks = images.iter().map(|image| format!("--disk=path={},queues=2", image.display()));
    let plan = lab
        .linux("vmlinux", "load,commands")
        .with(disks)
        .with(["--rng", "--net", "tap=e2e0,queues=2", "--cpus", "2", "--memory", "256M"])
        .with([format!("--vsock=cid=3,path={}", vsock.display())])
        .with([format!("--console=socket={}", console_path.display())]);
    let mut vm = plan.start();
    let peers = Peers::serve(&vsock);
    let mut console = Line::connect(&console_path).unwrap();
    vm.expect("CELLBLOCK-WAITS").unwrap();
    for function in WORK {
        vm.type_in(&format!("{}\n", function.replace('\n', " "))).unwrap();
    }
    vm.type_in(
        "dmesg -n 1; opens /dev/hvc0; exec 3<>/dev/hvc0; stty -F /dev/hvc0 raw -echo; seq 1 40000 >/tmp/f; \
         ip link set eth0 up; ip addr add 192.168.70.2/24 dev eth0; echo up >&3; tell UP\n",
    )
    .unwrap();
    vm.expect("CELLBLOCK-UP").unwrap();
    console.expect("up").unwrap();
    let Peers { takes, gives, .. } = peers;
    vm.type_in(&format!(
        "{{ churn vda & churn vdb oflag=direct & send {takes} & get {gives} & sock & random & number console >&3 & \
         tell NUMBERS; number serial; wait; sleep 1; cat /tmp/did; tell DONE; }} 2>/tmp/errors &\n"
    ))
    .unwrap();
    vm.expect("CELLBLOCK-NUMBERS").unwrap();
    vm.expect("line 1 of the serial").unwrap();

    let tree = vm.processes(plan.id()).unwrap();
    let (supervisor, spawner) = (tree.pid("supervisor").unwrap(), tree.pid("spawner").unwrap());
    let (mut deaths, mut tally, mut before) = (0, BTreeMap::<String, usize>::new(), None);
    while deaths < kills {
        thread::sleep(Duration::from_millis(dice.roll(120)));
        let (what, died) = strike(&mut vm, &plan, &mut dice);
        deaths += died;
        *tally.entry(what.split([',', '(']).next().unwrap().to_owned()).or_default() += 1;
        if before.is_none() && deaths >= WARM_UP.min(kills / 2) {
            vm.processes(plan.id()).unwrap();
            before = Some([vm.pid().as_raw_pid(), supervisor, spawner].map(holdings));
        }
    }
    println!("{deaths} deaths: {tally:?}");
    vm.processes(plan.id()).unwrap();
    let after = [vm.pid().as_raw_pid(), supervisor, spawner].map(holdings);
    vm.type_in("touch /tmp/stop\n").unwrap();
    vm.expect("CELLBLOCK-DONE").unwrap();

    let output = vm.output().replace('\r', "");
    let mut wrong = vec![];
    let mut rounds = BTreeMap::new();
    for line in output.lines().filter(|line| line.starts_with("DID ")) {
        println!("{line}");
        rounds.insert(line.split(' ').nth(1).unwrap().to_owned(), number(line, "rounds"));
        if number(line, "rounds") < 2 || number(line, "bad") > 0 {
            wrong.push(line.to_owned());
        }
    }
    let names = ["console", "entropy", "got", "sent", "serial", "vda", "vdb", "vsock"];
    assert_eq!(rounds.keys().collect::<Vec<_>>(), names, "{output}");
    let (whole, broken) = (peers.whole.load(Ordering::Relaxed), peers.broken.load(Ordering::Relaxed));
    println!("TCP: {whole} connections brought all, {broken} did not");
    if broken > 0 || whole != rounds["sent"] {
        wrong.push(format!("of {} connections {whole} brought all, {broken} did not", rounds["sent"]));
    }
    let lines = |name: &str| -> String {
        (1..=rounds[name]).map(|line| format!("line {line} of the {name}\n")).collect()
    };
    let serial = output.split_once("CELLBLOCK-NUMBERS\n").unwrap().1.split_once("DID ").unwrap().0;
    let console = console.text().replace('\r', "");
    let heard = [("serial", serial), ("console", console.split_once("up\n").unwrap().1)];
    for (name, heard) in heard {
        match repeats(lines(name).as_bytes(), heard.as_bytes(), REACH) {
            Ok(count) => println!("{name}: {count} times bytes came again"),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }

    // A stream is whole, or its end says that it is not.
    vm.type_in(
        "tell WHOLE=$(grep -c 'got=200000 wrong=0 writer=0' /tmp/vsock); \
         tell CUT=$(grep 'wrong=0 writer=0' /tmp/vsock | grep -vc got=200000); tell WRONG=$(grep got= /tmp/vsock | grep -vc wrong=0); \
         sort /tmp/vsock /tmp/errors | uniq -c | tail -n 30\n",
    )
    .unwrap();
    println!("vsock: {} streams of {} were whole", vm.expect_line("WHOLE=").unwrap(), rounds["vsock"]);
    for kind in ["CUT=", "WRONG="] {
        let count = vm.expect_line(kind).unwrap();
        if count != "0" {
            wrong.push(format!("vsock: {kind}{count}"));
        }
    }
    vm.type_in(
        "dmesg | grep -iE 'i/o error|virtio.*(broken|needs reset)|hung|blocked for more' >/tmp/complaints; \
         head -n 20 /tmp/complaints; tell COMPLAINTS=$(wc -l </tmp/complaints)\n",
    )
    .unwrap();
    let complaints = vm.expect_line("COMPLAINTS=").unwrap();
    if complaints != "0" {
        wrong.push(format!("the guest's kernel complains of {complaints} things"));
    }
    for ((process, before), after) in
        ["front", "supervisor", "spawner"].iter().zip(before.unwrap()).zip(after)
    {
        println!("{process}: descriptors, threads, KiB of memory: {before:?}, then {after:?}");
        if (before.0, before.1) != (after.0, after.1) || after.2 > before.2 + 512 {
            wrong.push(format!("{process} had {before:?}, and has {after:?}"));
        }
    }
    vm.type_in("quit\n").unwrap();
    let ended = vm.wait().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}\n{ended}");
    ended.assert(0, "guest rebooted");
    assert!(
        !ended.messages.contains("two of its workers ended on") && !ended.messages.contains(" failed"),
        "{ended}"
    );
    assert_eq!(ended.messages.matches("it is replaced").count(), deaths, "{ended}");
}
