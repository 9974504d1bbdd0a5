//! The key ring's file: outside the database, readable by its owner only.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Clock, Entropy, Environment, Error, Result, Secret, Timestamp, shown_path};
use gatehouse_db::{Db, read_tx};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::domain::keys::{KeyId, KeyRing, MasterKey};
use crate::store::{bootstrap, signing_keys};

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
    /// Reads the ring for `environment` from `path`. In dev a missing file is made, unless `db` holds what a lost one
    /// sealed: then nothing is written.
    ///
    /// # Errors
    /// As [`Keys::read`], or the database is away.
    pub async fn open(
        path: &Path,
        db: &Db,
        environment: Environment,
        clock: &Clock,
        entropy: &Entropy,
    ) -> Result<Self> {
        if !exists(path)? {
            // Another replica may have made it meanwhile, and used it.
            if is_in_use(db).await? && !exists(path)? {
                let message = format!(
                    "The key file {} (auth.key_file) is not there, and what auth's database holds is sealed with it. \
                     Restore it from its backup: a new one opens nothing.",
                    shown_path(path)
                );
                return Err(Error::failed_precondition("KEY_FILE_MISSING", message));
            }
            if environment.is_dev() {
                create(path, environment, clock, entropy)?;
            }
        }
        Self::read(path, environment)
    }

    /// Reads the ring for `environment` from `path`.
    ///
    /// # Errors
    /// `KEY_FILE_MISSING`, `KEY_FILE_UNREADABLE`, `KEY_FILE_INVALID`, `KEY_FILE_EXPOSED` (others may read it), each saying
    /// what to do.
    pub fn read(path: &Path, environment: Environment) -> Result<Self> {
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
    /// As [`Keys::read`].
    pub fn reload(&self) -> Result<()> {
        let ring = read(&self.0.path, self.0.environment)?;
        *self.0.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        Ok(())
    }
}

/// Whether a key ring was at work on `db`: it sealed the signing keys, and the first admin's password went by it.
async fn is_in_use(db: &Db) -> Result<bool> {
    let is_in_use = read_tx!(db, "auth.key_ring.is_in_use", |tx| {
        Ok(!signing_keys::list(tx).await?.is_empty() || bootstrap::is_claimed(tx).await?)
    });
    Ok(is_in_use?)
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
/// As [`Keys::read`], and `KEY_FILE_UNWRITABLE`.
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
    let shown = shown_path(path);
    let mode = fs::metadata(path).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return unreadable(path, &error);
        }
        let message = format!(
            "The key file {shown} (auth.key_file) can't be read ({error}). Make one with `gatehouse admin keys create`."
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
    let text = Zeroizing::new(fs::read(path).map_err(|error| unreadable(path, &error))?);
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

/// Whether the file is there. One that this process may not look at is not one that is missing.
fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|error| unreadable(path, &error))
}

/// What is in it may be the only copy of the keys: nobody should be led to write another over it.
fn unreadable(path: &Path, error: &io::Error) -> Error {
    let message = format!(
        "The key file {} (auth.key_file) can't be read: {error}. Leave it as it is, for what auth's database holds is sealed \
         with it; check its owner and mode, and as which user this process runs.",
        shown_path(path)
    );
    Error::failed_precondition("KEY_FILE_UNREADABLE", message)
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    let message = format!("The key file {} (auth.key_file) can't be written: {error}.", shown_path(path));
    Error::failed_precondition("KEY_FILE_UNWRITABLE", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::DirBuilderExt as _;

    use gatehouse_db::{params, run_tx, sql};
    use gatehouse_testkit::TestDb;

    sql! {
        FORGET = "DELETE FROM bootstrap";
        SEAL = "INSERT INTO signing_keys (sequence, kid, created_at, signs_from, sealed_kid, sealed) VALUES (1, 'k', 1, 1, 'm', $1)";
    }

    fn clock() -> Clock {
        Clock::settable(Timestamp::from_seconds(1_000_000))
    }

    #[tokio::test]
    async fn dev_makes_its_file_once_for_its_owner_only() {
        let db = TestDb::sqlite(&crate::MIGRATIONS).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys").join("auth.json");
        let open = async || Keys::open(&path, db.db(), Environment::Dev, &clock(), &Entropy::system()).await;
        let first = open().await.unwrap().ring().keys()[0].id.clone();
        assert_eq!(open().await.unwrap().ring().keys()[0].id, first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(open().await.unwrap_err().reason(), "KEY_FILE_EXPOSED");
    }

    #[tokio::test]
    async fn nothing_is_made_in_place_of_a_file_that_was_lost() {
        let db = TestDb::sqlite(&crate::MIGRATIONS).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys").join("auth.json");
        let refused = async |environment| {
            let opened = Keys::open(&path, db.db(), environment, &clock(), &Entropy::system()).await;
            let error = opened.expect_err("a new ring does not open what the old one sealed");
            assert_eq!(error.reason(), "KEY_FILE_MISSING");
            assert!(error.message().contains("Restore it"), "{error}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
        };
        // There may be a first admin before there is a signing key, and the other way round.
        run_tx!(db.db(), "test.claim", |tx| { bootstrap::claim(tx, clock().now()).await }).unwrap();
        refused(Environment::Dev).await;
        let sealed = vec![0_u8; 32];
        run_tx!(db.db(), "test.seal", |tx| {
            tx.execute(&FORGET, params![]).await?;
            tx.execute(&SEAL, params![sealed.as_slice()]).await
        })
        .unwrap();
        refused(Environment::Dev).await;
        refused(Environment::Prod).await;
    }

    #[tokio::test]
    async fn other_environments_need_a_file_of_their_own() {
        let db = TestDb::sqlite(&crate::MIGRATIONS).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let open =
            async |environment| Keys::open(&path, db.db(), environment, &clock(), &Entropy::system()).await;
        assert_eq!(open(Environment::Prod).await.unwrap_err().reason(), "KEY_FILE_MISSING");
        open(Environment::Dev).await.unwrap();
        let error = open(Environment::Prod).await.unwrap_err();
        assert!(error.message().contains("belongs to the environment dev"), "{error}");
    }

    /// Root reads what is closed to others, so other faults stand for a file of another user's here.
    #[tokio::test]
    async fn a_file_that_can_not_be_read_is_neither_missing_nor_broken() {
        let db = TestDb::sqlite(&crate::MIGRATIONS).await;
        run_tx!(db.db(), "test.claim", |tx| { bootstrap::claim(tx, clock().now()).await }).unwrap();
        let root = tempfile::tempdir().unwrap();
        let (endless, folder) = (root.path().join("endless"), root.path().join("folder"));
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
        for (path, cause) in [(endless.join("auth.json"), "symbolic links"), (folder, "directory")] {
            let opened = Keys::open(&path, db.db(), Environment::Dev, &clock(), &Entropy::system()).await;
            for error in [opened.unwrap_err(), Keys::read(&path, Environment::Dev).unwrap_err()] {
                assert_eq!(error.reason(), "KEY_FILE_UNREADABLE", "{error}");
                for words in [cause, "check its owner and mode"] {
                    assert!(error.message().contains(words), "{error}");
                }
            }
        }
    }

    #[test]
    fn a_rotated_key_is_used_after_its_lead_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        let (clock, entropy) = (clock(), Entropy::system());
        create(&path, Environment::Dev, &clock, &entropy).unwrap();
        let keys = Keys::read(&path, Environment::Dev).unwrap();
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
