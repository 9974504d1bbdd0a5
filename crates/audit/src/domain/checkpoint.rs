//! Checkpoints (C2SP tlog-checkpoint): origin, size and root of a log, in a signed note.
//!
//! A checkpoint that is kept where the log's owner can't reach it is what proves the log later.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::leaf::MAX_INTEGER;
use super::note::{NoteError, SignerKey, VerifierKey};

/// The state of a log: what [`sign`] signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's unique name, without a scheme: `gatehouse.example/prod/audit/default`.
    pub origin: String,
    /// How many entries the log has.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Digest,
}

/// Why a checkpoint was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not the three lines of a checkpoint.
    #[error("not a checkpoint (lines: origin, size, base64 of the root)")]
    Malformed,
    /// The note around it was not accepted.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// It is of another log.
    #[error("a checkpoint of {found:?}, not of {expected:?}")]
    OtherLog {
        /// The origin that it has.
        found: String,
        /// The origin that it should have.
        expected: String,
    },
}

/// The three lines that are signed.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, self.root.to_base64())
    }
}

/// Reads the three lines; extension lines after them are allowed and ignored, as the specification asks.
impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let malformed = || CheckpointError::Malformed;
        let mut lines = text.strip_suffix('\n').ok_or_else(malformed)?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointError::Malformed);
        };
        let parsed: u64 = size.parse().map_err(|_| CheckpointError::Malformed)?;
        let root = Digest::from_base64(root).ok_or_else(malformed)?;
        if origin.is_empty()
            || parsed.to_string() != size
            || parsed >= MAX_INTEGER
            || lines.any(str::is_empty)
        {
            return Err(CheckpointError::Malformed);
        }
        Ok(Self { origin: origin.to_owned(), size: parsed, root })
    }
}

impl Checkpoint {
    /// This checkpoint as a note signed by `key`.
    pub fn sign(&self, key: &SignerKey) -> Result<String, CheckpointError> {
        Ok(key.sign(&self.to_string())?)
    }

    /// Reads a signed checkpoint. The key's name must be the checkpoint's origin, as the specification advises.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        let checkpoint: Self = key.open(note)?.parse()?;
        if checkpoint.origin == key.name() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::OtherLog { found: checkpoint.origin, expected: key.name().to_owned() })
        }
    }

    /// Reads a checkpoint that one of `keys` signed, and says which. If none did, the error is the one that says most:
    /// that of a key which a line claims to be by.
    pub fn open_by_any<'a>(
        note: &str,
        keys: impl IntoIterator<Item = &'a VerifierKey>,
    ) -> Result<(Self, &'a VerifierKey), CheckpointError> {
        let mut refused = CheckpointError::Note(NoteError::NotSigned);
        for key in keys {
            match Self::open(note, key) {
                Ok(checkpoint) => return Ok((checkpoint, key)),
                Err(CheckpointError::Note(NoteError::NotSigned)) => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Reads a checkpoint without looking at its signatures: for one that its holder trusts because they kept it
    /// themselves.
    pub fn read_unsigned(note: &str) -> Result<Self, CheckpointError> {
        text_of(note).parse()
    }
}

/// What a note says, without the signatures that follow it: all of it, if there are none.
pub(super) fn text_of(note: &str) -> &str {
    note.rfind("\n\n").map_or(note, |blank| &note[..=blank])
}

#[cfg(test)]
mod tests {
    use gatehouse_core::Entropy;

    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: "example.com/behind-the-sofa".into(),
            size: 20_852_163,
            root: Digest::of(&[b"root"]),
        }
    }

    #[test]
    fn a_checkpoint_reads_back_by_its_own_key_only() {
        let key =
            SignerKey::generate("example.com/behind-the-sofa", &Entropy::seeded(1)).expect("a valid name");
        let note = checkpoint().sign(&key).expect("valid text");
        assert_eq!(Checkpoint::open(&note, &key.verifier()), Ok(checkpoint()));
        assert_eq!(Checkpoint::read_unsigned(&note), Ok(checkpoint()));
        let other = SignerKey::generate("example.com/other", &Entropy::seeded(1)).expect("a valid name");
        assert!(Checkpoint::open(&note, &other.verifier()).is_err());
        let foreign = checkpoint().sign(&other).expect("valid text");
        assert!(matches!(
            Checkpoint::open(&foreign, &other.verifier()),
            Err(CheckpointError::OtherLog { .. })
        ));
    }

    #[test]
    fn only_the_form_of_the_specification_is_read() {
        let root = Digest::of(&[b"root"]).to_base64();
        // The example of C2SP tlog-checkpoint.
        let text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        assert_eq!(text.parse::<Checkpoint>().expect("valid").to_string(), text);
        assert!(format!("o\n1\n{root}\nextension\n").parse::<Checkpoint>().is_ok());
        for wrong in [
            String::new(),
            format!("\n1\n{root}\n"),
            format!("o\n01\n{root}\n"),
            format!("o\n+1\n{root}\n"),
            format!("o\n-1\n{root}\n"),
            format!("o\n18446744073709551616\n{root}\n"),
            format!("o\n1\n{root}"),
            format!("o\n1\n{root}\n\n"),
            format!("o\n1\n{}\n", &root[1..]),
            "o\n1\n".to_owned(),
        ] {
            assert!(wrong.parse::<Checkpoint>().is_err(), "{wrong:?}");
        }
    }
}
