//! Whether the folder of subject keys is the one that the logs were sealed from.
//!
//! A file in the folder carries an id, and the database the same one. Without that, a volume that was not mounted would be an
//! empty folder in which new keys are made for everybody: what they did before would look erased, and the entries of before and
//! after would need different keys for the same persons, which no later mend makes whole.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use gatehouse_core::{Entropy, Error, Result, shown_path};
use gatehouse_db::{Db, read_tx, run_tx};
use uuid::Uuid;

use crate::config::Config;
use crate::files::write_once;
use crate::keys::unwritable;
use crate::store::key_folder;

/// The file with the id, inside the folder.
const MARKER: &str = "folder-id";
/// Its first line.
const HEADER: &str = "gatehouse-audit-subject-keys 1";

/// Holds the folder against the database; a folder for logs without entries is made, and noted. Nothing is made or written
/// where it is refused.
///
/// # Errors
/// `SUBJECT_KEYS_MISSING` if the logs have entries and the folder is not there, or not the one they were sealed from;
/// `SUBJECT_KEYS_UNUSABLE` if it can't be read or written.
pub(crate) async fn settle(db: &Db, config: &Config, has_entries: bool, entropy: &Entropy) -> Result<()> {
    let folder = config.subject_keys_dir.as_path();
    let noted = read_tx!(db, "audit.key_folder", |tx| { key_folder::lookup(tx).await })?;
    let found = marker(folder)?;
    let lost = match noted {
        Some(noted) if found == Some(noted) => return Ok(()),
        // Where an installation is older than the marker, nothing but the keys themselves shows that it is the right one.
        None if found.is_some() || !has_entries || has_keys(folder).map_err(unreadable(folder))? => None,
        None => Some(Uuid::nil()),
        Some(noted) => Some(noted),
    };
    if let Some(lost) = lost.filter(|lost| config.lost_folder() != Some(*lost)) {
        return Err(missing(folder, lost, found));
    }
    let id = found.map_or_else(|| mark(folder, entropy), Ok)?;
    let in_use = match noted {
        Some(noted) => {
            let replaced =
                run_tx!(db, "audit.replace_key_folder", |tx| { key_folder::replace(tx, noted, id).await })?;
            if replaced {
                tracing::warn!(lost = %noted, folder = %id, "the folder of subject keys was replaced: what was sealed before stays sealed");
            }
            read_tx!(db, "audit.key_folder", |tx| { key_folder::lookup(tx).await })?
        }
        None => Some(run_tx!(db, "audit.note_key_folder", |tx| { key_folder::note(tx, id).await })?),
    };
    // Another replica, started at the same moment with a folder of its own, may have been first.
    match in_use {
        Some(other) if other != id => Err(missing(folder, other, Some(id))),
        _ => Ok(()),
    }
}

fn missing(folder: &Path, lost: Uuid, found: Option<Uuid>) -> Error {
    let at = shown_path(folder);
    let what = match found {
        Some(id) => {
            format!("is another folder (id {id}) than the one that the logs are sealed from (id {lost})")
        }
        None => format!("does not hold the keys that the logs are sealed with (folder id {lost})"),
    };
    let text = format!(
        "audit.subject_keys_dir: {at} {what}. Mount or restore that one; replicas share it. If it is lost for good, set \
         audit.lost_subject_keys to {lost}: what persons did before then stays sealed for ever."
    );
    Error::failed_precondition("SUBJECT_KEYS_MISSING", text)
}

fn unreadable(at: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        let text = format!(
            "audit.subject_keys_dir: {} can't be read: {error}. Leave it as it is, for the logs may be sealed with the keys in \
             it; check its owner and mode, and as which user this process runs.",
            shown_path(at)
        );
        Error::failed_precondition("SUBJECT_KEYS_UNUSABLE", text)
    }
}

/// The id that the folder carries, if there is a folder with one.
fn marker(folder: &Path) -> Result<Option<Uuid>> {
    let file = folder.join(MARKER);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(&file)(error)),
    };
    let id = text.strip_prefix(HEADER).and_then(|rest| Uuid::parse_str(rest.trim()).ok());
    id.map(Some).ok_or_else(|| {
        let text = format!("audit.subject_keys_dir: {} is of another form. Restore it.", shown_path(&file));
        Error::failed_precondition("SUBJECT_KEYS_UNUSABLE", text)
    })
}

/// Gives the folder an id, and makes it if it is not there; another process may have been faster.
fn mark(folder: &Path, entropy: &Entropy) -> Result<Uuid> {
    let text = format!("{HEADER}\n{}\n", Uuid::from_bytes(entropy.bytes::<16>()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| write_once(&folder.join(MARKER), &text, entropy))
        .map_err(unwritable(folder))?;
    marker(folder)?.ok_or_else(|| Error::internal("the mark of the key folder vanished while it was made"))
}

/// Whether any key, or the mark of an erased one, is in it.
fn has_keys(folder: &Path) -> io::Result<bool> {
    let places = match fs::read_dir(folder) {
        Ok(places) => places,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for place in places {
        let place = place?.path();
        if !place.is_dir() {
            continue;
        }
        for file in fs::read_dir(place)? {
            let file = file?.path();
            if file.extension().is_some_and(|kind| kind == "key" || kind == "erased") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
