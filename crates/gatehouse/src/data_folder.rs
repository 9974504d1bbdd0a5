//! The one folder of an embedded Gatehouse: databases, keys and secrets, held by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::{Entropy, Secret, shown_path};

/// Held by the process that has the folder.
const LOCK: &str = "lock";

/// A data folder that this process holds; the hold ends with the value (or the process, however it dies).
#[derive(Debug)]
pub(crate) struct DataFolder {
    root: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Where the folder is, or will be once it is opened. Makes nothing.
    pub(crate) fn place(root: &Path) -> anyhow::Result<PathBuf> {
        let place = root.canonicalize().or_else(|_| std::path::absolute(root));
        let place = place.with_context(|| {
            format!("the data folder {} has no place. Name another with --data.", root.display())
        })?;
        // The databases are configured by addresses: text in which options follow a question mark.
        let what = match place.to_str() {
            None => "is not UTF-8",
            Some(text) if text.contains('?') => "has a question mark in it",
            Some(_) => return Ok(place),
        };
        bail!(
            "the data folder {} can't hold databases: its path {what}. Name another with --data.",
            place.display()
        )
    }

    /// Whether a process has opened the folder at `place`, once or now.
    pub(crate) fn was_opened(place: &Path) -> bool {
        place.join(LOCK).exists()
    }

    /// Makes the folder if it is missing (mode 0700) and takes its lock.
    ///
    /// # Errors
    /// One sentence that says what to do: not a folder, not ours to write, or held by another process.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                anyhow::anyhow!("the data folder {} is a file. Name a folder with --data.", root.display())
            }
            _ => anyhow::anyhow!(
                "the data folder {} can't be made: {error}. Make it yourself or name another with --data.",
                root.display()
            ),
        })?;
        let root = root.canonicalize().with_context(|| {
            format!("the data folder {} can't be read. Check who owns it.", root.display())
        })?;
        let path = root.join(LOCK);
        let lock = private().read(true).write(true).create(true).truncate(false).open(&path).map_err(|error| {
            anyhow::anyhow!(
                "the data folder {} can't be written: {error}. Check who owns it, or name another with --data.",
                root.display()
            )
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another Gatehouse uses the data folder {}. Stop it, or name another folder with --data.",
                root.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("the data folder {} can't be locked", root.display()))
            }
        }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A folder in the folder, made if it is missing (mode 0700).
    pub(crate) fn folder(&self, relative: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(relative);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("the folder {} can't be made", path.display()))?;
        Ok(path)
    }

    /// The file of a random secret (256 bits, base64url, mode 0600), made on first use.
    pub(crate) fn secret_file(&self, relative: &str, entropy: &Entropy) -> anyhow::Result<PathBuf> {
        let path = self.path(relative);
        // One that this process may not look at is not one that is missing.
        if path.try_exists().map_err(|error| unreadable(&path, &error))? {
            return Ok(path);
        }
        self.write(relative, &Secret::new(URL_SAFE_NO_PAD.encode(entropy.bytes::<32>())))?;
        Ok(path)
    }

    /// Writes the file of a secret (mode 0600) and the folder that it is in. A crash can't leave it half-written: it is
    /// written whole under another name first.
    pub(crate) fn write(&self, relative: &str, secret: &Secret<String>) -> anyhow::Result<()> {
        if let Some((parent, _)) = relative.rsplit_once('/') {
            self.folder(parent)?;
        }
        let path = self.path(relative);
        let fresh = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = private().write(true).create(true).truncate(true).open(&fresh)?;
            file.write_all(secret.expose().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("the secret {} can't be written", path.display()))
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// The secret in `path`: its first line. (While auth takes two secrets for a rotation, the file has two lines.)
///
/// # Errors
/// If the file can't be read, is empty, is no text or is larger than 4 KiB.
pub(crate) fn read_secret(path: &Path) -> anyhow::Result<Secret<String>> {
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(4097).read_to_string(&mut text)).map_err(|error| {
        let at = shown_path(path);
        match error.kind() {
            ErrorKind::NotFound => anyhow::anyhow!("the secret file {at} is not there"),
            ErrorKind::InvalidData => {
                anyhow::anyhow!("the secret file {at} holds no text. Put the secret back into it.")
            }
            _ => unreadable(path, &error),
        }
    })?;
    let text = Secret::new(text);
    let secret = text.expose().lines().next().unwrap_or_default().trim();
    if secret.is_empty() || secret.len() > 4096 {
        bail!(
            "the secret file {} is empty or larger than 4 KiB. Put the secret back into it.",
            path.display()
        );
    }
    Ok(Secret::new(secret.to_owned()))
}

/// The file may be whole and another user's.
fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "the secret file {} can't be read: {error}. Check its owner and mode, and as which user this process runs.",
        shown_path(path)
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_has_one_holder() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("a b/data");
        let held = DataFolder::open(&root).unwrap();
        let refused = DataFolder::open(&root).unwrap_err().to_string();
        assert!(refused.contains("another Gatehouse uses"), "{refused}");
        drop(held);
        DataFolder::open(&root).unwrap();
    }

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let place = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(place.path()).unwrap();
        let path = folder.secret_file("clients/job.secret", &Entropy::system()).unwrap();
        let first = read_secret(&path).unwrap();
        folder.secret_file("clients/job.secret", &Entropy::system()).unwrap();
        assert_eq!(read_secret(&path).unwrap().expose(), first.expose());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.expose().len(), 43);
    }

    /// Root reads what is closed to others; what leads to itself nobody reads.
    #[test]
    fn a_secret_that_can_not_be_read_is_not_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(place.path()).unwrap();
        let clients = folder.path("clients");
        std::os::unix::fs::symlink(&clients, &clients).unwrap();
        for refused in [
            folder.secret_file("clients/job.secret", &Entropy::system()).unwrap_err(),
            read_secret(&folder.path("clients/job.secret")).unwrap_err(),
            read_secret(place.path()).unwrap_err(),
        ] {
            let refused = format!("{refused:#}");
            assert!(
                refused.contains("can't be read") && refused.contains("Check its owner and mode"),
                "{refused}"
            );
        }
        let missing = format!("{:#}", read_secret(&place.path().join("nothing")).unwrap_err());
        assert!(missing.contains("is not there"), "{missing}");
    }

    #[test]
    fn a_folder_that_no_database_can_live_in_is_refused_by_its_name() {
        for (name, words) in
            [(&b"a?b"[..], "question mark"), (b"a?b/data", "question mark"), (b"caf\xe9", "UTF-8")]
        {
            let refused = DataFolder::place(Path::new(OsStr::from_bytes(name))).unwrap_err().to_string();
            assert!(refused.contains(words) && refused.contains("--data"), "{refused}");
        }
        DataFolder::place(Path::new("caf\u{e9} # 100% ;&=")).unwrap();
    }

    #[test]
    fn a_file_is_no_data_folder() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("data");
        std::fs::write(&file, "x").unwrap();
        let refused = DataFolder::open(&file).unwrap_err().to_string();
        assert!(refused.contains("is a file"), "{refused}");
    }
}
