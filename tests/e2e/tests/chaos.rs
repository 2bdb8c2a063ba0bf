//! Workers are killed under a Linux guest that checks what it writes (in the emulated host): it notices nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cellblock_e2e::Lab;
use rustix::process::{Pid, Signal, kill_process};

/// How many workers die.
const KILLS: usize = 30;
/// Whose death costs nothing that the guest could see: what the serial port's worker has read and not yet given is lost with it.
const MORTAL: [&str; 6] = ["block", "block-2", "entropy", "rtc", "i8042", "acpi-power"];

/// Writes two disks through the page cache and past it, from two processes at a time, and compares; says how many rounds were
/// right, and what the kernel had to complain of.
const CHURN: &str = r#"churn() { n=0; bad=0; while [ ! -e /tmp/stop ]; do \
dd if=/dev/urandom of=/tmp/p$1 bs=64k count=8 status=none; \
dd if=/tmp/p$1 of=/dev/$1 bs=16k seek=$((n % 8 * 32)) $2 conv=fsync,notrunc status=none || bad=$((bad + 1)); \
echo 3 >/proc/sys/vm/drop_caches; \
dd if=/dev/$1 bs=64k skip=$((n % 8 * 8)) count=8 status=none | cmp - /tmp/p$1 || bad=$((bad + 1)); \
n=$((n + 1)); done; echo CHURN $1 rounds=$n bad=$bad; }
"#;

/// The next of a row of numbers that look like chance.
fn next(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 33) as usize
}

/// The number after `name=` in the guest's line.
fn number(line: &str, name: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

#[test]
fn a_guest_that_checks_its_disks_does_not_notice_that_workers_are_killed() {
    let Some(lab) = Lab::with_images("chaos") else { return };
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let images = ["one.img", "two.img"].map(|name| lab.image(name, &vec![0; 8 << 20]));
    let disks = images.iter().map(|image| format!("--disk=path={},queues=2", image.display()));
    let plan = lab.linux("vmlinux", "load,commands").with(disks).with(["--rng"]);
    let mut vm = plan.start();
    vm.expect("CELLBLOCK-WAITS").unwrap();
    vm.type_in(&CHURN.replace("\\\n", "")).unwrap();
    vm.type_in("{ churn vda & churn vdb oflag=direct & wait; echo CHURNED; } &\n").unwrap();
    vm.type_in(
        "while [ ! -e /tmp/stop ]; do dd if=/dev/hwrng of=/dev/null bs=64 count=4 status=none; done &\n",
    )
    .unwrap();

    for kill in 1..=KILLS {
        thread::sleep(Duration::from_millis(200 + next(&mut seed) as u64 % 300));
        let name = MORTAL[next(&mut seed) % MORTAL.len()];
        let pid = vm.processes(plan.id()).unwrap().pid(name).unwrap();
        // Another signal does nothing: each worker is init of its own pid namespace.
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        println!("kill {kill}: {name}");
    }
    vm.processes(plan.id()).unwrap();
    vm.type_in("touch /tmp/stop\n").unwrap();
    vm.expect("CHURNED").unwrap();
    let output = vm.output();
    for disk in ["vda", "vdb"] {
        let line = output.lines().find(|line| line.contains(&format!("CHURN {disk} "))).unwrap();
        println!("{line}");
        assert!(number(line, "rounds") > 2, "{disk}: {line}");
        assert_eq!(number(line, "bad"), 0, "{disk}: {line}");
    }
    vm.type_in("echo ERRORS=$(dmesg | grep -ciE 'i/o error|virtio.*(broken|needs reset)|hung')\n").unwrap();
    assert_eq!(vm.expect_line("ERRORS=").unwrap(), "0");
    vm.type_in("quit\n").unwrap();
    let ended = vm.wait().unwrap();
    ended.assert(0, "guest rebooted");
    assert_eq!(ended.messages.matches("its successor serves").count(), KILLS, "{ended}");
}
