//! The keys that payloads are sealed with: one file a subject, in a folder of its own outside the database.
//!
//! Backups of the database must not hold this folder, or a restored backup would undo erasures. Replicas share it.
//! Erasing begins with a mark, which stays when the key is shredded: events that arrive late can't bring the subject
//! back, for they are sealed with a key that nobody keeps.

mod ids;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_core::{Entropy, Error, Result, Secret, shown_path};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::digest::Digest;
use crate::domain::seal::SubjectKey;
use crate::files::write_once;

pub(crate) use ids::KeyIds;

/// First line of a key file.
const HEADER: &str = "gatehouse-audit-subject-key 1";
/// How many keys are kept in memory. Past it, all are dropped and read again as they are needed.
const MOST_CACHED: usize = 20_000;

/// Whose key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A person.
    Person(PersonId),
    /// A tenant, for events that no person is the subject of.
    Tenant(TenantId),
    /// The installation, for events without a tenant.
    Platform,
}

impl Owner {
    /// The file's name tells nothing to whom does not know the id.
    fn file_name(self) -> String {
        let text = match self {
            Self::Person(id) => format!("person:{id}"),
            Self::Tenant(id) => format!("tenant:{id}"),
            Self::Platform => "platform".to_owned(),
        };
        Digest::of(&[b"gatehouse/audit/subject/v1\n", text.as_bytes()]).to_string()
    }
}

/// A key to seal with.
#[derive(Clone, Debug)]
pub struct Obtained {
    /// The key.
    pub key: SubjectKey,
    /// False where the owner was erased: the key passes with this value, and whatever it seals is sealed for good.
    pub kept: bool,
}

/// The store of subject keys. Cheap to clone. Its functions do file I/O: call them where blocking is allowed.
#[derive(Clone, Debug)]
pub struct SubjectKeys {
    folder: Arc<PathBuf>,
    entropy: Entropy,
    cache: Arc<Mutex<HashMap<Owner, SubjectKey>>>,
}

