//! Paths of the configuration in messages.

use std::borrow::Cow;
use std::path::Path;

/// What stands where a path is not shown.
pub const NOT_SHOWN: &str = "[not shown: no path that is there]";

/// `path`, a path that the configuration names, as a message may say it: only where it is there or leads into a folder that
/// is. What does not may be the secret itself, written where the path of its file belongs; the key that the message names is
/// enough to find it.
#[must_use]
pub fn shown_path(path: &Path) -> Cow<'_, str> {
    // The root and the working folder are there for every text.
    let leads_somewhere = path.ancestors().any(|part| part.file_name().is_some() && part.exists());
    if leads_somewhere { path.to_string_lossy() } else { Cow::Borrowed(NOT_SHOWN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_nowhere_may_be_a_secret() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for shown in [here.to_owned(), here.join("Cargo.toml"), here.join("no/such/file"), "src/no".into()] {
            assert_eq!(shown_path(&shown), shown.to_str().unwrap());
        }
        let long = format!("/{}", "hunter2".repeat(100));
        for hidden in
            ["hunter2", "/hunter2", "../hunter2", "hunter2/hunter2", "-----BEGIN\nhunter2", &long, ""]
        {
            assert_eq!(shown_path(Path::new(hidden)), NOT_SHOWN, "{hidden}");
        }
    }
}
