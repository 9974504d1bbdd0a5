//! The embedded store: one encrypted file a secret, below a folder, opened by one process.
//!
//! ```text
//! <folder>/lock                        held while a process uses the store
//! <folder>/store.json                  format, environment, and a text sealed at the beginning: the key's proof
//! <folder>/objects/<key>.sealed        one secret: its document, sealed with its key as associated data
//! <key_file>                           the master keys, mode 0600, elsewhere
//! ```
//! What it does not do: overwrite the disk blocks of a deleted file (file systems and SSDs copy behind our
//! back). Someone with an old image of the disk *and* the key file reads what was deleted since.

mod disk;
pub(crate) mod ring;

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Clock, Entropy, Environment, Secret, shown_path};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use disk::resolved;

use crate::backend::SealingKey;
use crate::config::EmbeddedConfig;
use crate::document::{Document, Mutation};
use crate::{Error, Result, SecretKey};
use disk::Disk;
use ring::KeyRing;

/// Where the folder and the key file are named: said with each path, which may not be shown.
const FOLDER: &str = "secrets.embedded.folder";
const KEY_FILE: &str = "secrets.embedded.key_file";

const PROOF: &[u8] = b"gatehouse secrets store";
/// Writers of different secrets rarely meet; those of one always do.
const LOCKS: usize = 64;

#[derive(Debug)]
pub(crate) struct Embedded {
    folder: PathBuf,
    key_file: PathBuf,
    environment: Environment,
    ring: RwLock<KeyRing>,
    locks: [Mutex<()>; LOCKS],
    rotating: Mutex<()>,
    clock: Clock,
    entropy: Entropy,
    disk: Disk,
    // Dropped last: the lock ends when nothing can write any more.
    _lock: File,
}

/// Makes a new key file, mode 0600, for the embedded store of `environment`, and never overwrites one. This is
/// how an operator makes the key outside dev, where no process makes it by itself.
///
/// # Errors
/// [`Error::Setup`] if the file exists, [`Error::Unavailable`] if it can't be written.
pub fn create_key_file(
    path: &Path,
    environment: Environment,
    clock: &Clock,
    entropy: &Entropy,
) -> Result<()> {
    if path.exists() {
        return Err(Error::Setup(format!("the key file {} exists; it is never overwritten", path.display())));
    }
    write_ring(&Disk::default(), path, &KeyRing::generate(environment, clock, entropy))
}

