//! Which keys are at hand, by their own ids, which stand in clear beside what they sealed.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use uuid::Uuid;
use zeroize::Zeroizing;

use super::{SubjectKeys, parse};

/// The ids of all keys of a store, read when they are first asked for. Cheap to clone; clones read them once.
#[derive(Clone, Debug)]
pub(crate) struct KeyIds {
    keys: Option<SubjectKeys>,
    /// With the place of the mark that erasing the owner has begun.
    ids: Arc<OnceLock<HashMap<Uuid, PathBuf>>>,
}

impl KeyIds {
    pub(crate) fn of(keys: Option<&SubjectKeys>) -> Self {
        Self { keys: keys.cloned(), ids: Arc::default() }
    }

    /// Whether the key `id` is at hand and erasing its owner has not begun: the mark comes before anything else that an
    /// erasure does, and stays. Blocking.
    pub(crate) fn has(&self, id: Uuid) -> bool {
        self.ids.get_or_init(|| self.read()).get(&id).is_some_and(|mark| !mark.exists())
    }

    /// A key that can't be read is not at hand.
    fn read(&self) -> HashMap<Uuid, PathBuf> {
        let list =
            |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let folders = self.keys.iter().flat_map(|keys| list(keys.folder.to_path_buf()));
        let files = folders.filter(|path| path.is_dir()).flat_map(list);
        files
            .filter(|file| file.extension().is_some_and(|extension| extension == "key"))
            .filter_map(|file| {
                let text = Zeroizing::new(fs::read_to_string(&file).ok()?);
                Some((parse(&text)?.id(), file.with_extension("erased")))
            })
            .collect()
    }
}
