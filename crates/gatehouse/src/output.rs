//! What commands say. Nobody may be there to hear it: `… | head`, a full disk, a terminal that went away. `println!` would
//! panic; here whoever says something learns that it did not arrive.

use std::fmt;
use std::io::{self, Write as _};

/// Standard output did not take what a command had to say: the command did not do all that it was called for.
#[derive(Debug, thiserror::Error)]
#[error("what there was to say could not be written to standard output")]
pub(crate) struct Unheard(#[source] io::Error);

impl Unheard {
    /// The reader went away, by its own will: nobody need be told.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes to standard output as `println!` does, and fails with [`Unheard`] where that would panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes to standard error as `eprintln!` does. There is nowhere left to say that it failed.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {complain, say};

/// All of it at once and at once: what is not at the reader now may never be.
pub(crate) fn to_stdout(text: fmt::Arguments<'_>) -> Result<(), Unheard> {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text).and_then(|()| stdout.flush()).map_err(Unheard)
}

pub(crate) fn to_stderr(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}