impl SubjectKeys {
    /// The store in `folder`, which is made if missing, readable by its owner only.
    ///
    /// # Errors
    /// `SUBJECT_KEYS_UNUSABLE` if it can't be made or written.
    pub fn open(folder: &Path, entropy: Entropy) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unwritable(folder))?;
        let probe = folder.join(format!(".probe-{}", hex::encode(entropy.bytes::<8>())));
        File::create_new(&probe).and_then(|_| fs::remove_file(&probe)).map_err(unwritable(folder))?;
        Ok(Self { folder: Arc::new(folder.to_owned()), entropy, cache: Arc::default() })
    }

    /// The store in `folder` if it is there, for looking up only: nothing is made or written.
    #[must_use]
    pub fn existing(folder: &Path) -> Option<Self> {
        let store = || Self {
            folder: Arc::new(folder.to_owned()),
            entropy: Entropy::system(),
            cache: Arc::default(),
        };
        folder.is_dir().then(store)
    }

    /// The key of `owner`, made if there is none; a passing one that nobody keeps if erasing them has begun. The key is on
    /// disk when this returns.
    pub fn obtain(&self, owner: Owner) -> Result<Obtained> {
        let kept = |key| Obtained { key, kept: true };
        let passing = || Obtained { key: SubjectKey::generate(&self.entropy), kept: false };
        let paths = self.paths(owner);
        if paths.erased.exists() {
            return Ok(passing());
        }
        if let Some(key) = self.lookup(owner)? {
            return Ok(kept(key));
        }
        self.create(&paths).map_err(|error| failed(&paths.key, &error))?;
        // Looked for after the file was there: whoever shreds leaves the mark first and removes the file then, so
        // one of us sees the other.
        if paths.erased.exists() {
            let _ = fs::remove_file(&paths.key);
            return Ok(passing());
        }
        self.lookup(owner)?
            .map(kept)
            .ok_or_else(|| Error::internal("a subject key vanished while it was made"))
    }

    /// The key of `owner`, if there is one that was not shredded.
    pub fn lookup(&self, owner: Owner) -> Result<Option<SubjectKey>> {
        let paths = self.paths(owner);
        // Another replica may have shredded it: the file decides, not our memory.
        if !paths.key.try_exists().map_err(|error| failed(&paths.key, &error))? {
            self.cache().remove(&owner);
            return Ok(None);
        }
        if let Some(key) = self.cache().get(&owner) {
            return Ok(Some(key.clone()));
        }
        let text = match fs::read_to_string(&paths.key) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&paths.key, &error)),
        };
        let key = parse(&text)
            .ok_or_else(|| Error::internal(format!("{} is no subject key", paths.key.display())))?;
        let mut cache = self.cache();
        if cache.len() >= MOST_CACHED {
            cache.clear();
        }
        cache.insert(owner, key.clone());
        Ok(Some(key))
    }

    /// Begins to erase `owner`: from now on nothing is sealed with their key, and none is made. The one that is there still
    /// opens what it sealed, until [`Self::shred`]. Idempotent.
    pub fn begin_erasure(&self, owner: Owner) -> Result<()> {
        let paths = self.paths(owner);
        let mark = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.folder)?;
            match File::create_new(&paths.erased) {
                Ok(mark) => mark.sync_all()?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            File::open(&paths.folder)?.sync_all()
        };
        mark().map_err(|error| failed(&paths.erased, &error))
    }

    /// Whether erasing `owner` has begun, here or in another replica.
    #[must_use]
    pub fn is_erased(&self, owner: Owner) -> bool {
        self.paths(owner).erased.exists()
    }

    /// Destroys the key of `owner` and keeps another from being made. Whether there was one. Idempotent.
    pub fn shred(&self, owner: Owner) -> Result<bool> {
        self.begin_erasure(owner)?;
        let paths = self.paths(owner);
        let shred = || -> io::Result<bool> {
            let there = match OpenOptions::new().write(true).open(&paths.key) {
                Ok(mut file) => {
                    // Overwritten in place, for file systems that do write in place; where they copy, the disk's own
                    // encryption has to do.
                    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
                    file.write_all(&vec![0; length])?;
                    file.sync_all()?;
                    fs::remove_file(&paths.key)?;
                    true
                }
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            File::open(&paths.folder)?.sync_all()?;
            Ok(there)
        };
        let there = shred().map_err(|error| failed(&paths.key, &error))?;
        self.cache().remove(&owner);
        Ok(there)
    }

    /// Writes a fresh key unless there is one: whole or not at all, and the first of several writers wins.
    fn create(&self, paths: &Paths) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.folder)?;
        let key = SubjectKey::generate(&self.entropy);
        let secret = Zeroizing::new(hex::encode(key.secret().expose()));
        let text = Zeroizing::new(format!("{HEADER}\n{}\n{}\n", key.id(), *secret));
        write_once(&paths.key, &text, &self.entropy)
    }

    fn paths(&self, owner: Owner) -> Paths {
        let name = owner.file_name();
        let folder = self.folder.join(&name[..2]);
        Paths {
            key: folder.join(format!("{name}.key")),
            erased: folder.join(format!("{name}.erased")),
            folder,
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, SubjectKey>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Paths {
    folder: PathBuf,
    key: PathBuf,
    erased: PathBuf,
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::internal(format!("subject key {}: {error}", path.display()))
}

fn parse(text: &str) -> Option<SubjectKey> {
    let mut lines = text.lines();
    let (HEADER, id, secret, None) = (lines.next()?, lines.next()?, lines.next()?, lines.next()) else {
        return None;
    };
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(secret, &mut *bytes).ok()?;
    Some(SubjectKey::from_parts(Uuid::parse_str(id).ok()?, Secret::new(*bytes)))
}

/// What is said of a folder of keys that this process can't write.
pub(crate) fn unwritable(folder: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        let text = format!(
            "audit.subject_keys_dir: {} can't be written: {error}. Check its owner and mode, and as which user this process \
             runs.",
            shown_path(folder)
        );
        Error::failed_precondition("SUBJECT_KEYS_UNUSABLE", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u128) -> Owner {
        Owner::Person(PersonId::from_uuid(Uuid::from_u128(number)))
    }

    fn store(folder: &Path) -> SubjectKeys {
        SubjectKeys::open(folder, Entropy::system()).expect("the folder can be used")
    }

    fn bytes(obtained: &Obtained) -> [u8; 32] {
        *obtained.key.secret().expose()
    }

    #[test]
    fn a_key_is_made_once_and_seen_by_every_replica() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (store(folder.path()), store(folder.path()));
        let key = one.obtain(owner(1)).expect("made");
        assert_eq!(bytes(&two.obtain(owner(1)).expect("read")), bytes(&key));
        assert_ne!(bytes(&two.obtain(owner(2)).expect("made")), bytes(&key));
        assert!(one.lookup(owner(3)).expect("looked").is_none());
    }

    /// Or what they did would look erased.
    #[test]
    fn a_key_that_can_not_be_looked_for_is_not_one_that_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path());
        let at = store.paths(owner(1)).folder;
        std::os::unix::fs::symlink(&at, &at).expect("a link to itself");
        store.lookup(owner(1)).expect_err("not known to be gone");
        store.obtain(owner(1)).expect_err("not made");
    }

    #[test]
    fn a_shredded_key_is_gone_everywhere_and_never_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (store(folder.path()), store(folder.path()));
        let key = one.obtain(owner(1)).expect("made");
        two.obtain(owner(1)).expect("cached");
        assert!(one.shred(owner(1)).expect("shredded"));
        assert!(!one.shred(owner(1)).expect("again"));
        for store in [&one, &two] {
            assert!(store.lookup(owner(1)).expect("looked").is_none());
            assert_ne!(bytes(&store.obtain(owner(1)).expect("passing")), bytes(&key));
            assert!(store.lookup(owner(1)).expect("looked").is_none(), "the passing key was kept");
        }
        // A subject that never had a key can be erased as well.
        assert!(!one.shred(owner(9)).expect("nothing to shred"));
        one.obtain(owner(9)).expect("passing");
        assert!(one.lookup(owner(9)).expect("looked").is_none());
    }

    #[test]
    fn once_an_erasure_began_a_key_opens_but_seals_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (store(folder.path()), store(folder.path()));
        let key = bytes(&one.obtain(owner(1)).expect("made"));
        assert!(!two.is_erased(owner(1)));
        one.begin_erasure(owner(1)).expect("begun");
        one.begin_erasure(owner(1)).expect("again");
        for store in [&one, &two] {
            assert!(store.is_erased(owner(1)));
            let passing = store.obtain(owner(1)).expect("passing");
            assert!(!passing.kept && bytes(&passing) != key);
            let there = store.lookup(owner(1)).expect("looked").expect("still there");
            assert_eq!(*there.secret().expose(), key);
        }
        assert!(one.shred(owner(1)).expect("shredded"));
    }

    #[test]
    fn writers_at_once_agree_on_one_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let keys: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| bytes(&store(folder.path()).obtain(owner(1)).expect("made"))))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_folder_that_can_not_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = SubjectKeys::open(&file.path().join("x"), Entropy::system()).expect_err("no folder");
        assert_eq!(error.reason(), "SUBJECT_KEYS_UNUSABLE");
    }
}
