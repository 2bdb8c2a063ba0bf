//! The way from a system call's number to what is said of it: a binary search instead of seccompiler's chain of
//! comparisons. When a program is installed Linux runs it once for each of its 460 numbers to find those that are always
//! allowed (`seccomp_cache_prepare`); along a chain of 130 that alone takes 0.3 ms of a worker's start.

use crate::{MAX_INSTRUCTIONS, RET_K, RET_KILL_PROCESS};

const RET_ALLOW: u32 = 0x7fff_0000;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;

/// Instructions at the start of any program by seccompiler: load, compare and refuse the architecture, load the number.
pub(crate) const HEADER: usize = 4;

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

impl Instruction {
    const fn new(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    pub(crate) fn bytes(&self) -> [u8; crate::INSTRUCTION_BYTES] {
        let mut bytes = [0; crate::INSTRUCTION_BYTES];
        bytes[..2].copy_from_slice(&self.code.to_le_bytes());
        bytes[2] = self.jt;
        bytes[3] = self.jf;
        bytes[4..].copy_from_slice(&self.k.to_le_bytes());
        bytes
    }
}

/// One allowed call.
pub(crate) struct Call {
    number: u32,
    /// What decides on its arguments; `None`: always allowed. Every way through it ends in a return.
    block: Option<Vec<Instruction>>,
}

impl Call {
    /// Cuts the call out of a program that allows nothing else: header, `if number`, block, return. `None` if it does not
    /// look so.
    pub(crate) fn cut(program: &[Instruction], always: bool) -> Option<Call> {
        let (_, body) = program.split_at_checked(HEADER)?;
        let (first, _) = body.split_first()?;
        let (_, block) = body.split_last()?;
        let block = (!always).then(|| block.to_vec());
        (first.code == JUMP_IF_EQUAL && body.len() > 2).then_some(Call { number: first.k, block })
    }
}

/// What is said of the numbers from `first` up to the next verdict's.
struct Verdict {
    first: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Kill,
    Allow,
    /// The block at this offset from the end of the search.
    Block(usize),
}

/// The whole program, shortened by `shorten`; `None` if it is too long for Linux. The header stays as it is, as
/// [`crate::with_refusal`] needs it.
pub(crate) fn program(
    header: &[Instruction],
    mut calls: Vec<Call>,
    shorten: fn(Vec<Instruction>) -> Vec<Instruction>,
) -> Option<Vec<Instruction>> {
    calls.sort_by_key(|call| call.number);
    let mut blocks: Vec<Instruction> = Vec::new();
    let mut verdicts = vec![Verdict { first: 0, outcome: Outcome::Kill }];
    for call in calls {
        let outcome = match call.block {
            None => Outcome::Allow,
            Some(block) => {
                let outcome = Outcome::Block(blocks.len());
                blocks.extend(block);
                // Where seccompiler would compare the next number.
                blocks.push(Instruction::new(RET_K, 0, 0, RET_KILL_PROCESS));
                outcome
            }
        };
        say(&mut verdicts, call.number, outcome);
        say(&mut verdicts, call.number + 1, Outcome::Kill);
    }
    let search = search(&verdicts);
    let after = search.len();
    let search = search.into_iter().enumerate().map(|(at, step)| step.resolve(after - at - 1));
    let body = shorten(search.chain(blocks).collect());
    let program: Vec<Instruction> = header.iter().copied().chain(body).collect();
    (program.len() <= MAX_INSTRUCTIONS).then_some(program)
}

/// Appends a verdict, or extends the last one.
fn say(verdicts: &mut Vec<Verdict>, first: u32, outcome: Outcome) {
    if let Some(last) = verdicts.last_mut()
        && last.first == first
    {
        verdicts.pop();
    }
    if verdicts.last().is_none_or(|last| last.outcome != outcome) {
        verdicts.push(Verdict { first, outcome });
    }
}

/// An instruction of the search, of which a jump to a block is not resolved yet.
enum Step {
    Done(Instruction),
    ToBlock(usize),
}

impl Step {
    /// `rest` instructions of the search follow.
    fn resolve(self, rest: usize) -> Instruction {
        match self {
            Step::Done(instruction) => instruction,
            Step::ToBlock(offset) => Instruction::new(JUMP, 0, 0, (rest + offset) as u32),
        }
    }
}

fn search(verdicts: &[Verdict]) -> Vec<Step> {
    if let [verdict] = verdicts {
        return vec![match verdict.outcome {
            Outcome::Kill => Step::Done(Instruction::new(RET_K, 0, 0, RET_KILL_PROCESS)),
            Outcome::Allow => Step::Done(Instruction::new(RET_K, 0, 0, RET_ALLOW)),
            Outcome::Block(offset) => Step::ToBlock(offset),
        }];
    }
    let (lower, upper) = verdicts.split_at(verdicts.len() / 2);
    let (middle, lower, upper) = (upper[0].first, search(lower), search(upper));
    let mut steps = Vec::with_capacity(lower.len() + upper.len() + 2);
    match u8::try_from(lower.len()) {
        Ok(near) => steps.push(Step::Done(Instruction::new(JUMP_IF_AT_LEAST, near, 0, middle))),
        Err(_) => {
            steps.push(Step::Done(Instruction::new(JUMP_IF_AT_LEAST, 0, 1, middle)));
            steps.push(Step::Done(Instruction::new(JUMP, 0, 0, lower.len() as u32)));
        }
    }
    steps.extend(lower);
    steps.extend(upper);
    steps
}
