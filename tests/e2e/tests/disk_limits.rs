//! A disk's rate and ops, held by the cgroup of its worker (`io.max`): what they hold of a worker that does not keep them itself.
//! On a host with cgroup v2 and a disk of its own, `/dev/vda`, which is written to (scripts/host --disk).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests; clippy knows only #[test] functions as such.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cellblock_e2e::{Lab, skip};
use rustix::fs::OFlags;

const DISK: &str = "/dev/vda";
const BLOCK: usize = 64 << 10;

/// `O_DIRECT` wants its memory so.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Bytes a second, written to the disk for so long as fast as it takes them.
fn written(time: Duration) -> u64 {
    let disk = File::options().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(DISK).unwrap();
    let (block, started, mut bytes) = (Block([0x5a; BLOCK]), Instant::now(), 0);
    while started.elapsed() < time {
        disk.write_all_at(&block.0, bytes % (32 << 20)).unwrap();
        bytes += BLOCK as u64;
    }
    (bytes as f64 / started.elapsed().as_secs_f64()) as u64
}

/// The group of process `pid`.
fn group(pid: &str) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    Path::new("/sys/fs/cgroup").join(text.trim().trim_start_matches("0::/"))
}

fn enter(group: &Path) {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

#[test]
fn a_disks_group_holds_its_worker_to_its_limits() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return skip("no cgroup v2 here");
    }
    if !Path::new(DISK).exists() {
        return skip(&format!("no {DISK} to write to (scripts/host --disk)"));
    }
    let Some(lab) = Lab::with_guests("disk-limits") else { return };
    let number = fs::metadata(DISK).unwrap().rdev();
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    let plan = lab.guest("hello").with(["--disk", &format!("path={DISK},rate=1M,ops=500")]);
    let (_vm, tree) = plan.idle();
    let block = group(&tree.pid("block").unwrap().to_string());
    let limits = block.join("io.max");
    let declared = format!("{number} rbps=2097152 wbps=2097152 riops=1000 wiops=1000\n");
    assert_eq!(fs::read_to_string(&limits).unwrap(), declared);

    // A process in the group does what a compromised worker would.
    let own = group("self");
    let free = written(Duration::from_secs(2));
    enter(&block);
    let held = written(Duration::from_secs(6));
    enter(&own);
    eprintln!("written a second: {free} bytes outside the group, {held} in it, of 2097152 that are declared");
    assert!(free > 3 * 2_097_152, "{free} bytes a second say nothing about the limit");
    assert!((1_000_000..=2_600_000).contains(&held), "{held} bytes a second in a group of 2097152");

    // What is held by nothing any more is told.
    let security = || {
        let program = lab.places().program();
        let output = Command::new(program).args(["ps", plan.id(), "--security"]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (fine, text) = security();
    assert!(fine && !text.contains("DIFFERS"), "{text}");
    fs::write(&limits, format!("{number} rbps=max wbps=max riops=max wiops=max")).unwrap();
    let (fine, text) = security();
    assert!(!fine && text.contains("DIFFERS: its group's io.max is \"\", without"), "{text}");
}

#[test]
fn a_disk_that_no_group_can_limit_is_told() {
    let Some(lab) = Lab::with_guests("disk-note") else { return };
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return skip("no cgroup v2 here");
    }
    let image = lab.image("disk.img", &[0; 4096]);
    let limited = lab.guest("poweroff").with(["--disk", &format!("path={},rate=1M", image.display())]);
    let told = limited.start().wait().unwrap();
    told.assert(
        0,
        "block: its worker keeps the rate and ops, no cgroup holds it to them: its file system has no block",
    );
    let plan = lab.guest("poweroff").with(["--disk", &format!("path={}", image.display())]);
    let told = plan.start().wait().unwrap();
    assert!(!told.messages.contains("no cgroup holds"), "{told}");
}