impl Embedded {
    pub(crate) fn open(
        config: &EmbeddedConfig,
        environment: Environment,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self> {
        Self::open_on(Disk::default(), config, environment, clock, entropy)
    }

    fn open_on(
        disk: Disk,
        config: &EmbeddedConfig,
        environment: Environment,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self> {
        let (folder, key_file) = (config.folder.clone(), config.key_file.clone());
        let objects = folder.join("objects");
        disk::make_folder(&objects)
            .and_then(|()| fs::read_dir(&objects).map(drop))
            .map_err(|error| unusable(&objects, FOLDER, &error))?;
        let lock = take_lock(&folder)?;
        disk::sweep(&folder).map_err(|error| unusable(&folder, FOLDER, &error))?;

        let marker = folder.join("store.json");
        let ring = match fs::read(&key_file) {
            Ok(text) => read_ring(&key_file, &Zeroizing::new(text), environment)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if marker.try_exists().map_err(|error| unusable(&marker, FOLDER, &error))? {
                    return Err(Error::Setup(format!(
                        "the store in {} exists but its key file {} ({KEY_FILE}) is missing; restore the key file (without \
                         it nothing in the store can be read), or move the store away to begin an empty one",
                        shown_path(&folder),
                        shown_path(&key_file)
                    )));
                }
                if !environment.is_dev() {
                    return Err(Error::Setup(format!(
                        "the key file {} ({KEY_FILE}) is missing; outside dev it is never made by itself: make it once \
                         with `gatehouse admin secrets-key create`, and keep a copy apart from the data's backups",
                        shown_path(&key_file)
                    )));
                }
                let ring = KeyRing::generate(environment, &clock, &entropy);
                write_ring(&disk, &key_file, &ring)?;
                ring
            }
            Err(error) => return Err(unusable(&key_file, KEY_FILE, &error)),
        };
        prove(&disk, &marker, &objects, &ring, environment, &entropy)?;
        Ok(Self {
            folder,
            key_file,
            environment,
            ring: RwLock::new(ring),
            locks: std::array::from_fn(|_| Mutex::new(())),
            rotating: Mutex::new(()),
            clock,
            entropy,
            disk,
            _lock: lock,
        })
    }

    pub(crate) fn load(&self, key: &SecretKey) -> Result<Option<Document>> {
        let path = self.path(key);
        match fs::read(&path) {
            Ok(sealed) => self.read(key, &path, &sealed).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading", &path, &error)),
        }
    }

    pub(crate) fn update(&self, key: &SecretKey, mutation: &Mutation) -> Result<()> {
        let _writer = self.writer(key);
        let mut document = self.load(key)?.unwrap_or_default();
        if document.apply(mutation)? {
            let text = document.to_json()?;
            let sealed = self.ring().seal(&self.associated_data(key), &text, &self.entropy)?;
            let path = self.path(key);
            self.disk.replace(&path, &sealed).map_err(|error| Error::io("writing", &path, &error))?;
        }
        Ok(())
    }

    pub(crate) fn delete(&self, key: &SecretKey) -> Result<()> {
        let _writer = self.writer(key);
        let path = self.path(key);
        disk::remove(&path).map_err(|error| Error::io("removing", &path, &error))
    }

    pub(crate) fn seal(&self, aad: &[u8], plaintext: &Secret<Vec<u8>>) -> Result<Vec<u8>> {
        self.ring().seal(aad, plaintext.expose(), &self.entropy)
    }

    pub(crate) fn unseal(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>> {
        self.ring().open(aad, sealed)
    }

    /// Durable first, used second: nothing is ever sealed under a key that a crash could lose.
    pub(crate) fn rotate(&self) -> Result<SealingKey> {
        let _alone = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.ring().to_text()?;
        let mut next = KeyRing::from_text(&text, self.environment, "the key ring")?;
        next.add(&self.clock, &self.entropy);
        write_ring(&self.disk, &self.key_file, &next)?;
        let primary = next.primary();
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(primary)
    }

    pub(crate) fn health(&self) -> Result<SealingKey> {
        let objects = self.folder.join("objects");
        fs::read_dir(&objects).map_err(|error| Error::io("reading", &objects, &error))?;
        Ok(self.ring().primary())
    }

    fn read(&self, key: &SecretKey, path: &Path, sealed: &[u8]) -> Result<Document> {
        let place = path.display().to_string();
        let text = self.ring().open(&self.associated_data(key), sealed).map_err(|_| Error::Corrupt {
            place: place.clone(),
            problem: "it does not open under any key of the key file".to_owned(),
        })?;
        Document::from_json(text.expose(), &place)
    }

    fn path(&self, key: &SecretKey) -> PathBuf {
        self.folder.join("objects").join(format!("{key}.sealed"))
    }

    fn associated_data(&self, key: &SecretKey) -> Vec<u8> {
        format!("gatehouse secret v1\0{}\0{key}", self.environment).into_bytes()
    }

    fn ring(&self) -> std::sync::RwLockReadGuard<'_, KeyRing> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self, key: &SecretKey) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0);
        self.locks[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unusable(&path, FOLDER, &error))?;
    // A lock outlives its process by a moment where a child was being forked; a restart should not trip over it.
    for _ in 0..50 {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(fs::TryLockError::Error(error)) => return Err(Error::io("locking", &path, &error)),
        }
    }
    Err(Error::Locked(folder.to_owned()))
}

fn write_ring(disk: &Disk, path: &Path, ring: &KeyRing) -> Result<()> {
    let text = ring.to_text()?;
    disk.replace(path, &text)
        .map_err(|error| Error::io("writing the key file (secrets.embedded.key_file)", path, &error))
}

fn read_ring(path: &Path, text: &[u8], environment: Environment) -> Result<KeyRing> {
    let mode = fs::metadata(path).map_err(|error| unusable(path, KEY_FILE, &error))?.mode();
    // Group-readable is how Kubernetes mounts a secret for a pod's fsGroup; the world never may.
    let forbidden = if environment.is_dev() { 0o077 } else { 0o037 };
    if mode & forbidden != 0 {
        return Err(Error::Setup(format!(
            "the key file {} can be read by others (mode {:o}); run `chmod 600` on it",
            path.display(),
            mode & 0o777
        )));
    }
    KeyRing::from_text(text, environment, &path.display().to_string())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    environment: Environment,
    proof: String,
}

/// Sees to it that this key file is this store's: on the first start seals a known text, later opens it.
fn prove(
    disk: &Disk,
    path: &Path,
    objects: &Path,
    ring: &KeyRing,
    environment: Environment,
    entropy: &Entropy,
) -> Result<()> {
    let place = path.display().to_string();
    let corrupt = |problem: &str| Error::Corrupt { place: place.clone(), problem: problem.to_owned() };
    match fs::read(path) {
        Ok(text) => {
            let marker: Marker =
                serde_json::from_slice(&text).map_err(|_| corrupt("it is not a store's marker"))?;
            if marker.format != 1 {
                return Err(corrupt("its format is of a later release"));
            }
            if marker.environment != environment {
                return Err(Error::Setup(format!(
                    "the store marked by {place} belongs to the environment {}, this process to {environment}",
                    marker.environment
                )));
            }
            let proof = STANDARD.decode(&marker.proof).map_err(|_| corrupt("its proof is not base64"))?;
            match ring.open(PROOF, &proof) {
                Ok(text) if text.expose() == PROOF => Ok(()),
                _ => Err(Error::Setup(format!(
                    "the key file is not the one that the store marked by {place} was made with; put the right one back"
                ))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(objects).map_err(|error| unusable(objects, FOLDER, &error))?;
            if entries.next().is_some() {
                return Err(corrupt("it is missing although the store holds secrets; restore it"));
            }
            let proof = STANDARD.encode(ring.seal(PROOF, PROOF, entropy)?);
            let marker = Marker { format: 1, environment, proof };
            let text = serde_json::to_vec_pretty(&marker).map_err(Error::unavailable)?;
            disk.replace(path, &text).map_err(|error| Error::io("writing", path, &error))
        }
        Err(error) => Err(unusable(path, FOLDER, &error)),
    }
}

/// What can't be read may be the only copy of a key or a secret: nobody should be led to put another in its place.
fn unusable(path: &Path, key: &str, error: &io::Error) -> Error {
    Error::Setup(format!(
        "the secrets store can't be used: {} ({key}): {error}; leave it as it is, and check its owner and mode, and as \
         which user this process runs",
        shown_path(path)
    ))
}

#[cfg(test)]
mod crash_tests;
