//! Where a worker says that it waits for requests, and how.

/// Set in the word of a worker that spins.
const SPINS: u64 = 1 << 32;

/// What a worker's register thread does between two requests, as one word of the replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stance {
    /// It sleeps wherever the host's scheduler puts it.
    #[default]
    Anywhere,
    /// It sleeps on this CPU and no other.
    SleepsOn(u32),
    /// It spins on this CPU; where it sleeps nevertheless, it spins again after the next request.
    SpinsOn(u32),
}

impl Stance {
    /// The CPU's number from 1 (low 32 bits), and whether it spins there (bit 32); 0 = anywhere.
    pub const fn encode(self) -> u64 {
        match self {
            Stance::Anywhere => 0,
            Stance::SleepsOn(cpu) => cpu as u64 + 1,
            Stance::SpinsOn(cpu) => SPINS | (cpu as u64 + 1),
        }
    }

    /// Whatever word there is, a stance comes of it.
    pub const fn decode(word: u64) -> Stance {
        match (word as u32).checked_sub(1) {
            None => Stance::Anywhere,
            Some(cpu) if word & SPINS != 0 => Stance::SpinsOn(cpu),
            Some(cpu) => Stance::SleepsOn(cpu),
        }
    }
}
