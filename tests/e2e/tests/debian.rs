//! A whole Debian with systemd on a virtio disk, in the emulated host: to its login, at work, and off again. The host's disks
//! are copies of its root file system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cellblock_e2e::debian::PATIENCE;
use cellblock_e2e::lab::Plan;
use cellblock_e2e::{Debian, Lab, places};

const DISKS: [&str; 2] = ["/dev/vda", "/dev/vdb"];

/// A tree of files with their checksums: written, and read again from the disk itself.
const FILE_WORK: &str = "set -e; rm -rf /root/work; mkdir /root/work; cd /root/work; cp -r /etc copy; \
    for i in 1 2 3 4; do dd if=/dev/urandom of=random$i bs=1M count=$i status=none; done; \
    rm -r copy/systemd; mv random4 copy/; \
    find . -type f ! -name sums -exec sha256sum {} + >sums; sync; echo 3 >/proc/sys/vm/drop_caches; \
    sha256sum --quiet -c sums; wc -l <sums; cd; set +e";

/// To the shell. The emulator now and then corrupts a guest: a boot that fails is repeated once, and says so.
fn log_in(plan: &Plan<'_>) -> Debian {
    let start = || {
        let mut debian = Debian::boot(plan)?;
        debian.log_in()?;
        anyhow::Ok(debian)
    };
    match start() {
        Err(why) if places::in_emulated_host() => {
            eprintln!("RETRY: the first boot broke: {why:?}");
            start().unwrap()
        }
        debian => debian.unwrap(),
    }
}

#[track_caller]
fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
    text
}

/// The host finds the file system of `disk` whole, without a journal to replay, and in it the files that [`FILE_WORK`] wrote.
#[track_caller]
fn assert_whole(disk: &str) {
    sh(&format!("e2fsck -fn {disk}"));
    sh(&format!(
        "mkdir -p /tmp/mnt && mount -t ext4 -o ro {disk} /tmp/mnt && cd /tmp/mnt/root/work && sha256sum -c sums >/dev/null; \
         status=$?; cd /; umount /tmp/mnt; exit $status"
    ));
}

/// A tap of the test's own, where Debian expects its host.
struct Tap<'a>(&'a Lab);

impl<'a> Tap<'a> {
    fn create(lab: &'a Lab) -> Self {
        sh(&format!("{} tap create celltest --address 10.77.0.1/24", lab.places().program().display()));
        Tap(lab)
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.0.places().program()).args(["tap", "delete", "celltest"]).status();
    }
}

/// Debian sends `file` to the host by TCP, and gets it back the same.
fn send_and_get_back(debian: &mut Debian, file: &str) {
    let listener = TcpListener::bind("10.77.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        bytes
    });
    let sum = debian
        .must(&format!(
            "nc -N 10.77.0.1 {port} <{file} >/tmp/back && cmp {file} /tmp/back && sha256sum </tmp/back"
        ))
        .unwrap();
    std::fs::write("/tmp/came", host.join().unwrap()).unwrap();
    assert_eq!(sh("sha256sum </tmp/came").trim(), sum);
}

/// Who connects to the socket at `path` and asks for a port reaches Debian's program there, which sends all back.
fn reach_by_socket(debian: &mut Debian, path: &Path) {
    debian.must("(socat VSOCK-LISTEN:1024 EXEC:cat >/dev/null 2>&1 &); sleep 2").unwrap();
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "CONNECT 1024").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    assert!(answer.starts_with("OK "), "{answer:?}");
    let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let bytes = sent.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == sent, "{} bytes came back, not the {} sent", got.len(), sent.len());
}

