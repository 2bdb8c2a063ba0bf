//! What a program says to a call, without making it: for tests that show that each line of a policy is needed and
//! nothing more is allowed.

/// What a program returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call is made.
    Allow,
    /// The process ends.
    KillProcess,
    /// Another `SECCOMP_RET_*` value.
    Other(u32),
    /// The program does not end in a return, or holds an instruction that seccompiler does not emit.
    Broken,
}

/// `AUDIT_ARCH_X86_64`.
pub const AUDIT_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64`.
pub const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// What `program` says to system call `number` with `arguments`, made on the architecture `audit`.
pub fn verdict(program: &[u8], audit: u32, number: u32, arguments: [u64; 6]) -> Verdict {
    let data = seccomp_data(audit, number, arguments);
    let code: Vec<[u8; 8]> =
        program.chunks_exact(8).map(|c| [c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]).collect();
    let mut accumulator = 0u32;
    let mut at = 0usize;
    while let Some(instruction) = code.get(at) {
        let k = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        let branch = |taken: bool| usize::from(if taken { instruction[2] } else { instruction[3] });
        at += 1;
        match u16::from_le_bytes([instruction[0], instruction[1]]) {
            0x20 => match data.get(k as usize / 4) {
                Some(word) => accumulator = *word,
                None => return Verdict::Broken,
            },
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x45 => at += branch(accumulator & k != 0),
            0x06 => return returned(k),
            _ => return Verdict::Broken,
        }
    }
    Verdict::Broken
}

fn returned(value: u32) -> Verdict {
    match value {
        0x7fff_0000 => Verdict::Allow,
        0x8000_0000 => Verdict::KillProcess,
        other => Verdict::Other(other),
    }
}

/// `struct seccomp_data` as 32-bit words, little-endian: number, architecture, instruction pointer, arguments.
fn seccomp_data(audit: u32, number: u32, arguments: [u64; 6]) -> [u32; 16] {
    let mut data = [0; 16];
    data[0] = number;
    data[1] = audit;
    for (index, argument) in arguments.into_iter().enumerate() {
        data[4 + 2 * index] = argument as u32;
        data[5 + 2 * index] = (argument >> 32) as u32;
    }
    data
}
