//! The key ring's file: outside the database, readable by its owner only.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Clock, Entropy, Environment, Error, Result, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::domain::keys::{KeyId, KeyRing, MasterKey};

/// How long before its first use a key stands in the file, so that every replica has read it by then. Replicas look
/// every few seconds.
pub const LEAD: Duration = Duration::from_mins(10);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    environment: Environment,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    id: String,
    created_at: i64,
    use_from: i64,
    secret: String,
}

/// The key ring as last read. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Keys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    environment: Environment,
    ring: RwLock<Arc<KeyRing>>,
}

impl Keys {
    /// Reads the ring for `environment` from `path`. In dev a missing file is made.
    ///
    /// # Errors
    /// `KEY_FILE_MISSING`, `KEY_FILE_INVALID`, `KEY_FILE_EXPOSED` (others may read it), each saying what to do.
    pub fn open(path: &Path, environment: Environment, clock: &Clock, entropy: &Entropy) -> Result<Self> {
        if environment.is_dev() && !path.exists() {
            create(path, environment, clock, entropy)?;
        }
        let ring = RwLock::new(Arc::new(read(path, environment)?));
        Ok(Self(Arc::new(Shared { path: path.to_owned(), environment, ring })))
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> Arc<KeyRing> {
        Arc::clone(&self.0.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again. A file that turned unreadable keeps the last good ring.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub fn reload(&self) -> Result<()> {
        let ring = read(&self.0.path, self.0.environment)?;
        *self.0.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(())
    }
}

/// Makes a ring of one key, unless the file is there.
///
/// # Errors
/// `KEY_FILE_UNWRITABLE`.
pub fn create(path: &Path, environment: Environment, clock: &Clock, entropy: &Entropy) -> Result<()> {
    let key = MasterKey::generate(clock, entropy, clock.now());
    let file = beside(path, entropy);
    let made = write(&file, environment, &[key]).and_then(|()| {
        // A link, unlike a rename, leaves a file alone that another process made meanwhile.
        fs::hard_link(&file, path).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
    });
    let _ = fs::remove_file(&file);
    made.map_err(|error| unwritable(path, &error))
}

/// Adds a key that will be used in [`LEAD`]; returns its id. The keys before it stay, for what was made under them.
///
/// # Errors
/// As [`Keys::open`], and `KEY_FILE_UNWRITABLE`.
pub fn rotate(path: &Path, environment: Environment, clock: &Clock, entropy: &Entropy) -> Result<KeyId> {
    let ring = read(path, environment)?;
    let key = MasterKey::generate(clock, entropy, clock.now().plus(LEAD));
    let id = key.id.clone();
    let keys: Vec<_> = ring.keys().iter().cloned().chain([key]).collect();
    let file = beside(path, entropy);
    write(&file, environment, &keys)
        .and_then(|()| fs::rename(&file, path))
        .map_err(|error| unwritable(path, &error))?;
    Ok(id)
}

fn beside(path: &Path, entropy: &Entropy) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", hex::encode(entropy.bytes::<6>())));
    path.with_file_name(name)
}

fn write(path: &Path, environment: Environment, keys: &[MasterKey]) -> io::Result<()> {
    let keys = keys
        .iter()
        .map(|key| StoredKey {
            id: key.id.to_string(),
            created_at: key.created_at.as_micros(),
            use_from: key.use_from.as_micros(),
            secret: STANDARD.encode(key.secret.expose()),
        })
        .collect();
    let text = Zeroizing::new(serde_json::to_vec_pretty(&Stored { environment, keys })?);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&text)?;
    file.sync_all()
}

fn read(path: &Path, environment: Environment) -> Result<KeyRing> {
    let shown = path.display();
    let mode = fs::metadata(path).map_err(|error| {
        let message = format!(
            "The key file {shown} can't be read ({error}). Make one with `gatehouse admin keys create`."
        );
        Error::failed_precondition("KEY_FILE_MISSING", message)
    })?;
    if mode.permissions().mode() & 0o007 != 0 {
        let message =
            format!("The key file {shown} is open to everyone on this machine. Run `chmod 600` on it.");
        return Err(Error::failed_precondition("KEY_FILE_EXPOSED", message));
    }
    let invalid = |what: &str| {
        Error::failed_precondition(
            "KEY_FILE_INVALID",
            format!("The key file {shown} {what}. Restore it from its backup."),
        )
    };
    let text = Zeroizing::new(fs::read(path).map_err(|_| invalid("can't be read"))?);
    // The parser's words could repeat a secret.
    let stored: Stored = serde_json::from_slice(&text)
        .map_err(|_| invalid("is not in the format that this program writes"))?;
    if stored.environment != environment {
        return Err(invalid(&format!(
            "belongs to the environment {}, not to {environment}",
            stored.environment
        )));
    }
    let keys = stored
        .keys
        .iter()
        .map(|key| {
            let secret = Zeroizing::new(STANDARD.decode(key.secret.as_bytes()).ok()?);
            Some(MasterKey {
                id: KeyId::parse(&key.id)?,
                created_at: Timestamp::from_micros(key.created_at),
                use_from: Timestamp::from_micros(key.use_from),
                secret: Secret::new(secret.as_slice().try_into().ok()?),
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| invalid("holds a key of the wrong length or name"))?;
    KeyRing::new(environment, keys).map_err(|error| invalid(&format!("can't be used: {error}")))
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    let message = format!("The key file {} can't be written: {error}.", path.display());
    Error::failed_precondition("KEY_FILE_UNWRITABLE", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::settable(Timestamp::from_seconds(1_000_000))
    }

    #[test]
    fn dev_makes_its_file_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys").join("auth.json");
        let open = || Keys::open(&path, Environment::Dev, &clock(), &Entropy::system());
        let first = open().unwrap().ring().keys()[0].id.clone();
        assert_eq!(open().unwrap().ring().keys()[0].id, first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(open().unwrap_err().reason(), "KEY_FILE_EXPOSED");
    }

    #[test]
    fn other_environments_need_a_file_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let open = |environment| Keys::open(&path, environment, &clock(), &Entropy::system());
        assert_eq!(open(Environment::Prod).unwrap_err().reason(), "KEY_FILE_MISSING");
        open(Environment::Dev).unwrap();
        let error = open(Environment::Prod).unwrap_err();
        assert!(error.message().contains("belongs to the environment dev"), "{error}");
    }

    #[test]
    fn a_rotated_key_is_used_after_its_lead_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let (clock, entropy) = (clock(), Entropy::system());
        let keys = Keys::open(&path, Environment::Dev, &clock, &entropy).unwrap();
        let old = keys.ring().keys()[0].id.clone();
        let new = rotate(&path, Environment::Dev, &clock, &entropy).unwrap();
        keys.reload().unwrap();
        assert_eq!(keys.ring().current(clock.now()).id, old);
        assert_eq!(keys.ring().current(clock.now().plus(LEAD)).id, new);
        assert!(keys.ring().lookup(&old).is_some());
        fs::write(&path, "{").unwrap();
        assert!(keys.reload().is_err());
        assert_eq!(keys.ring().keys().len(), 2, "the last good ring was lost");
    }
}
