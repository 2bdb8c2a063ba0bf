//! Against plain directories; the real thing is tried in the emulated host (tests/e2e).

use super::*;

fn fake(controllers: &str) -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), controllers).unwrap();
    fs::write(mount.path().join("cgroup.subtree_control"), "").unwrap();
    mount
}

#[test]
fn limits_are_written_where_the_host_delegates() {
    let mount = fake("cpuset cpu io memory pids\n");
    let hierarchy = Hierarchy::find_under(&[Path::new("/nowhere"), mount.path()], "", true).unwrap();
    let vm = hierarchy.vm("vm-1", None).unwrap();
    fs::create_dir(vm.path().join("serial")).unwrap();
    fs::write(vm.path().join("serial/cgroup.procs"), "").unwrap();
    assert!(hierarchy.offers_io() && vm.limits_disks());
    let limits = GroupLimits { memory: 1 << 20, pids: 3, cpu_us: 50_000 };
    let disk = IoLimit { device: (8, 0), bytes: Some(5), operations: Some(7) };
    vm.worker("serial", &limits, &[disk]).unwrap();
    let read = |file: &str| fs::read_to_string(vm.path().join("serial").join(file)).unwrap();
    assert_eq!(read("memory.max"), "1048576");
    assert_eq!(read("pids.max"), "3");
    assert_eq!(read("cpu.max"), "50000 100000");
    let handed_down = fs::read_to_string(mount.path().join("cellblock/cgroup.subtree_control")).unwrap();
    assert_eq!(handed_down, "+memory +pids +cpu +io");
    assert_eq!(fs::read_to_string(vm.io_max("serial")).unwrap(), "8:0 rbps=5 wbps=5 riops=7 wiops=7");
}

#[test]
fn a_host_without_io_limits_the_rest() {
    let mount = fake("cpu memory pids");
    let hierarchy = Hierarchy::find_under(&[mount.path()], "", true).unwrap();
    let vm = hierarchy.vm("vm-1", None).unwrap();
    assert!(!hierarchy.offers_io() && !vm.limits_disks());
    fs::create_dir(vm.path().join("block")).unwrap();
    fs::write(vm.path().join("block/cgroup.procs"), "").unwrap();
    let limits = GroupLimits { memory: 1 << 20, pids: 3, cpu_us: 50_000 };
    vm.worker("block", &limits, &[IoLimit { device: (8, 0), bytes: Some(5), operations: None }]).unwrap();
    assert!(vm.path().join("block/memory.max").exists() && !vm.io_max("block").exists());
    let handed_down = fs::read_to_string(mount.path().join("cellblock/cgroup.subtree_control")).unwrap();
    assert_eq!(handed_down, "+memory +pids +cpu");
}

#[test]
fn a_user_gets_the_group_that_it_is_in() {
    let mount = fake("memory pids cpu");
    let own = mount.path().join("user.slice/me");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("cgroup.controllers"), "memory pids cpu").unwrap();
    fs::write(own.join("cgroup.subtree_control"), "").unwrap();
    fs::write(own.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
    fs::write(own.join("cgroup.type"), "domain\n").unwrap();
    let hierarchy =
        Hierarchy::find_under(&[mount.path()], "1:name=systemd:/x\n0::/user.slice/me\n", false).unwrap();
    assert_eq!(hierarchy.vm("a", None).unwrap().path(), own.join("cellblock/a"));
    assert_eq!(fs::read_to_string(own.join("cellblock-front/cgroup.procs")).unwrap(), "0", "it steps aside");
}

#[test]
fn a_host_without_says_what_it_lacks() {
    let none = Hierarchy::find_under(&[Path::new("/nowhere")], "", true).unwrap_err();
    assert!(none.to_string().contains("only v1"), "{none}");
    let mount = fake("cpu");
    let partial = Hierarchy::find_under(&[mount.path()], "", true).unwrap_err();
    assert!(partial.to_string().contains("lacks memory, pids"), "{partial}");
}
