//! Code that nobody gave it, and more memory, descriptors and files than it may have.

use libc::{EACCES, EFBIG, EMFILE, ENOMEM, EPERM};

use crate::Case;
use crate::attempt::{Attempt, Own, call, close, text};

/// Memory may not become executable (`PR_SET_MDWE`).
const NO_NEW_CODE: &[(i32, &str)] =
    &[(EACCES, "no memory gains execution"), (EPERM, "no memory gains execution")];
const PAGE: usize = 4096;
const ANONYMOUS: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
const READ_WRITE: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
const ALL: usize = READ_WRITE | libc::PROT_EXEC as usize;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "map_code",
        |_| forget(call(libc::SYS_mmap, [0, PAGE, ALL, ANONYMOUS, usize::MAX, 0])),
        NO_NEW_CODE,
    )
    .since(6, 3),
    Case::new("make_data_code", make_code, NO_NEW_CODE).since(6, 3),
    Case::new(
        "take_back_code_rule",
        |_| call(libc::SYS_prctl, [65, 0, 0, 0, 0]),
        &[(EPERM, "no memory gains execution"), (libc::EINVAL, "the kernel has none")],
    ),
    Case::new(
        "memory_bomb",
        |_| call(libc::SYS_mmap, [0, 1 << 36, READ_WRITE, ANONYMOUS, usize::MAX, 0]),
        &[(ENOMEM, "rlimits")],
    ),
    Case::new(
        "heap_bomb",
        |_| {
            let mut maps = Vec::new();
            let end = loop {
                match call(
                    libc::SYS_mmap,
                    [0, 64 << 20, READ_WRITE, ANONYMOUS | libc::MAP_NORESERVE as usize, usize::MAX, 0],
                ) {
                    Ok(map) if maps.len() < 1000 => maps.push(map),
                    end => break end,
                }
            };
            for map in maps {
                let _ = call(libc::SYS_munmap, [map as usize, 64 << 20]);
            }
            end
        },
        &[(ENOMEM, "rlimits")],
    ),
    Case::new("lock_memory", |_| call(libc::SYS_mlockall, [1]), &[(EPERM, "rlimits"), (ENOMEM, "rlimits")]),
    Case::new("memory_in_a_file", memory_file, &[(EFBIG, "rlimits"), (libc::ENOSPC, "rlimits")]),
    Case::new("descriptor_bomb", descriptors, &[(EMFILE, "rlimits")]),
    Case::new("more_descriptors", |_| limit(libc::RLIMIT_NOFILE), &[(EPERM, "caps")]),
    Case::new("more_address_space", |_| limit(libc::RLIMIT_AS), &[(EPERM, "caps")]),
    Case::new("more_processes", |_| limit(libc::RLIMIT_NPROC), &[(EPERM, "caps")]),
    Case::new("larger_files", |_| limit(libc::RLIMIT_FSIZE), &[(EPERM, "caps")]),
    Case::new("core_files", |_| limit(libc::RLIMIT_CORE), &[(EPERM, "caps")]),
];

fn forget(mapped: Attempt) -> Attempt {
    if let Ok(address) = mapped {
        let _ = call(libc::SYS_munmap, [address as usize, PAGE]);
    }
    mapped
}

fn make_code(_: &Own) -> Attempt {
    let address = call(libc::SYS_mmap, [0, PAGE, READ_WRITE, ANONYMOUS, usize::MAX, 0])?;
    let changed =
        call(libc::SYS_mprotect, [address as usize, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as usize]);
    let _ = forget(Ok(address));
    changed
}

/// Bytes in a memfd count for nobody's address space.
fn memory_file(_: &Own) -> Attempt {
    let fd = call(libc::SYS_memfd_create, [text(c"bomb"), 0])?;
    let grown = call(libc::SYS_fallocate, [fd as usize, 0, 0, 1 << 40]);
    close(fd);
    grown
}

fn descriptors(own: &Own) -> Attempt {
    let mut made = Vec::new();
    let end = loop {
        match call(libc::SYS_fcntl, [own.control as usize, libc::F_DUPFD as usize, 0]) {
            Ok(fd) if made.len() < 4096 => made.push(fd),
            end => break end,
        }
    };
    made.into_iter().for_each(close);
    end
}

fn limit(resource: libc::__rlimit_resource_t) -> Attempt {
    let most = [u64::MAX, u64::MAX];
    call(libc::SYS_prlimit64, [0, resource as usize, crate::attempt::at(&most), 0])
}
