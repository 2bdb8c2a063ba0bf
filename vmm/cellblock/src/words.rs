//! What the program says. Who listens may go at any time (`cellblock doctor | head`), and neither an answer nor a VM may end in a
//! panic for it, as `println!` and `eprintln!` do.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes to standard output, as `println!`.
///
/// # Errors
/// It takes nothing, for another reason than that nobody reads it any more.
macro_rules! say {
    ($($words:tt)*) => { crate::words::print(format_args!("{}\n", format_args!($($words)*))) };
}

/// Writes to standard error, as `eprintln!`; what nobody takes is lost.
macro_rules! note {
    ($($words:tt)*) => { crate::words::note(format_args!($($words)*)) };
}

pub(crate) fn print(words: Arguments<'_>) -> anyhow::Result<()> {
    match written(&mut io::stdout().lock(), words) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output takes nothing"),
    }
}

pub(crate) fn note(words: Arguments<'_>) {
    let _ = written(&mut io::stderr().lock(), format_args!("{words}\n"));
}

fn written(to: &mut impl Write, words: Arguments<'_>) -> io::Result<()> {
    to.write_fmt(words)?;
    to.flush()
}
