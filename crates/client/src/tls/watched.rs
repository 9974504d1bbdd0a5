//! Files that are replaced while the process runs.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Files are looked at no more often than this, however many connections begin.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tells when one of `N` files was replaced or rewritten.
#[derive(Debug)]
pub struct Watched<const N: usize> {
    files: [PathBuf; N],
    looked: Mutex<Looked<N>>,
}

#[derive(Debug)]
struct Looked<const N: usize> {
    at: Instant,
    seen: Seen<N>,
}

/// What shows that a file changed.
type Seen<const N: usize> = [Option<(u64, u64, i64, i64)>; N];

impl<const N: usize> Watched<N> {
    /// Notes what is there now: to be made before the files are read, so that no change falls between.
    #[must_use]
    pub fn new(files: [PathBuf; N]) -> Self {
        let looked = Mutex::new(Looked { at: Instant::now(), seen: see(&files) });
        Self { files, looked }
    }

    /// The files.
    #[must_use]
    pub const fn files(&self) -> &[PathBuf; N] {
        &self.files
    }

    /// Calls `take_up` if the files changed, unless somebody looked in the last second or looks now. It says whether it
    /// is done with what is there; if not, the next look calls it again.
    pub fn look(&self, take_up: impl FnOnce() -> bool) {
        // Whoever finds another looking takes what is there.
        if let Ok(mut looked) = self.looked.try_lock()
            && looked.at.elapsed() >= LOOK_EVERY
        {
            self.take_up(&mut looked, take_up);
        }
    }

    /// As [`Watched::look`], but in any case.
    pub fn look_now(&self, take_up: impl FnOnce() -> bool) {
        self.take_up(&mut self.looked.lock().unwrap_or_else(PoisonError::into_inner), take_up);
    }

    fn take_up(&self, looked: &mut Looked<N>, take_up: impl FnOnce() -> bool) {
        looked.at = Instant::now();
        let seen = see(&self.files);
        if seen != looked.seen && take_up() {
            looked.seen = seen;
        }
    }
}

fn see<const N: usize>(files: &[PathBuf; N]) -> Seen<N> {
    files.each_ref().map(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    })
}
