//! Files that are there whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// Its owner only.
    Secret,
    /// Its owner and the owner's group.
    Shared,
    /// Everyone who gets to its folder.
    Public,
}

/// Makes `path` and what is above it, for the owner only.
pub(super) fn folder(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the folder {} can't be made", path.display()))
}

/// Holds the folder against another run until it is dropped.
pub(super) fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    lock.and_then(|lock| lock.lock().map(|()| lock))
        .with_context(|| format!("{} can't be written", path.display()))
}

/// The text of `path`, if it is there.
pub(super) fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
    }
}

/// Sees to it that there is no file at `path`.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Puts `text` in the place of what `path` held: whoever reads meanwhile gets the one or the other.
pub(super) fn write(path: &Path, text: &str, mode: Mode) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let bits = match mode {
        Mode::Secret => 0o600,
        Mode::Shared => 0o640,
        Mode::Public => 0o644,
    };
    let write = || -> std::io::Result<()> {
        // One that a crash left behind may have another mode.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(bits).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}
