//! Policies, compiled and asked.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers outside #[test] functions are test code, too.

use cellblock_policy::simulate::{AUDIT_AARCH64, AUDIT_X86_64, Verdict, verdict};
use cellblock_policy::{Arch, Refusal, Section, compile, with_refusal};

const POLICY: &str = "
include worker
[start]
brk
[serve]
read
mmap: arg2 & ~(PROT_READ|PROT_WRITE) == 0 && arg3 == MAP_PRIVATE|MAP_ANONYMOUS
fcntl: arg1.low == F_GETFL || arg1.low == F_SETFL && arg2 == O_NONBLOCK
ioctl: arg1 == 0x5401
ioctl: arg1 > 0x100000000 && arg1 <= 0x100000002
exit_group # the end
[vhost-user]
munmap
";
const WORKER: &str = "write\n[start]\ngetrandom\n[serve]\nepoll_wait\nread: arg0 == 3\n";

fn program(section: Section) -> Vec<u8> {
    compile(POLICY, &[("worker", WORKER)], Arch::X86_64, section).unwrap()
}

fn asked(section: Section, call: i64, arguments: &[u64]) -> bool {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    match verdict(&program(section), AUDIT_X86_64, call as u32, all) {
        Verdict::Allow => true,
        Verdict::KillProcess => false,
        other => panic!("{other:?}"),
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_program_allows_its_lines_and_nothing_else() {
    use Section::{Serve, Start};
    for section in [Serve, Start] {
        assert!(asked(section, libc::SYS_read, &[9]), "an unconditional line beats a conditional one");
        assert!(asked(section, libc::SYS_write, &[]));
        assert!(asked(section, libc::SYS_epoll_wait, &[]));
        assert!(asked(section, libc::SYS_mmap, &[0, 4096, 3, 0x22]));
        assert!(!asked(section, libc::SYS_mmap, &[0, 4096, 7, 0x22]));
        assert!(!asked(section, libc::SYS_mmap, &[0, 4096, 1 << 40, 0x22]));
        assert!(!asked(section, libc::SYS_mmap, &[0, 4096, 3, 1]));
        assert!(asked(section, libc::SYS_fcntl, &[3, 3, 99]));
        assert!(asked(section, libc::SYS_fcntl, &[3, 0xffff_ffff_0000_0004, 0o4000]));
        assert!(!asked(section, libc::SYS_fcntl, &[3, 4, 0]));
        assert!(asked(section, libc::SYS_ioctl, &[0, 0x5401]));
        assert!(!asked(section, libc::SYS_ioctl, &[0, 0x1_0000_5401]));
        assert!(asked(section, libc::SYS_ioctl, &[0, 0x1_0000_0002]));
        assert!(!asked(section, libc::SYS_ioctl, &[0, 0x1_0000_0003]));
        assert!(!asked(section, libc::SYS_ioctl, &[0, 0x1_0000_0000]));
        assert!(!asked(section, libc::SYS_openat, &[]));
        assert!(!asked(section, libc::SYS_read | 0x4000_0000, &[]), "the x32 entry");
    }
    assert!(asked(Start, libc::SYS_brk, &[]) && !asked(Serve, libc::SYS_brk, &[]));
    assert!(asked(Start, libc::SYS_getrandom, &[]) && !asked(Serve, libc::SYS_getrandom, &[]));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_another_vmm_needs_is_allowed_to_its_workers_alone() {
    use Section::{Serve, Start, VhostUser};
    assert!(asked(VhostUser, libc::SYS_munmap, &[]) && asked(Start, libc::SYS_munmap, &[]));
    assert!(!asked(Serve, libc::SYS_munmap, &[]));
    assert!(asked(VhostUser, libc::SYS_read, &[9]), "what it serves with, it has there, too");
    assert!(!asked(VhostUser, libc::SYS_brk, &[]));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn only_the_start_program_can_exec_and_close_the_sandbox() {
    use Section::{Serve, Start};
    assert!(asked(Start, libc::SYS_execveat, &[4, 1, 2, 3, 0x1000]));
    assert!(!asked(Start, libc::SYS_execveat, &[5, 1, 2, 3, 0x1000]));
    assert!(!asked(Start, libc::SYS_execveat, &[4, 1, 2, 3, 0]));
    assert!(asked(Start, libc::SYS_seccomp, &[1, 3]));
    for call in [libc::SYS_execveat, libc::SYS_seccomp, libc::SYS_prctl, libc::SYS_landlock_restrict_self] {
        assert!(!asked(Serve, call, &[4, 1, 2, 3, 0x1000]));
    }
}

#[test]
fn another_architecture_is_killed() {
    let program = program(Section::Serve);
    assert_eq!(verdict(&program, AUDIT_AARCH64, 0, [0; 6]), Verdict::KillProcess);
    let arm = compile("read", &[], Arch::Aarch64, Section::Serve).unwrap();
    assert_eq!(verdict(&arm, AUDIT_AARCH64, 63, [0; 6]), Verdict::Allow);
}

#[test]
fn a_refusal_can_be_logged_instead() {
    let logged = with_refusal(&program(Section::Serve), Refusal::Log);
    assert_eq!(verdict(&logged, AUDIT_X86_64, 57, [0; 6]), Verdict::Other(0x7ffc_0000));
    assert_eq!(verdict(&logged, AUDIT_AARCH64, 57, [0; 6]), Verdict::KillProcess);
    assert_eq!(with_refusal(&logged, Refusal::Kill), logged, "only what kills is replaced");
}

#[test]
fn mistakes_name_file_and_line() {
    let error = |text: &str| {
        compile(text, &[("worker", "foo = 1")], Arch::X86_64, Section::Serve).unwrap_err().to_string()
    };
    assert_eq!(error("\n\nread: arg9 == 1").split(": ").next(), Some("policy:3"));
    assert_eq!(error("[serve]\ninclude worker").split(": ").next(), Some("worker:1"));
    assert!(error("include nothing").contains("there is no fragment \"nothing\""));
    assert!(error("[run]").contains("only [start], [serve] and [vhost-user]"));
    assert!(error("no_such_call").contains("no_such_call"), "{}", error("no_such_call"));
}

#[test]
fn includes_that_loop_are_refused() {
    let error = compile("include a", &[("a", "include a")], Arch::X86_64, Section::Serve).unwrap_err();
    assert!(error.to_string().contains("include each other"));
}

/// Every number, of a policy long enough for far jumps.
#[test]
fn the_search_finds_each_call_and_no_other() {
    let text = include_str!("../../../vmm/jail/policy/x86_64/spawner.policy");
    let program = compile(text, &[], Arch::X86_64, Section::Serve).unwrap();
    let asked = |number| verdict(&program, AUDIT_X86_64, number, [0; 6]);
    let allowed =
        (0..1000).chain(0x4000_0000..0x4000_03e8).filter(|number| asked(*number) == Verdict::Allow).count();
    let lines = |conditional: bool| {
        let names =
            text.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty());
        names.filter(|line| line.contains(':') == conditional).count()
    };
    // Of those with conditions some allow all-zero arguments: openat, mprotect; nothing else is allowed.
    assert!((lines(false)..=lines(false) + lines(true)).contains(&allowed), "{allowed}");
    for number in 0..1000 {
        assert!(matches!(asked(number), Verdict::Allow | Verdict::KillProcess), "{number}");
    }
}
