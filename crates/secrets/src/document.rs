//! A secret as one document: the rules of the contract as pure functions, shared by every backend that stores
//! whole documents and swaps them atomically.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_core::{Secret, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::{Error, IdempotencyToken, MAX_VERSIONS, Result, VersionId};

/// One version with its value.
#[derive(Clone, Debug)]
pub struct SecretVersion {
    /// Its name.
    pub id: VersionId,
    /// What was put.
    pub value: Secret<Vec<u8>>,
    /// When it was put.
    pub created_at: Timestamp,
}

/// One version without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its name.
    pub id: VersionId,
    /// When it was put.
    pub created_at: Timestamp,
    /// Whether it is the current one.
    pub is_current: bool,
}

/// One secret: its versions in the order they were put, and which is current.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document {
    current: Option<VersionId>,
    versions: Vec<SecretVersion>,
}

/// A change, as a value: a backend may have to apply it again to what another writer left.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Put { token: IdempotencyToken, value: Secret<Vec<u8>>, now: Timestamp },
    Promote { version: VersionId, expected: Option<VersionId> },
    DeleteVersion { version: VersionId },
}

impl Document {
    /// Applies `mutation`; says whether anything changed and must be stored.
    pub(crate) fn apply(&mut self, mutation: &Mutation) -> Result<bool> {
        match mutation {
            Mutation::Put { token, value, now } => self.put(&VersionId::of(token), value, *now),
            Mutation::Promote { version, expected } => self.promote(version, expected.as_ref()),
            Mutation::DeleteVersion { version } => self.delete_version(version),
        }
    }

    fn put(&mut self, id: &VersionId, value: &Secret<Vec<u8>>, now: Timestamp) -> Result<bool> {
        if let Some(there) = self.version(id) {
            // Both are secrets that the caller holds already, so the comparison's time tells it nothing.
            return if there.value.expose() == value.expose() { Ok(false) } else { Err(Error::TokenReused) };
        }
        if self.versions.len() >= MAX_VERSIONS {
            return Err(Error::TooManyVersions);
        }
        self.versions.push(SecretVersion { id: id.clone(), value: value.clone(), created_at: now });
        Ok(true)
    }

    fn promote(&mut self, version: &VersionId, expected: Option<&VersionId>) -> Result<bool> {
        if self.current.as_ref() == Some(version) {
            return Ok(false);
        }
        if self.current.as_ref() != expected {
            return Err(Error::Conflict { current: self.current.clone() });
        }
        if self.version(version).is_none() {
            return Err(Error::VersionNotFound);
        }
        self.current = Some(version.clone());
        Ok(true)
    }

    fn delete_version(&mut self, version: &VersionId) -> Result<bool> {
        if self.current.as_ref() == Some(version) {
            return Err(Error::IsCurrent);
        }
        let before = self.versions.len();
        self.versions.retain(|there| there.id != *version);
        Ok(self.versions.len() != before)
    }

    pub(crate) fn version(&self, id: &VersionId) -> Option<&SecretVersion> {
        self.versions.iter().find(|version| version.id == *id)
    }

    pub(crate) fn current(&self) -> Option<&SecretVersion> {
        self.current.as_ref().and_then(|id| self.version(id))
    }

    pub(crate) fn list(&self) -> Vec<VersionInfo> {
        self.versions
            .iter()
            .map(|version| VersionInfo {
                id: version.id.clone(),
                created_at: version.created_at,
                is_current: self.current.as_ref() == Some(&version.id),
            })
            .collect()
    }

    /// As JSON, with room reserved so that no partly written copy is left behind by a growing buffer.
    pub(crate) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>> {
        let wire = Wire {
            format: 1,
            current: self.current.as_ref().map(|id| id.as_str().to_owned()),
            versions: self
                .versions
                .iter()
                .map(|version| WireVersion {
                    id: version.id.as_str().to_owned(),
                    created_us: version.created_at.as_micros(),
                    value: STANDARD.encode(version.value.expose()),
                })
                .collect(),
        };
        let room = 256 + wire.versions.iter().map(|version| version.value.len() + 256).sum::<usize>();
        let mut text = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *text, &wire).map_err(Error::unavailable)?;
        Ok(text)
    }

    /// Reads back [`Document::to_json`]. `place` names where it lay, for the error.
    pub(crate) fn from_json(text: &[u8], place: &str) -> Result<Self> {
        // serde_json's own message may quote the text, which holds secrets.
        let corrupt = |problem: &str| Error::Corrupt { place: place.to_owned(), problem: problem.to_owned() };
        let mut wire: Wire =
            serde_json::from_slice(text).map_err(|_| corrupt("it is not a secret's document"))?;
        if wire.format != 1 {
            return Err(corrupt("its format is of a later release"));
        }
        let current = wire.current.take().map(VersionId::parse).transpose()?;
        let versions = wire
            .versions
            .drain(..)
            .map(|mut version| {
                let value = STANDARD.decode(&version.value).map_err(|_| corrupt("a value is not base64"));
                version.value.zeroize();
                Ok(SecretVersion {
                    id: VersionId::parse(std::mem::take(&mut version.id))?,
                    value: Secret::new(value?),
                    created_at: Timestamp::from_micros(version.created_us),
                })
            })
            .collect::<Result<_>>()?;
        let document = Self { current, versions };
        if document.current.is_some() && document.current().is_none() {
            return Err(corrupt("its current version is missing"));
        }
        Ok(document)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: u32,
    current: Option<String>,
    versions: Vec<WireVersion>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireVersion {
    id: String,
    created_us: i64,
    value: String,
}

impl Drop for WireVersion {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}
