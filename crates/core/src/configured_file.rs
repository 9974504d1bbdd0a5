//! What is wrong with a file that the configuration names, before it is read.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What is wrong with `path`, where it has to be a file that is there: words to follow the key that names it, for the path
/// itself may be a secret in the wrong place. `None` if it is a file.
///
/// One that this process may not look at is told apart from one that is not there: what is in it may be the only copy of a
/// key, and nobody should be led to make another.
#[must_use]
pub fn file_problem(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => None,
        Ok(_) => Some("is not the path of a file".to_owned()),
        Err(error) => match error.kind() {
            // What is too long for a name or has a zero in it is none.
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput => Some("is not the path of a file".to_owned()),
            _ => Some(format!(
                "can't be looked at ({error}); check its owner and mode and those of its folders, and as which user this \
                 process runs"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_can_not_be_looked_at_is_not_called_missing() {
        let place = tempfile::tempdir().expect("a folder");
        let (file, round) = (place.path().join("file"), place.path().join("round"));
        fs::write(&file, "").expect("a file");
        symlink(&round, &round).expect("a link");
        assert_eq!(file_problem(&file), None);
        for nothing in
            ["no".into(), "hunter2".repeat(100), "a\0b".into(), "file/no".to_owned(), String::new()]
        {
            let problem = file_problem(&place.path().join(nothing));
            assert_eq!(problem.as_deref(), Some("is not the path of a file"));
        }
        // As a folder that this user may not enter; root may enter each.
        let problem = file_problem(&round).expect("a problem");
        assert!(problem.starts_with("can't be looked at (") && !problem.contains("round"), "{problem}");
    }
}
