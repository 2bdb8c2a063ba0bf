//! The balloon, as Debian's driver inflates it (in the emulated host): what the guest has, and what the host has of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_e2e::vm::patience;
use cellblock_e2e::{Lab, Vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A guest that does what it is told, and its host's view.
struct Guest<'a> {
    lab: &'a Lab,
    id: String,
    vm: Vm,
    said: usize,
    /// The worker, which holds a descriptor of guest memory.
    worker: i32,
}

impl<'a> Guest<'a> {
    fn start(lab: &'a Lab, memory: &str, balloon: &str) -> Self {
        let option = format!("--balloon={balloon}");
        let plan = lab.linux("vmlinux", "load,commands").with(["--memory", memory, &option]);
        let mut vm = plan.start();
        vm.expect("CELLBLOCK-WAITS").unwrap();
        let worker = vm.processes(plan.id()).unwrap().pid("balloon").unwrap();
        let mut guest = Guest { lab, id: plan.id().to_owned(), vm, said: 0, worker };
        guest.does("mkdir /fill; mount -t tmpfs -o size=100% none /fill");
        guest
    }

    /// What the guest prints for `command`.
    fn does(&mut self, command: &str) -> String {
        self.said += 1;
        let (begin, end) = (format!("<<{}", self.said), format!("{}>>", self.said));
        // Cut in two, should the terminal echo it.
        self.vm.type_in(&format!("echo '<''<{0}'; {command}; echo '{0}>''>'\n", self.said)).unwrap();
        self.vm.expect(&end).unwrap();
        let output = self.vm.output();
        let said = output.split(&begin).last().and_then(|rest| rest.split(&end).next());
        said.expect("between its marks").trim().to_owned()
    }

    /// A line of `/proc/meminfo`, in bytes.
    fn meminfo(&mut self, field: &str) -> u64 {
        let line = self.does(&format!("grep {field}: /proc/meminfo"));
        let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no {field} in {line:?}")) << 10
    }

    fn fills(&mut self, mib: u64) -> String {
        self.does(&format!(
            "dd if=/dev/zero of=/fill/file$RANDOM bs=1M count={mib} status=none && echo filled || echo failed"
        ))
    }

    fn frees(&mut self) {
        self.does("rm /fill/*");
    }

