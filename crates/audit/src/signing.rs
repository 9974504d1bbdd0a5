//! The key that checkpoints are signed with: a seed in a file, outside the database.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use gatehouse_core::{Entropy, Environment, Error, Result, Secret, shown_path};
use zeroize::Zeroizing;

use crate::domain::note::SignerKey;
use crate::files::write_once;

/// An Ed25519 seed (RFC 8032). The names of the logs make different keys of it, as the signed-note format has it.
#[derive(Clone, Debug)]
pub struct CheckpointSeed(Secret<[u8; 32]>);

impl CheckpointSeed {
    /// The seed in `file`; in dev it is made if missing, unless there are entries that it must have signed. As with the other
    /// keys, the group may read it, which is how a secret is mounted for a pod, and nobody else may.
    ///
    /// # Errors
    /// `CHECKPOINT_KEY_MISSING`, `CHECKPOINT_KEY_UNREADABLE`, `CHECKPOINT_KEY_INVALID`, `CHECKPOINT_KEY_EXPOSED` or, in dev,
    /// `CHECKPOINT_KEY_NOT_MADE`, saying what to do.
    pub fn load(file: &Path, environment: Environment, has_entries: bool, entropy: &Entropy) -> Result<Self> {
        let at = shown_path(file);
        if environment == Environment::Dev && !has_entries && !file.exists() {
            let seed = Zeroizing::new(hex::encode(*Zeroizing::new(entropy.bytes::<32>())) + "\n");
            write_once(file, &seed, entropy).map_err(|error| {
                let text = format!(
                    "audit.checkpoint_key_file: {at} can't be written: {error}. Name a file in a folder that this \
                     process may write."
                );
                Error::failed_precondition("CHECKPOINT_KEY_NOT_MADE", text)
            })?;
        }
        let mode = fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o027 != 0 {
            let text = format!(
                "audit.checkpoint_key_file: {at} is open to others on this machine (mode {:o}). Run chmod 600 on it.",
                mode & 0o777
            );
            return Err(Error::failed_precondition("CHECKPOINT_KEY_EXPOSED", text));
        }
        let text = match fs::read_to_string(file) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = if has_entries {
                    format!(
                        "audit.checkpoint_key_file: {at} is not there, and the logs in the database are signed with it. \
                         Restore it from a backup: a new key does not continue them. If it is lost, see \"Another key\" in \
                         docs/audit-log.md."
                    )
                } else {
                    format!(
                        "audit.checkpoint_key_file: {at} is not there. Make it: (umask 077; openssl rand -hex 32 > FILE), \
                         FILE being the path that the configuration names (default: audit-checkpoint.key)."
                    )
                };
                return Err(Error::failed_precondition("CHECKPOINT_KEY_MISSING", text));
            }
            // What is in it may be the only copy of the key: nobody should be led to write a new one over it.
            Err(error) if error.kind() != ErrorKind::InvalidData => {
                let text = format!(
                    "audit.checkpoint_key_file: {at} can't be read: {error}. Leave it as it is, for the logs are signed \
                     with it; check its owner and mode, and as which user this process runs."
                );
                return Err(Error::failed_precondition("CHECKPOINT_KEY_UNREADABLE", text));
            }
            Err(_) => Zeroizing::default(),
        };
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *seed)
            .map_err(|_| {
                let text = format!(
                    "audit.checkpoint_key_file: {at} is of another form. It must hold 64 hexadecimal digits. If logs \
                     were signed with it, take it from a backup: a new key does not continue them."
                );
                Error::failed_precondition("CHECKPOINT_KEY_INVALID", text)
            })?;
        Ok(Self(Secret::new(*seed)))
    }

    /// The key that signs under `name`.
    pub fn signer(&self, name: &str) -> Result<SignerKey> {
        SignerKey::from_seed(name, &self.0).map_err(|error| {
            Error::failed_precondition(
                "ORIGIN_INVALID",
                format!("audit.origin: {name:?} can't name a key: {error}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_made_in_dev_only_and_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        let entropy = Entropy::system();
        let load = |environment| CheckpointSeed::load(&file, environment, false, &entropy);
        let beside_entries =
            CheckpointSeed::load(&file, Environment::Dev, true, &entropy).expect_err("missing");
        assert!(
            beside_entries.reason() == "CHECKPOINT_KEY_MISSING"
                && !beside_entries.to_string().contains("Make it")
        );
        assert_eq!(load(Environment::Prod).expect_err("missing").reason(), "CHECKPOINT_KEY_MISSING");
        // A bare name is not shown, and no part of a command either.
        let bare = CheckpointSeed::load(Path::new("no-such.key"), Environment::Prod, false, &entropy)
            .expect_err("missing")
            .to_string();
        assert!(bare.contains("rand -hex 32 > FILE)") && !bare.contains("no-such"), "{bare}");
        let made = load(Environment::Dev).expect("made");
        let read = load(Environment::Prod).expect("read");
        let name =
            |seed: &CheckpointSeed| seed.signer("example.com/log").expect("a name").verifier().to_string();
        assert_eq!(name(&made), name(&read));
        // Nothing half-written is left beside it.
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
        for (mode, open) in
            [(0o600, false), (0o640, false), (0o400, false), (0o604, true), (0o644, true), (0o660, true)]
        {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
            for environment in [Environment::Dev, Environment::Prod] {
                let exposed =
                    load(environment).is_err_and(|error| error.reason() == "CHECKPOINT_KEY_EXPOSED");
                assert_eq!(exposed, open, "{mode:o}");
            }
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&file, "not hex").expect("written");
        assert_eq!(load(Environment::Dev).expect_err("invalid").reason(), "CHECKPOINT_KEY_INVALID");
        fs::write(&file, [0xff; 64]).expect("written");
        assert_eq!(load(Environment::Dev).expect_err("invalid").reason(), "CHECKPOINT_KEY_INVALID");
        // Nothing that can't be read is said to be of another form: that would have it written anew.
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("made");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("set");
        let unreadable = load(Environment::Dev).expect_err("a folder");
        assert_eq!(unreadable.reason(), "CHECKPOINT_KEY_UNREADABLE");
        assert!(!unreadable.to_string().contains("hexadecimal"), "{unreadable}");
        let nowhere = file.join("no/folder/key");
        let unmade =
            CheckpointSeed::load(&nowhere, Environment::Dev, false, &entropy).expect_err("no folder");
        assert_eq!(unmade.reason(), "CHECKPOINT_KEY_NOT_MADE");
    }
}