/// Waits until `done`, which tells what it saw.
#[track_caller]
fn await_that(what: &str, done: impl Fn() -> (bool, String)) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (is_so, seen) = done();
        if is_so {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {seen}");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn debian_boots_to_its_login_and_uses_every_device() {
    let Some(lab) = Lab::with_debian("debian", &DISKS[..1]) else { return };
    let _tap = Tap::create(&lab);
    let (console, socket) = (lab.folder().join("console"), lab.sockets("sockets").join("v"));
    let plan = lab
        .debian(DISKS[0], ",id=root")
        .with(["--rng", "--memory", "512M", "--net", "tap=celltest", "--balloon", "--console"])
        .with([format!("file={}", console.display())])
        .with(["--vsock".to_owned(), format!("cid=3,path={}", socket.display())]);
    let mut debian = log_in(&plan);
    assert_eq!(debian.run("systemctl is-system-running --wait").unwrap(), (0, "running".into()));
    assert_eq!(
        debian.must("findmnt -no SOURCE,FSTYPE / && cat /sys/block/vda/serial").unwrap(),
        "/dev/vda ext4\nroot"
    );
    assert!(debian.must("cat /sys/class/misc/hw_random/rng_current").unwrap().starts_with("virtio_rng"));
    assert_eq!(debian.must("head -c 100000 /dev/hwrng | wc -c").unwrap(), "100000");
    let files: u32 = debian.must(FILE_WORK).unwrap().parse().unwrap();
    assert!(files > 100, "{files} files");
    let pinged = debian.must("ping -c 3 -W 20 10.77.0.1").unwrap();
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    send_and_get_back(&mut debian, "/root/work/random3");
    reach_by_socket(&mut debian, &socket);
    await_that("a login on the console", || {
        let said = std::fs::read_to_string(&console).unwrap();
        (said.contains("hvc0") && said.contains("cellblock login: "), said)
    });
    let balloon = format!("{} balloon {}", lab.places().program().display(), plan.id());
    sh(&format!("{balloon} 64M"));
    await_that("a balloon of 64 MiB", || {
        let shown = sh(&format!("{balloon} --json"));
        (shown.contains("\"actual\": 67108864"), shown)
    });
    let tree = debian.vm().processes(plan.id()).unwrap();
    for worker in lab.places().workers() {
        let row = tree.processes.iter().find(|row| row.process == worker);
        assert_eq!(row.map(|row| row.state.as_str()), Some("serving"), "{worker}");
    }
    debian.power_off().unwrap().assert(0, "guest powered off");
    assert_whole(DISKS[0]);
}

#[test]
fn debian_with_two_processors_obeys_its_power_button() {
    let Some(lab) = Lab::with_debian("debian2", &DISKS[..1]) else { return };
    let plan = lab.debian(DISKS[0], ",queues=2").with([
        "--rng",
        "--memory",
        "512M",
        "--cpus",
        "2",
        "--stop-timeout",
        "200",
    ]);
    let mut debian = log_in(&plan);
    assert_eq!(debian.must("nproc; ls /sys/block/vda/mq | wc -l").unwrap(), "2\n2");
    let both = "for cpu in 0 1; do taskset -c $cpu dd if=/dev/zero of=/root/cpu$cpu bs=64k count=64 oflag=direct conv=fsync status=none & \
        done; wait; cmp /root/cpu0 /root/cpu1 && grep virtio0 /proc/interrupts";
    let interrupts = debian.must(both).unwrap();
    assert!(!interrupts.is_empty(), "the disk has no interrupt");
    debian.must(FILE_WORK).unwrap();
    assert_eq!(
        debian.must("systemctl is-system-running --wait; systemctl is-active systemd-logind").unwrap(),
        "running\nactive"
    );
    debian.press_power_button().unwrap().assert(0, "guest powered off");
    assert_whole(DISKS[0]);
}

#[test]
fn two_debians_run_at_once_on_disks_of_their_own() {
    let Some(lab) = Lab::with_debian("debians", &DISKS) else { return };
    let plans = DISKS.map(|disk| lab.debian(disk, "").with(["--rng", "--memory", "384M"]));
    let mut both = plans.each_ref().map(log_in);
    for (debian, disk) in both.iter_mut().zip(DISKS) {
        debian.must(FILE_WORK).unwrap();
        debian.must(&format!("echo {disk} >/root/mine")).unwrap();
    }
    // Neither can be started again on a disk that is in use.
    lab.debian(DISKS[0], "").start().wait().unwrap().assert(3, "is in use");
    for ((mut debian, plan), disk) in both.into_iter().zip(&plans).zip(DISKS) {
        assert!(debian.vm().processes(plan.id()).unwrap().serves());
        assert_eq!(
            debian.must("cd /root/work && sha256sum --quiet -c sums && cat /root/mine").unwrap(),
            disk
        );
        debian.power_off().unwrap().assert(0, "guest powered off");
        assert_whole(disk);
    }
}
