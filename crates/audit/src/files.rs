//! Files that are written whole or not at all, readable by their owner only, and on disk when the writer returns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use gatehouse_core::Entropy;

/// Makes `file` with `text`, and leaves one alone that another process made meanwhile.
pub(crate) fn write_once(file: &Path, text: &str, entropy: &Entropy) -> io::Result<()> {
    // A link, unlike a rename, does not replace.
    put(file, text, entropy, |draft| match fs::hard_link(draft, file) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    })
}

/// Makes `file` with `text`, in the place of one that there is.
pub(crate) fn replace(file: &Path, text: &str, entropy: &Entropy) -> io::Result<()> {
    put(file, text, entropy, |draft| fs::rename(draft, file))
}

fn put(
    file: &Path,
    text: &str,
    entropy: &Entropy,
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut draft = file.file_name().unwrap_or_default().to_owned();
    draft.push(format!(".{}", hex::encode(entropy.bytes::<12>())));
    let draft = file.with_file_name(draft);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| place(&draft));
    let removed = fs::remove_file(&draft);
    written?;
    match removed {
        // What stays there may be a key, which an erasure would not find.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        // A rename leaves none.
        _ => {}
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
