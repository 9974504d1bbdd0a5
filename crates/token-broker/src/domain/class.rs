//! How an upstream treats a refresh token that was used: what a rotation whose answer was lost may hope for.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A provider's class of rotation. It decides how soon an attempt with an unknown outcome must be repeated to be
/// within the provider's leeway; never whether, for the only other way on is to ask the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RotationClass {
    /// The same refresh token for ever; an answer brings none.
    NoRotate,
    /// Answers bring a new one, and the old one goes on working.
    KeepOld,
    /// The old one works for this long after its first use (Atlassian: 10 minutes).
    Grace(Duration),
    /// The old one works until its successor has been used.
    UntilUsed,
    /// The old one is dead from its first use.
    #[default]
    Strict,
    /// As strict, and showing a dead one kills every token of the family.
    StrictFamily,
}

impl RotationClass {
    /// The longest lease that leaves time to repeat within the leeway; `None` where there is no such bound.
    #[must_use]
    pub fn longest_lease(self) -> Option<Duration> {
        match self {
            Self::Grace(window) => Some(window / 2),
            _ => None,
        }
    }
}

/// The text was none of the classes. Does not say what it was, which may be a secret in the wrong place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must be one of norotate, keepold, grace(<seconds>), until_used, strict, strict_family")]
pub struct UnknownClass;

impl FromStr for RotationClass {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "norotate" => Self::NoRotate,
            "keepold" => Self::KeepOld,
            "until_used" => Self::UntilUsed,
            "strict" => Self::Strict,
            "strict_family" => Self::StrictFamily,
            other => {
                let seconds = other.strip_prefix("grace(").and_then(|rest| rest.strip_suffix(')'));
                let seconds: u32 = seconds.and_then(|seconds| seconds.parse().ok()).ok_or(UnknownClass)?;
                if seconds == 0 {
                    return Err(UnknownClass);
                }
                Self::Grace(Duration::from_secs(seconds.into()))
            }
        })
    }
}

impl fmt::Display for RotationClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRotate => f.write_str("norotate"),
            Self::KeepOld => f.write_str("keepold"),
            Self::Grace(window) => write!(f, "grace({})", window.as_secs()),
            Self::UntilUsed => f.write_str("until_used"),
            Self::Strict => f.write_str("strict"),
            Self::StrictFamily => f.write_str("strict_family"),
        }
    }
}

impl Serialize for RotationClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RotationClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_read_back() {
        for text in ["norotate", "keepold", "grace(600)", "until_used", "strict", "strict_family"] {
            assert_eq!(text.parse::<RotationClass>().unwrap().to_string(), text);
        }
        for wrong in ["", "grace", "grace()", "grace(0)", "grace(-1)", "grace(1", "Strict", "none"] {
            assert!(wrong.parse::<RotationClass>().is_err(), "{wrong:?} was accepted");
        }
    }
}
