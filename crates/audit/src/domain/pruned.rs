//! The statement that the front of a log was pruned: a checkpoint of what was removed, signed under a name of its own,
//! which also says when the last entry that was removed had been recorded.

use std::fmt;
use std::str::FromStr;

use gatehouse_core::Timestamp;

use super::checkpoint::{Checkpoint, CheckpointError, text_of};
use super::leaf::MAX_INTEGER;
use super::note::{SignerKey, VerifierKey};

/// Begins the extension line.
const LAST_RECORDED: &str = "last-recorded-us ";

/// What was removed from the front of a log: what [`sign`](Pruned::sign) signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Size and root of what was removed, under the log's name with `/pruned` behind it.
    pub checkpoint: Checkpoint,
    /// The `recorded_us` of the last entry that was removed; `None` in statements of the older form.
    pub last_recorded: Option<Timestamp>,
}

/// The lines that are signed: those of the checkpoint, and the time in an extension line.
impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.checkpoint)?;
        match self.last_recorded {
            Some(at) => writeln!(f, "{LAST_RECORDED}{}", at.as_micros().max(0)),
            None => Ok(()),
        }
    }
}

/// Reads both forms. Other extension lines are ignored, as the specification asks; a time that can't be read is not.
impl FromStr for Pruned {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let checkpoint = text.parse()?;
        let mut times = text.lines().skip(3).filter_map(|line| line.strip_prefix(LAST_RECORDED));
        let last_recorded = match (times.next(), times.next()) {
            (None, _) => None,
            (Some(time), None) => Some(micros(time).ok_or(CheckpointError::Malformed)?),
            (Some(_), Some(_)) => return Err(CheckpointError::Malformed),
        };
        Ok(Self { checkpoint, last_recorded })
    }
}

fn micros(text: &str) -> Option<Timestamp> {
    let number: u64 = text.parse().ok().filter(|number| *number < MAX_INTEGER)?;
    let micros = i64::try_from(number).ok()?;
    (number.to_string() == text).then(|| Timestamp::from_micros(micros))
}

impl Pruned {
    /// This statement as a note signed by `key`.
    pub fn sign(&self, key: &SignerKey) -> Result<String, CheckpointError> {
        Ok(key.sign(&self.to_string())?)
    }

    /// Reads a signed statement. The key's name must be its origin.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        // Checks the signature and the name.
        Checkpoint::open(note, key)?;
        key.open(note)?.parse()
    }

    /// Reads a statement that one of `keys` signed.
    pub fn open_by_any<'a>(
        note: &str,
        keys: impl IntoIterator<Item = &'a VerifierKey>,
    ) -> Result<Self, CheckpointError> {
        let (_, key) = Checkpoint::open_by_any(note, keys)?;
        key.open(note)?.parse()
    }

    /// Reads a statement without looking at its signatures.
    pub fn read_unsigned(note: &str) -> Result<Self, CheckpointError> {
        text_of(note).parse()
    }
}

#[cfg(test)]
mod tests {
    use gatehouse_core::Entropy;

    use super::*;
    use crate::domain::digest::Digest;

    fn statement(last_recorded: Option<Timestamp>) -> Pruned {
        let checkpoint =
            Checkpoint { origin: "example.com/log/pruned".into(), size: 7, root: Digest::of(&[b"root"]) };
        Pruned { checkpoint, last_recorded }
    }

    #[test]
    fn both_forms_read_back() {
        let key = SignerKey::generate("example.com/log/pruned", &Entropy::seeded(1)).expect("a valid name");
        for statement in [statement(None), statement(Some(Timestamp::from_micros(1_790_000_000_250_000)))] {
            let note = statement.sign(&key).expect("valid text");
            assert_eq!(Pruned::open(&note, &key.verifier()), Ok(statement.clone()));
            assert_eq!(Pruned::read_unsigned(&note), Ok(statement.clone()));
            // Another reader sees a checkpoint.
            assert_eq!(Checkpoint::open(&note, &key.verifier()), Ok(statement.checkpoint));
        }
        let late = statement(Some(Timestamp::from_micros(2))).sign(&key).expect("valid text");
        let forged = late.replace("last-recorded-us 2", "last-recorded-us 1");
        assert!(Pruned::open(&forged, &key.verifier()).is_err());
    }

    #[test]
    fn a_time_has_one_spelling_and_stands_there_once() {
        let text = statement(None).to_string();
        for wrong in ["x", "01", "-1", "+1", "9007199254740992", "1\nlast-recorded-us 1"] {
            assert!(format!("{text}{LAST_RECORDED}{wrong}\n").parse::<Pruned>().is_err(), "{wrong}");
        }
        assert_eq!(format!("{text}other\n").parse(), Ok(statement(None)));
    }
}
