//! Files that are written once: whole or not at all, and never over another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use gatehouse_core::Entropy;

/// Makes `file` with `text`, readable by its owner only, and leaves one alone that another process made meanwhile. It is on
/// disk when this returns.
pub(crate) fn write_once(file: &Path, text: &str, entropy: &Entropy) -> io::Result<()> {
    let mut draft = file.file_name().unwrap_or_default().to_owned();
    draft.push(format!(".{}", hex::encode(entropy.bytes::<6>())));
    let draft = file.with_file_name(draft);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        // A link, unlike a rename, does not replace.
        .and_then(|()| match fs::hard_link(&draft, file) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        });
    let _ = fs::remove_file(&draft);
    written?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
