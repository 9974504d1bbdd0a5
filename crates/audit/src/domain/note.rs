//! Signed notes (C2SP signed-note): a text, a blank line, one signature line a key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use gatehouse_core::{Entropy, Secret};

use super::digest::Digest;
use super::names::LogId;

/// The signature type of Ed25519 keys.
const ED25519: u8 = 0x01;
/// What a signature line starts with: an em dash (U+2014) and a space.
const SIGNATURE_PREFIX: &str = "\u{2014} ";
/// A note is at most this long, in bytes.
pub const MAX_NOTE_BYTES: usize = 1 << 20;
/// A note has at most this many signature lines, as in the Go implementation.
pub const MAX_SIGNATURES: usize = 100;

/// Why a note or a key was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not of the form of a signed note.
    #[error("not a signed note (text, a blank line, then lines \"\u{2014} name base64\")")]
    Malformed,
    /// A key's text is not `name+hash+base64`, or its hash is another key's.
    #[error("not a verifier key (name+hash+base64, Ed25519)")]
    MalformedKey,
    /// A name is empty, or has white space or a plus.
    #[error("a key's name must not be empty nor hold white space or a plus")]
    MalformedName,
    /// No line is by the key that is trusted.
    #[error("no signature by the trusted key")]
    NotSigned,
    /// A line claims to be by the trusted key, and is not.
    #[error("the signature does not match")]
    WrongSignature,
}

fn checked_name(name: &str) -> Result<&str, NoteError> {
    let bad = name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if bad { Err(NoteError::MalformedName) } else { Ok(name) }
}

/// The first four bytes of SHA-256 over name, newline, type and public key.
fn key_hash(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let digest = Digest::of(&[name.as_bytes(), b"\n", &[ED25519], key.as_bytes()]);
    let [a, b, c, d, ..] = *digest.as_bytes();
    [a, b, c, d]
}

/// A key that notes are checked with, under the name of its log: `name+hash+base64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: VerifyingKey,
}

impl VerifierKey {
    /// The name that its signatures stand under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same key under another name.
    pub fn renamed(&self, name: &str) -> Result<Self, NoteError> {
        Ok(Self { name: checked_name(name)?.to_owned(), key: self.key })
    }

    /// The same key as that of `log`: every log of an installation is signed with one seed, under its own name.
    pub fn of_log(&self, log: &LogId) -> Result<Self, NoteError> {
        match self.name.rsplit_once('/') {
            Some((before, _)) => self.renamed(&format!("{before}/{log}")),
            None => Ok(self.clone()),
        }
    }

    /// The text of `note` if this key signed it. Lines by other keys are ignored; a line that claims to be by
    /// this one and is wrong refuses the note.
    pub fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let (text, signatures) = split(note)?;
        let mine = key_hash(&self.name, &self.key);
        let (_, _, signature) = signatures
            .iter()
            .find(|(name, hash, _)| *name == self.name && *hash == mine)
            .ok_or(NoteError::NotSigned)?;
        let signature = Signature::from_slice(signature).map_err(|_| NoteError::WrongSignature)?;
        self.key.verify_strict(text.as_bytes(), &signature).map_err(|_| NoteError::WrongSignature)?;
        Ok(text)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![ED25519];
        key.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{}+{}", self.name, hex::encode(key_hash(&self.name, &self.key)), STANDARD.encode(key))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let malformed = |_| NoteError::MalformedKey;
        // The base64 part may hold a plus itself; the name and the hash can't.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::MalformedKey);
        };
        let name = checked_name(name)?.to_owned();
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::MalformedKey)?;
        let Some((&ED25519, key)) = bytes.split_first() else { return Err(NoteError::MalformedKey) };
        let key: [u8; 32] = key.try_into().map_err(malformed)?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| NoteError::MalformedKey)?;
        if hex::encode(key_hash(&name, &key)) == hash {
            Ok(Self { name, key })
        } else {
            Err(NoteError::MalformedKey)
        }
    }
}

