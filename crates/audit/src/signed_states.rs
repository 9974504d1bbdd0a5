//! What was signed last of each log, kept outside the database that it was signed of.
//!
//! A database that is restored from a backup takes its checkpoints back with it: nothing in it says that more was signed.
//! So size and root are written down here before a signature leaves the service, and what the log is now has to extend
//! them. Replicas may share the folder or have one each: a file that is behind only knows less.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
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

/// Which writing of a file it is. A state is put in the place of another by a rename, so that each is a file of its own, and
/// one that is written in place has another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Device, number and size.
    file: [u64; 3],
    /// When it was written and when it was renamed, each in seconds and nanoseconds.
    times: [i64; 4],
}

impl From<&Metadata> for Version {
    fn from(of: &Metadata) -> Self {
        Self {
            file: [of.dev(), of.ino(), of.size()],
            times: [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()],
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
        self.read(origin).1
    }

    /// As [`Self::lookup`], and which file it was, `None` if there is none.
    pub(crate) fn read(&self, origin: &str) -> (Option<Version>, Result<Known>) {
        let path = self.path(origin);
        let (mut version, mut text) = (None, String::new());
        let read = File::open(&path).and_then(|mut file| {
            // Before the text: one that is written meanwhile has another version afterwards.
            version = Some(Version::from(&file.metadata()?));
            file.read_to_string(&mut text)
        });
        let known = match read {
            Ok(_) => self.parsed(&path, origin, &text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Known::Nothing),
            Err(error) => {
                version = version.or_else(|| self.version(origin).ok().flatten());
                Err(unreadable(&path, &error.to_string()))
            }
        };
        (version, known)
    }

    fn parsed(&self, path: &Path, origin: &str, text: &str) -> Result<Known> {
        match text.parse::<Checkpoint>() {
            Ok(state) if state.origin != origin => Err(unreadable(path, "it is of another log")),
            Ok(state) if self.given_up.contains(&state) => Ok(Known::GivenUp(state)),
            Ok(state) => Ok(Known::State(state)),
            Err(error) => Err(unreadable(path, &error.to_string())),
        }
    }

    /// Which file says it now, without reading it.
    pub(crate) fn version(&self, origin: &str) -> io::Result<Option<Version>> {
        match fs::metadata(self.path(origin)) {
            Ok(metadata) => Ok(Some(Version::from(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down what is about to be signed, unless as much is known already. On disk when it returns.
    ///
    /// What stands there must be `compared`, a state that the log was found to extend. If it is another one, it is left and
    /// returned: it may be of another history.
    ///
    /// A replica that stands still with the lock keeps nobody from signing: after about a second this goes on without it.
    /// Either then may put its state over a newer one, so whoever signed looks afterwards whether it still stands.
    pub(crate) fn record(
        &self,
        state: &Checkpoint,
        compared: Option<&Checkpoint>,
    ) -> Result<Option<Checkpoint>> {
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
        if let Some(known) = self.lookup(&state.origin)?.state() {
            if known != *state && compared != Some(&known) {
                return Ok(Some(known));
            }
            if known.size >= state.size {
                return Ok(None);
            }
        }
        replace(&self.path(&state.origin), &state.to_string(), &self.entropy).map_err(failed)?;
        Ok(None)
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
        assert_eq!(one.record(&state(3, 1), None).expect("written"), None);
        // What was not compared with the log is not put over, and not passed over either.
        for compared in [None, Some(state(3, 2))] {
            let found = two.record(&state(5, 2), compared.as_ref()).expect("found");
            assert_eq!((found, known(&two)), (Some(state(3, 1)), Known::State(state(3, 1))));
        }
        assert_eq!(two.record(&state(5, 2), Some(&state(3, 1))).expect("written"), None);
        for older in [state(4, 3), state(5, 4)] {
            assert_eq!(one.record(&older, Some(&state(3, 1))).expect("found"), Some(state(5, 2)));
            assert_eq!(one.record(&older, Some(&state(5, 2))).expect("known already"), None);
        }
        assert_eq!(one.record(&state(5, 2), None).expect("known already"), None);
        assert_eq!(known(&one), Known::State(state(5, 2)));
        assert_eq!(one.lookup("a/prod/audit/default").expect("readable"), Known::Nothing);
        let given_up = parse(&as_configured(&state(5, 2))).expect("it reads what it writes");
        let three = states(vec![given_up]);
        assert_eq!(known(&three), Known::GivenUp(state(5, 2)));
        assert_eq!(three.record(&state(4, 3), None).expect("written"), None);
        assert_eq!((known(&three), known(&one)), (Known::State(state(4, 3)), Known::State(state(4, 3))));
        fs::write(one.path("a/dev/audit/default"), "a/dev/audit/default\n4\n").expect("written");
        assert_eq!(one.lookup("a/dev/audit/default").expect_err("cut").reason(), "SIGNED_STATE_UNREADABLE");
        assert_eq!(one.record(&state(9, 1), None).expect_err("cut").reason(), "SIGNED_STATE_UNREADABLE");
        // Nothing half-written is left.
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).expect("listed").count(), 2);
    }
}
