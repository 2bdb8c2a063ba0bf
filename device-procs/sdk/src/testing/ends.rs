//! A copy of a worker's binary of which each incarnation ends at a chosen step ([`fail_point`](crate::fail_point)).

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::fail_point::{INCARNATIONS, MARK, Step};

/// The copy.
#[derive(Debug)]
pub struct Mortals {
    path: PathBuf,
    /// Where in it the ends are.
    ends: u64,
}

impl Mortals {
    /// Copies `binary` to `copy`.
    ///
    /// # Errors
    /// The binary has no table, or a file cannot be read or written.
    pub fn copy(binary: &Path, copy: &Path) -> io::Result<Mortals> {
        let bytes = fs::read(binary)?;
        // The mark alone is in a program, too, that looks for it.
        let is_table = |at: &usize| {
            let rest = bytes.get(*at..).unwrap_or_default();
            let names = rest.get(MARK.len() + 4 * INCARNATIONS..);
            rest.starts_with(MARK) && names.is_some_and(|rest| rest.starts_with(Step::NAMES.as_bytes()))
        };
        let at = (0..bytes.len()).find(is_table).ok_or(io::ErrorKind::NotFound)?;
        fs::copy(binary, copy)?;
        Ok(Mortals { path: copy.to_owned(), ends: (at + MARK.len()) as u64 })
    }

    /// The copy's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Incarnation 1 ends at `ends[0]`, a step and which visit of it (from 1), and so on; one for which there is `None` or nothing
    /// lives. No process of the copy may run.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub fn arm(&self, ends: &[Option<(Step, u16)>]) -> io::Result<()> {
        let mut table = [0; 4 * INCARNATIONS];
        for (entry, end) in table.as_chunks_mut::<4>().0.iter_mut().zip(ends) {
            *entry = end.map_or(0, |(step, visit)| u32::from(visit) << 16 | (step as u32 + 1)).to_le_bytes();
        }
        fs::OpenOptions::new().write(true).open(&self.path)?.write_all_at(&table, self.ends)
    }
}
