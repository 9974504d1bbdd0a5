//! Writing a file so that after a crash it is either the old one or the new one, whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The points between which a crash may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    TemporaryMade,
    TemporaryHalfWritten,
    TemporarySynced,
    Renamed,
    Done,
}

type Observer = Arc<dyn Fn(Step) -> io::Result<()> + Send + Sync>;

/// The disk, with a place for tests to stand between two steps.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    observer: Option<Observer>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// How an unfinished file is called; [`sweep`] removes those.
const TEMPORARY: &str = "tmp";

impl Disk {
    #[cfg(test)]
    pub(crate) fn observed(observer: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)) }
    }

    fn at(&self, step: Step) -> io::Result<()> {
        self.observer.as_ref().map_or(Ok(()), |observer| observer(step))
    }

    /// Puts `bytes` where `path` says, readable by the owner only: written aside, synced, renamed over, and the
    /// folder synced.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = parent(path)?;
        make_folder(folder)?;
        let temporary = path.with_extension(TEMPORARY);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        self.at(Step::TemporaryMade)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        self.at(Step::TemporaryHalfWritten)?;
        file.write_all(second)?;
        file.sync_all()?;
        self.at(Step::TemporarySynced)?;
        fs::rename(&temporary, path)?;
        self.at(Step::Renamed)?;
        sync_folder(folder)?;
        self.at(Step::Done)
    }
}

/// Removes `path`, if it is there, for good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes `folder` and what is missing above it, for the owner only, each entry synced into its parent.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = parent(folder)?;
    make_folder(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => sync_folder(above),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what interrupted writes left below `folder`.
pub(crate) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            sweep(&path)?;
        } else if path.extension().is_some_and(|extension| extension == TEMPORARY) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder")),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// `path` as far as it exists, symbolic links followed, and the rest as written: for comparing places.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        if let Ok(found) = existing.canonicalize() {
            return rest.iter().rev().fold(found, |path, part| path.join(part));
        }
        match (existing.parent(), existing.file_name()) {
            (Some(above), Some(name)) => {
                rest.push(name.to_owned());
                existing = above;
            }
            _ => return absolute,
        }
    }
}
