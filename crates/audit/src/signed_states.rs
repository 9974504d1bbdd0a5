//! What was signed last of each log, kept outside the database that it was signed of.
//!
//! A database that is restored from a backup takes its checkpoints back with it: nothing in it says that more was signed.
//! So size and root are written down here before a signature leaves the service, and what the log is now has to extend
//! them. Replicas may share the folder or have one each: a file that is behind only knows less.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::{Entropy, Error, Result};

use crate::domain::checkpoint::Checkpoint;
use crate::domain::digest::Digest;
use crate::files::replace;

/// The folder within that of the subject keys.
const FOLDER: &str = "signed";
/// How long a writer waits for another that has the lock, 1 s in all. It is held for a read, a write and two syncs, so
/// whoever holds it longer stands still, or is gone and its file server does not know.
const LOCK_TRIES: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// The states, a file for each origin. Cheap to clone. Its functions do file I/O: call them where blocking is allowed.
#[derive(Clone, Debug)]
pub(crate) struct SignedStates {
    folder: Arc<PathBuf>,
    given_up: Arc<Vec<Checkpoint>>,
    entropy: Entropy,
}

/// What a log was signed as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Nothing,
    State(Checkpoint),
    /// The configuration names it as lost.
    GivenUp(Checkpoint),
}

impl Known {
    /// The state that the log has to extend.
    pub(crate) fn state(self) -> Option<Checkpoint> {
        match self {
            Self::State(state) => Some(state),
            Self::Nothing | Self::GivenUp(_) => None,
        }
    }
}

/// A state as the configuration names it: `<origin> <size> <root>`.
pub(crate) fn parse(text: &str) -> Option<Checkpoint> {
    let lines = format!("{}\n", text.trim().replace(' ', "\n"));
    lines.parse().ok().filter(|_| lines.lines().count() == 3)
}

/// What [`parse`] reads.
pub(crate) fn as_configured(state: &Checkpoint) -> String {
    state.to_string().trim_end().replace('\n', " ")
}

impl SignedStates {
    /// The states beside the subject keys in `keys`. Nothing is made before something is signed.
    pub(crate) fn beside(keys: &Path, given_up: Vec<Checkpoint>, entropy: Entropy) -> Self {
        Self { folder: Arc::new(keys.join(FOLDER)), given_up: Arc::new(given_up), entropy }
    }

    /// Where the state of `origin` stands. The environment is a part of the origin: two that share a folder share no file.
    pub(crate) fn path(&self, origin: &str) -> PathBuf {
        let log = origin.rsplit('/').next().unwrap_or_default();
        let digest = Digest::of(&[b"gatehouse/audit/signed/v1\n", origin.as_bytes()]).to_string();
        self.folder.join(format!("{log}-{}.checkpoint", &digest[..16]))
    }

    /// What was signed last under `origin`, as far as this folder knows.
    ///
    /// # Errors
    /// `SIGNED_STATE_UNREADABLE`.
    pub(crate) fn lookup(&self, origin: &str) -> Result<Known> {
        let path = self.path(origin);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Known::Nothing),
            Err(error) => return Err(unreadable(&path, &error.to_string())),
        };
        match text.parse::<Checkpoint>() {
            Ok(state) if state.origin != origin => Err(unreadable(&path, "it is of another log")),
            Ok(state) if self.given_up.contains(&state) => Ok(Known::GivenUp(state)),
            Ok(state) => Ok(Known::State(state)),
            Err(error) => Err(unreadable(&path, &error.to_string())),
        }
    }

    /// Writes down what is about to be signed, unless more is known already. On disk when it returns.
    ///
    /// A replica that stands still with the lock keeps nobody from signing: after about a second this goes on without it.
    /// Either then may put its state over a newer one, so whoever signed looks afterwards whether it still stands.
    pub(crate) fn record(&self, state: &Checkpoint) -> Result<()> {
        let failed = |error: io::Error| {
            Error::internal(format!("nothing is signed: {}: {error}", self.path(&state.origin).display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&*self.folder).map_err(failed)?;
        // Replicas may share the folder: none takes another's word back.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(".lock"))
            .map_err(failed)?;
        if !has_locked(&lock).map_err(failed)? {
            tracing::warn!(
                folder = %self.folder.display(),
                "another replica holds the lock of what was signed and does not go on; written without it"
            );
        }
        if self.lookup(&state.origin)?.state().is_some_and(|known| known.size >= state.size) {
            return Ok(());
        }
        replace(&self.path(&state.origin), &state.to_string(), &self.entropy).map_err(failed)
    }
}

/// Whether `file` could be locked in time. No longer than its handle.
fn has_locked(file: &File) -> io::Result<bool> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_WAIT),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::failed_precondition(
        "SIGNED_STATE_UNREADABLE",
        format!(
            "{} should say what was signed last of a log, and can't be read: {why}. Restore it from a backup, however old. If \
             there is none, look with verify-audit-chain and a checkpoint that was kept elsewhere whether the log is whole, and \
             remove the file.",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(size: u64, root: u8) -> Checkpoint {
        Checkpoint { origin: "a/dev/audit/default".into(), size, root: Digest::of(&[&[root]]) }
    }

    #[test]
    fn a_state_never_goes_back_unless_it_was_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let states = |given_up| SignedStates::beside(folder.path(), given_up, Entropy::system());
        let (one, two) = (states(Vec::new()), states(Vec::new()));
        let known = |states: &SignedStates| states.lookup("a/dev/audit/default").expect("readable");
        assert_eq!(known(&one), Known::Nothing);
        one.record(&state(3, 1)).expect("written");
        two.record(&state(5, 2)).expect("written");
        one.record(&state(4, 3)).expect("known already");
        one.record(&state(5, 4)).expect("known already");
        assert_eq!(known(&one), Known::State(state(5, 2)));
        assert_eq!(one.lookup("a/prod/audit/default").expect("readable"), Known::Nothing);
        let given_up = parse(&as_configured(&state(5, 2))).expect("it reads what it writes");
        let three = states(vec![given_up]);
        assert_eq!(known(&three), Known::GivenUp(state(5, 2)));
        three.record(&state(4, 3)).expect("written");
        assert_eq!((known(&three), known(&one)), (Known::State(state(4, 3)), Known::State(state(4, 3))));
        fs::write(one.path("a/dev/audit/default"), "a/dev/audit/default\n4\n").expect("written");
        assert_eq!(one.lookup("a/dev/audit/default").expect_err("cut").reason(), "SIGNED_STATE_UNREADABLE");
        assert_eq!(one.record(&state(9, 1)).expect_err("cut").reason(), "SIGNED_STATE_UNREADABLE");
        // Nothing half-written is left.
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).expect("listed").count(), 2);
    }
}
