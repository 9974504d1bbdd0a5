//! The key that checkpoints are signed with: a seed in a file, outside the database.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use gatehouse_core::{Entropy, Environment, Error, Result, Secret};
use zeroize::Zeroizing;

use crate::domain::note::SignerKey;

/// An Ed25519 seed (RFC 8032). The names of the logs make different keys of it, as the signed-note format has it.
#[derive(Clone, Debug)]
pub struct CheckpointSeed(Secret<[u8; 32]>);

impl CheckpointSeed {
    /// The seed in `file`; in dev it is made if missing.
    ///
    /// # Errors
    /// `CHECKPOINT_KEY_MISSING` or `CHECKPOINT_KEY_INVALID`, saying what to do.
    pub fn load(file: &Path, environment: Environment, entropy: &Entropy) -> Result<Self> {
        let at = file.display();
        let invalid = |why: String| {
            let text = format!("audit.checkpoint_key_file: {at} {why}. It must hold 64 hexadecimal digits.");
            Error::failed_precondition("CHECKPOINT_KEY_INVALID", text)
        };
        let text = match fs::read_to_string(file) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound && environment == Environment::Dev => {
                let text = Zeroizing::new(hex::encode(*Zeroizing::new(entropy.bytes::<32>())) + "\n");
                let written = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(file)
                    .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
                written.map_err(|error| invalid(format!("can't be written: {error}")))?;
                text
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::failed_precondition(
                    "CHECKPOINT_KEY_MISSING",
                    format!(
                        "audit.checkpoint_key_file: {at} is not there. Make it: openssl rand -hex 32 > {at}"
                    ),
                ));
            }
            Err(error) => return Err(invalid(format!("can't be read: {error}"))),
        };
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *seed)
            .map_err(|_| invalid("is of another form".to_owned()))?;
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
        let load = |environment| CheckpointSeed::load(&file, environment, &entropy);
        assert_eq!(load(Environment::Prod).expect_err("missing").reason(), "CHECKPOINT_KEY_MISSING");
        let made = load(Environment::Dev).expect("made");
        let read = load(Environment::Prod).expect("read");
        let name =
            |seed: &CheckpointSeed| seed.signer("example.com/log").expect("a name").verifier().to_string();
        assert_eq!(name(&made), name(&read));
        fs::write(&file, "not hex").expect("written");
        assert_eq!(load(Environment::Dev).expect_err("invalid").reason(), "CHECKPOINT_KEY_INVALID");
    }
}