    /// Bytes that the host has for guest memory.
    fn held(&self) -> u64 {
        let folder = format!("/proc/{}/fd", self.worker);
        let memory = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path()).find(|path| {
            fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("cellblock-guest-ram"))
        });
        let memory = memory.unwrap_or_else(|| panic!("{folder} has no guest memory"));
        fs::metadata(memory).unwrap().blocks() * 512
    }

    /// `cellblock balloon`, with a size or without.
    fn balloon(&self, size: &[&str]) -> Value {
        let mut command = Command::new(self.lab.places().program());
        let output = command.args(["balloon", &self.id, "--json"]).args(size).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let vm = |vm: &Vm| format!("--- output\n{}\n--- messages\n{}", vm.output(), vm.messages());
        assert!(output.status.success(), "{said}{}", vm(&self.vm));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the balloon is as `done` says; what it then is.
    fn until(&self, done: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + patience();
        loop {
            let balloon = self.balloon(&[]);
            if done(&balloon) {
                return balloon;
            }
            assert!(Instant::now() < end, "it stays {balloon}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn until_held(&self, most: u64) {
        let end = Instant::now() + patience();
        while self.held() > most {
            assert!(Instant::now() < end, "the host still has {} MiB of it", self.held() / MIB);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Its worker dies, and has a successor.
    fn dies(&mut self) {
        kill_process(Pid::from_raw(self.worker).unwrap(), Signal::KILL).unwrap();
        self.vm.expect_message("device balloon: its successor serves").unwrap();
        self.worker = self.vm.processes(&self.id).unwrap().pid("balloon").unwrap();
    }

    fn ends(mut self) {
        self.vm.type_in("poweroff -f\n").unwrap();
        self.vm.wait().unwrap().assert(0, "guest powered off");
    }
}

fn bytes(balloon: &Value, field: &str) -> u64 {
    balloon[field].as_u64().unwrap_or_else(|| panic!("no {field} in {balloon}"))
}

#[test]
fn the_host_gets_what_the_balloon_holds_and_the_guest_gets_it_back() {
    let Some(lab) = Lab::with_images("balloon") else { return };
    let mut guest = Guest::start(&lab, "256M", "deflate-on-oom=off,reporting=off");
    assert_eq!(guest.fills(120), "filled");
    guest.frees();
    let (held, total) = (guest.held(), guest.meminfo("MemTotal"));
    assert!(held > 120 * MIB, "{held}");

    let told = guest.until(|balloon| balloon["fresh"] == true);
    assert_eq!((bytes(&told, "target"), bytes(&told, "actual")), (0, 0));
    let statistics = &told["statistics"];
    assert_eq!(bytes(statistics, "total"), total, "{statistics}");
    let free = guest.meminfo("MemFree");
    assert!(bytes(statistics, "free").abs_diff(free) < 4 * MIB, "{statistics}, free {free}");
    assert!(
        bytes(statistics, "available") <= total && bytes(statistics, "minor-faults") > 100,
        "{statistics}"
    );

    assert_eq!(bytes(&guest.balloon(&["128M"]), "target"), 128 * MIB);
    guest.until(|balloon| bytes(balloon, "actual") == 128 * MIB);
    assert_eq!(guest.meminfo("MemTotal"), total - 128 * MIB);
    let after = guest.held();
    eprintln!("inflated by 128 MiB: the host had {} MiB, has {} MiB", held / MIB, after / MIB);
    assert!(after + 90 * MIB < held, "the host had {held}, has {after}");

    guest.dies();
    let told = guest.until(|balloon| balloon["fresh"] == true);
    assert_eq!((bytes(&told, "target"), bytes(&told, "actual")), (128 * MIB, 128 * MIB));
    assert_eq!(guest.meminfo("MemTotal"), total - 128 * MIB);
    assert!(guest.held() < after + 4 * MIB, "the host had {after}, has {}", guest.held());

    guest.balloon(&["0"]);
    guest.until(|balloon| bytes(balloon, "actual") == 0);
    assert_eq!(guest.meminfo("MemTotal"), total);
    assert_eq!(guest.fills(150), "filled", "it can be used again");
    assert!(guest.held() > 150 * MIB);
    let told = guest.until(|balloon| balloon["fresh"] == true);
    assert!(bytes(&told["statistics"], "free") + 100 * MIB < total, "{told}");
    guest.ends();
}

#[test]
fn a_guest_in_need_takes_memory_back() {
    let Some(lab) = Lab::with_images("oom") else { return };
    for (option, taken_back) in [("on", true), ("off", false)] {
        let balloon = format!("size=48M,deflate-on-oom={option},reporting=off");
        let mut guest = Guest::start(&lab, "128M", &balloon);
        guest.until(|balloon| bytes(balloon, "actual") == 48 * MIB);
        let more = guest.meminfo("MemAvailable") / MIB + 24;
        if !taken_back {
            // The balloon does not give way, so somebody has to; who is left depends on luck.
            guest.vm.type_in(&format!("dd if=/dev/zero of=/fill/file bs=1M count={more}\n")).unwrap();
            guest.vm.expect("Out of memory: Killed process").unwrap();
            continue;
        }
        let filled = guest.fills(more);
        let killed = guest.does("dmesg | grep -c 'Killed process'");
        let actual = bytes(&guest.balloon(&[]), "actual");
        eprintln!("{more} MiB {filled}, {killed} killed, the balloon holds {} MiB", actual / MIB);
        assert_eq!((filled.as_str(), killed.as_str()), ("filled", "0"));
        assert!(actual <= 32 * MIB, "{actual}");
        guest.ends();
    }
}

#[test]
fn what_the_guest_does_not_use_is_the_hosts() {
    let Some(lab) = Lab::with_images("reporting") else { return };
    for (option, reported) in [("on", true), ("off", false)] {
        let mut guest = Guest::start(&lab, "256M", &format!("reporting={option}"));
        assert_eq!(guest.fills(120), "filled");
        let held = guest.held();
        assert!(held > 120 * MIB, "{held}");
        guest.dies();
        guest.frees();
        if reported {
            guest.until_held(held - 80 * MIB);
        } else {
            // The driver reports two seconds after pages were freed.
            std::thread::sleep(Duration::from_secs(8));
            assert!(guest.held() + 4 * MIB > held, "{} of {held}", guest.held());
        }
        eprintln!("reporting={option}: the host had {} MiB, has {} MiB", held / MIB, guest.held() / MIB);
        guest.ends();
    }
}