/// A key that signs notes, under the name of its log.
#[derive(Clone)]
pub struct SignerKey {
    name: String,
    key: SigningKey,
}

impl SignerKey {
    /// The key with this seed (32 bytes, RFC 8032) under this name, the origin of the log.
    pub fn from_seed(name: &str, seed: &Secret<[u8; 32]>) -> Result<Self, NoteError> {
        Ok(Self { name: checked_name(name)?.to_owned(), key: SigningKey::from_bytes(seed.expose()) })
    }

    /// A fresh key under this name.
    pub fn generate(name: &str, entropy: &Entropy) -> Result<Self, NoteError> {
        Self::from_seed(name, &Secret::new(entropy.bytes()))
    }

    /// The key that checks what this one signs.
    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        VerifierKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// `note` with a line by this key behind those that it has: what it says stays the same.
    pub fn countersign(&self, note: &str) -> Result<String, NoteError> {
        let (text, lines) = split(note)?;
        if lines.len() >= MAX_SIGNATURES {
            return Err(NoteError::Malformed);
        }
        let own = self.sign(text)?;
        Ok(format!("{note}{}", own.get(text.len() + 1..).unwrap_or_default()))
    }

    /// `text` as a note signed by this key. Text must be non-empty, end with a newline and have no control
    /// character but newlines.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        if !text.ends_with('\n') || text.chars().any(|c| c < ' ' && c != '\n') {
            return Err(NoteError::Malformed);
        }
        let mut signature = key_hash(&self.name, &self.key.verifying_key()).to_vec();
        signature.extend_from_slice(&self.key.sign(text.as_bytes()).to_bytes());
        Ok(format!("{text}\n{SIGNATURE_PREFIX}{} {}\n", self.name, STANDARD.encode(signature)))
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey({}, …)", self.name)
    }
}

/// One signature line: name, key hash, signature.
type SignatureLine<'a> = (&'a str, [u8; 4], Vec<u8>);

/// Text and signature lines, unchecked.
fn split(note: &str) -> Result<(&str, Vec<SignatureLine<'_>>), NoteError> {
    if note.len() > MAX_NOTE_BYTES || note.chars().any(|c| c < ' ' && c != '\n') {
        return Err(NoteError::Malformed);
    }
    let blank = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
    let (text, lines) = (&note[..=blank], &note[blank + 2..]);
    let lines = lines.strip_suffix('\n').ok_or(NoteError::Malformed)?;
    let signatures = lines.split('\n').map(signature_line).collect::<Result<Vec<_>, _>>()?;
    if signatures.len() > MAX_SIGNATURES { Err(NoteError::Malformed) } else { Ok((text, signatures)) }
}

