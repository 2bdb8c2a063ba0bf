//! Mounts, namespaces, ids and capabilities.

use libc::{EINVAL, ENOSPC, EPERM};

use crate::Case;
use crate::attempt::{Attempt, Own, any, at, call, text};

const NO_CAPS: &[(i32, &str)] = &[(EPERM, "caps")];

pub(super) const CASES: &[Case] = &[
    Case::new("mount_tmpfs", |_| mount(c"none", c"/", c"tmpfs", 0), NO_CAPS),
    Case::new("mount_proc", |_| mount(c"proc", c"/", c"proc", 0), NO_CAPS),
    Case::new("remount_writable", |_| mount(c"none", c"/", c"tmpfs", libc::MS_REMOUNT), NO_CAPS),
    Case::new("bind_mount", |_| mount(c"/", c"/", c"none", libc::MS_BIND | libc::MS_REC), NO_CAPS),
    // MNT_EXPIRE: never done to one's own root.
    Case::new("unmount_root", |_| call(libc::SYS_umount2, [text(c"/"), libc::MNT_EXPIRE as usize]), NO_CAPS),
    Case::new("pivot_root", |_| call(libc::SYS_pivot_root, [text(c"."), text(c".")]), NO_CAPS),
    Case::new("open_file_system", |_| call(libc::SYS_fsopen, [text(c"proc"), 0]), NO_CAPS),
    Case::new(
        "clone_mount_tree",
        |_| call(libc::SYS_open_tree, [libc::AT_FDCWD as usize, text(c"/"), 1]),
        NO_CAPS,
    ),
    Case::new("change_mount_attributes", mount_attributes, NO_CAPS),
    // With all capabilities in it, a wide part of the kernel would be open again.
    Case::new("new_user_namespace", |_| unshare(libc::CLONE_NEWUSER), &[(ENOSPC, "user")]),
    Case::new("new_mount_namespace", |_| unshare(libc::CLONE_NEWNS), NO_CAPS),
    Case::new("new_network_namespace", |_| unshare(libc::CLONE_NEWNET), NO_CAPS),
    Case::new("new_pid_namespace", |_| unshare(libc::CLONE_NEWPID), NO_CAPS),
    Case::new("new_cgroup_namespace", |_| unshare(libc::CLONE_NEWCGROUP), NO_CAPS),
    Case::new(
        "new_ipc_and_host_name",
        |_| any([unshare(libc::CLONE_NEWIPC), unshare(libc::CLONE_NEWUTS)]),
        NO_CAPS,
    ),
    Case::new(
        "enter_namespaces_of_peer",
        enter_peers,
        &[(EPERM, "caps"), (EINVAL, "no namespace can be named")],
    ),
    Case::new("network_namespace_of_socket", socket_namespace, &[(EPERM, "caps")]),
    // Of a negative length, at which the kernel looks second.
    Case::new("set_host_name", |_| call(libc::SYS_sethostname, [text(c"mine"), -1i32 as usize]), NO_CAPS),
    Case::new(
        "become_root",
        |_| any([call(libc::SYS_setuid, [0]), call(libc::SYS_setresuid, [0, 0, 0])]),
        &[(EINVAL, "user"), (EPERM, "caps")],
    ),
    Case::new(
        "become_root_group",
        |_| call(libc::SYS_setresgid, [0, 0, 0]),
        &[(EINVAL, "user"), (EPERM, "caps")],
    ),
    Case::new("become_root_for_files", |_| file_id(0), &[(EINVAL, "user")]),
    Case::new("join_groups", join_groups, NO_CAPS),
    Case::new("raise_capabilities", raise, NO_CAPS),
    Case::new(
        "raise_ambient_capability",
        |_| call(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, 2, 21, 0, 0]),
        NO_CAPS,
    ),
    Case::new(
        "keep_capabilities",
        |_| call(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, 0, 0, 0, 0]),
        NO_CAPS,
    ),
    Case::new(
        "drop_no_new_privs",
        |_| call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 0, 0, 0, 0]),
        &[(EINVAL, "no-new-privs")],
    ),
];

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: &std::ffi::CStr,
    flags: libc::c_ulong,
) -> Attempt {
    call(libc::SYS_mount, [text(source), text(target), text(kind), flags as usize, 0])
}

/// `struct mount_attr`: no longer read-only.
fn mount_attributes(_: &Own) -> Attempt {
    let attributes = [0u64, 1, 0, 0];
    let arguments = [libc::AT_FDCWD as usize, text(c"/"), 0, at(&attributes), size_of_val(&attributes)];
    call(libc::SYS_mount_setattr, arguments)
}

fn unshare(flags: i32) -> Attempt {
    call(libc::SYS_unshare, [flags as usize])
}

/// By whatever it holds.
fn enter_peers(own: &Own) -> Attempt {
    let fds = own.granted.iter().chain([&own.control]);
    any(fds.map(|fd| call(libc::SYS_setns, [*fd as usize, 0])))
}

/// The supervisor made its control socket in the host's network.
fn socket_namespace(own: &Own) -> Attempt {
    const SIOCGSKNS: usize = 0x894c;
    call(libc::SYS_ioctl, [own.control as usize, SIOCGSKNS])
}

/// setfsuid answers with the id before, whatever it did: the second answer tells.
fn file_id(wanted: usize) -> Attempt {
    call(libc::SYS_setfsuid, [wanted])?;
    let now = call(libc::SYS_setfsuid, [usize::MAX])?;
    if now == wanted as i64 { Ok(now) } else { Err(crate::Held::Errno(EINVAL)) }
}

fn join_groups(_: &Own) -> Attempt {
    let groups = [0u32, 6];
    call(libc::SYS_setgroups, [groups.len(), at(&groups)])
}

/// All capabilities, by capset(2) of version 3.
fn raise(_: &Own) -> Attempt {
    let (header, data) = ([0x2008_0522u32, 0], [!0u32, !0, 0, !0, !0, 0]);
    call(libc::SYS_capset, [at(&header), at(&data)])
}
