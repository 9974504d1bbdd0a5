//! Which of the three worlds a process belongs to (requirement P2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `dev`, `staging` or `prod`, and nothing else. It is bound into issuers, credential prefixes and the
/// associated data of everything sealed, so that what one environment made is worthless in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// A person's own machine: loopback only, relaxed where documented.
    Dev,
    /// Production's rules on data that is not production's.
    Staging,
    /// Production.
    Prod,
}

impl Environment {
    /// The name as it stands in `GATEHOUSE_ENV`, issuers and prefixes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Staging => "staging",
            Self::Prod => "prod",
        }
    }

    /// Whether the relaxed rules of a person's own machine apply.
    #[must_use]
    pub const fn is_dev(self) -> bool {
        matches!(self, Self::Dev)
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text was none of the three names. It is not repeated: it may be a secret in the wrong place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the environment (GATEHOUSE_ENV) must be one of dev, staging, prod")]
pub struct UnknownEnvironment;

impl FromStr for Environment {
    type Err = UnknownEnvironment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "dev" => Ok(Self::Dev),
            "staging" => Ok(Self::Staging),
            "prod" => Ok(Self::Prod),
            _ => Err(UnknownEnvironment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_names_parse() {
        for environment in [Environment::Dev, Environment::Staging, Environment::Prod] {
            assert_eq!(environment.as_str().parse(), Ok(environment));
        }
        for wrong in ["", "production", "PROD", "local", "dev "] {
            assert!(wrong.parse::<Environment>().is_err(), "{wrong:?} was accepted");
        }
    }
}
