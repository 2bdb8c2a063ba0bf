//! The same program in fewer instructions: what a program costs its process at its start is converting, compiling and checking it, which
//! Linux does anew for each process. Code that seccompiler and the search generate has returns and jumps for every step; here each
//! jump goes as far as it leads at once, equal returns become one, what is loaded already is not loaded again, and what nothing leads to goes.

use crate::RET_K;
use crate::dispatch::Instruction;

const JUMP: u16 = 0x05;
const LOAD_WORD: u16 = 0x20;
/// The class of all jumps (linux/bpf_common.h).
const JUMPS: u16 = 0x05;
/// A conditional jump reaches so far.
const REACH: usize = 255;

const fn is_conditional(instruction: &Instruction) -> bool {
    instruction.code & 0x07 == JUMPS && instruction.code != JUMP
}

/// `program`, which jumps forwards alone and ends every way with a return, without what it can do without. One that does not is left as
/// it is.
pub(crate) fn shorten(mut program: Vec<Instruction>) -> Vec<Instruction> {
    while let Some(next) = shortened(&program).filter(|next| *next != program) {
        program = next;
    }
    program
}

/// One pass; `None` where an instruction leads out of the program.
fn shortened(program: &[Instruction]) -> Option<Vec<Instruction>> {
    let known = loaded(program)?;
    let mut changed = program.to_vec();
    for (at, (instruction, known)) in changed.iter_mut().zip(&known).enumerate() {
        if instruction.code == JUMP {
            let to = lands(program, at)?;
            let target = program.get(to)?;
            match target.code {
                RET_K => *instruction = *target,
                _ => instruction.k = u32::try_from(to - at - 1).ok()?,
            }
        } else if is_conditional(instruction) {
            instruction.jt = further(program, at, instruction.jt, *known)?;
            instruction.jf = further(program, at, instruction.jf, *known)?;
        }
    }
    sweep(&changed)
}

/// Where a jump from `at` by `distance` may go at once: past jumps, past a load of the word `known`, and to the last return in reach that
/// is equal to the one it leads to.
fn further(program: &[Instruction], at: usize, distance: u8, known: Option<u32>) -> Option<u8> {
    let mut to = lands(program, at + 1 + usize::from(distance))?;
    let mut target = program.get(to)?;
    while target.code == LOAD_WORD && known == Some(target.k) {
        to = lands(program, to + 1)?;
        target = program.get(to)?;
    }
    if target.code == RET_K {
        let mut reach = program.iter().enumerate().take(at + 2 + REACH).skip(at + 1);
        to = reach.rfind(|(_, other)| *other == target).map_or(to, |(other, _)| other);
    }
    Some(u8::try_from(to - at - 1).unwrap_or(distance))
}

/// Where one that is at `at` goes without doing anything.
fn lands(program: &[Instruction], mut at: usize) -> Option<usize> {
    while program.get(at)?.code == JUMP {
        at = at + 1 + program.get(at)?.k as usize;
    }
    Some(at)
}

/// For each instruction: the word that is in the accumulator whichever way leads there, if it is one. The search, which is first, has loaded
/// what no load here names.
fn loaded(program: &[Instruction]) -> Option<Vec<Option<u32>>> {
    let mut known: Vec<Option<Option<u32>>> = vec![None; program.len()];
    *known.first_mut()? = Some(None);
    for (at, instruction) in program.iter().enumerate() {
        let Some(before) = known.get(at).copied().flatten() else { continue };
        let after = match instruction.code {
            LOAD_WORD => Some(instruction.k),
            _ if instruction.code & 0x07 == JUMPS => before,
            _ => None,
        };
        for to in leads(instruction, at) {
            let there = known.get_mut(to)?;
            *there = Some(match *there {
                Some(other) if other != after => None,
                _ => after,
            });
        }
    }
    Some(known.into_iter().map(Option::flatten).collect())
}

/// Where the instruction at `at` leads.
fn leads(instruction: &Instruction, at: usize) -> Vec<usize> {
    match instruction.code {
        RET_K => vec![],
        JUMP => vec![at + 1 + instruction.k as usize],
        _ if is_conditional(instruction) => {
            vec![at + 1 + usize::from(instruction.jt), at + 1 + usize::from(instruction.jf)]
        }
        _ => vec![at + 1],
    }
}

/// Without what nothing leads to, and without jumps to the next instruction.
fn sweep(program: &[Instruction]) -> Option<Vec<Instruction>> {
    let mut needed = vec![false; program.len()];
    *needed.first_mut()? = true;
    for (at, instruction) in program.iter().enumerate() {
        if needed.get(at) == Some(&true) {
            for to in leads(instruction, at) {
                *needed.get_mut(to)? = true;
            }
        }
    }
    let is_idle = |instruction: &Instruction| instruction.code == JUMP && instruction.k == 0;
    let stays: Vec<bool> =
        needed.iter().zip(program).map(|(needed, instruction)| *needed && !is_idle(instruction)).collect();
    // Of the instructions before each.
    let mut place = Vec::with_capacity(program.len() + 1);
    let mut count = 0;
    for stays in &stays {
        place.push(count);
        count += usize::from(*stays);
    }
    let distance = |from: usize, by: usize| Some(place.get(from + 1 + by)? - place.get(from)? - 1);
    let mut swept = Vec::with_capacity(count);
    for (at, instruction) in program.iter().enumerate().filter(|(at, _)| stays.get(*at) == Some(&true)) {
        let mut moved = *instruction;
        if moved.code == JUMP {
            moved.k = u32::try_from(distance(at, moved.k as usize)?).ok()?;
        } else if is_conditional(&moved) {
            moved.jt = u8::try_from(distance(at, moved.jt.into())?).ok()?;
            moved.jf = u8::try_from(distance(at, moved.jf.into())?).ok()?;
        }
        swept.push(moved);
    }
    Some(swept)
}