fn signature_line(line: &str) -> Result<SignatureLine<'_>, NoteError> {
    let malformed = || NoteError::Malformed;
    let line = line.strip_prefix(SIGNATURE_PREFIX).ok_or_else(malformed)?;
    let (name, signature) = line.split_once(' ').ok_or_else(malformed)?;
    checked_name(name).map_err(|_| NoteError::Malformed)?;
    let signature = STANDARD.decode(signature).map_err(|_| NoteError::Malformed)?;
    let (hash, signature) = signature.split_first_chunk::<4>().ok_or_else(malformed)?;
    if signature.is_empty() { Err(NoteError::Malformed) } else { Ok((name, *hash, signature.to_vec())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The key and note of the Go implementation's documentation (golang.org/x/mod/sumdb/note).
    const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const GO_SEED: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const GO_TEXT: &str = "If you think cryptography is the answer to your problem,\n\
                           then you don't know what your problem is.\n";
    const GO_SIGNATURE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNX\
                                gKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn go_signer() -> SignerKey {
        let seed = STANDARD.decode(GO_SEED).expect("base64");
        let seed: [u8; 32] = seed[1..].try_into().expect("32 bytes");
        SignerKey::from_seed("PeterNeumann", &Secret::new(seed)).expect("a valid name")
    }

    #[test]
    fn we_write_what_go_writes_and_read_what_it_wrote() {
        let note = format!("{GO_TEXT}\n{GO_SIGNATURE}");
        assert_eq!(go_signer().sign(GO_TEXT), Ok(note.clone()));
        assert_eq!(go_signer().verifier().to_string(), GO_KEY);
        let key: VerifierKey = GO_KEY.parse().expect("a valid key");
        assert_eq!(key.open(&note), Ok(GO_TEXT));
        // The example of C2SP signed-note.
        let key: VerifierKey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
            .parse()
            .expect("a valid key");
        assert_eq!(
            key.open(
                "This is an example message.\n\n\u{2014} example.com/foo \
                 Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
            ),
            Ok("This is an example message.\n")
        );
    }

    #[test]
    fn other_keys_are_ignored_and_wrong_signatures_refused() {
        let other = SignerKey::generate("example.com/log", &Entropy::seeded(1)).expect("a valid name");
        let note = other.sign(GO_TEXT).expect("valid text");
        let key = go_signer().verifier();
        assert_eq!(key.open(&note), Err(NoteError::NotSigned));
        assert_eq!(key.open(&format!("{note}{GO_SIGNATURE}")), Ok(GO_TEXT));
        let wrong = format!("{GO_TEXT}x\n\n{GO_SIGNATURE}");
        assert_eq!(key.open(&wrong), Err(NoteError::WrongSignature));
    }

    #[test]
    fn a_countersigned_note_reads_by_both_keys() {
        let other = SignerKey::generate("PeterNeumann", &Entropy::seeded(1)).expect("a valid name");
        let note = other.countersign(&go_signer().sign(GO_TEXT).expect("valid text")).expect("a note");
        for key in [go_signer().verifier(), other.verifier()] {
            assert_eq!(key.open(&note), Ok(GO_TEXT));
        }
        assert_eq!(note.lines().count(), 5);
        assert_eq!(other.countersign("no note"), Err(NoteError::Malformed));
        let full = format!("{GO_TEXT}\n{}", GO_SIGNATURE.repeat(MAX_SIGNATURES));
        assert_eq!(other.countersign(&full), Err(NoteError::Malformed));
    }

    #[test]
    fn malformed_notes_and_keys_are_refused() {
        let key: VerifierKey = GO_KEY.parse().expect("a valid key");
        for wrong in [
            String::new(),
            GO_TEXT.to_owned(),
            format!("{GO_TEXT}{GO_SIGNATURE}"),
            format!("{GO_TEXT}\n{}", GO_SIGNATURE.trim_end()),
            format!("{GO_TEXT}\n{}", GO_SIGNATURE.replace('\u{2014}', "-")),
            format!("{GO_TEXT}\n{GO_SIGNATURE}\n"),
            format!("{GO_TEXT}\n{}", GO_SIGNATURE.repeat(MAX_SIGNATURES + 1)),
            format!("a\rb\n\n{GO_SIGNATURE}"),
        ] {
            assert_eq!(key.open(&wrong), Err(NoteError::Malformed), "{wrong:?}");
        }
        for wrong in [
            "",
            "a+b",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "a b+00000000+AA==",
        ] {
            assert!(wrong.parse::<VerifierKey>().is_err(), "{wrong:?}");
        }
        assert!(go_signer().sign("no newline").is_err());
        assert!(SignerKey::generate("a+b", &Entropy::seeded(1)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn one_changed_byte_is_never_accepted(place in 0_usize..300, byte: u8) {
            let note = format!("{GO_TEXT}\n{GO_SIGNATURE}");
            let mut bytes = note.clone().into_bytes();
            let place = place % bytes.len();
            bytes[place] = byte;
            let key: VerifierKey = GO_KEY.parse().expect("a valid key");
            if let Ok(text) = String::from_utf8(bytes) && text != note {
                proptest::prop_assert!(key.open(&text).is_err());
            }
        }
    }
}
