//! Ids are newtypes over UUID version 7 (RFC 9562, section 5.7): made by the app, sorted by time of making.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::{Clock, Entropy};

/// A version 7 UUID from the given clock and chance.
#[must_use]
pub fn new_uuid(clock: &Clock, entropy: &Entropy) -> Uuid {
    let millis = u64::try_from(clock.now().as_micros() / 1000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &entropy.bytes::<10>()).into_uuid()
}

/// Whether `text` is an id as ids are written: hyphenated, lower case. What is signed, hashed or compared as text holds
/// ids in this one spelling.
#[must_use]
pub fn is_canonical(text: &str) -> bool {
    Uuid::try_parse(text).is_ok_and(|uuid| uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text)
}

/// The text was not the id that it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0} (a UUID is expected)")]
pub struct InvalidId(pub &'static str);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $label:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id.
            #[must_use]
            pub fn new(clock: &Clock, entropy: &Entropy) -> Self {
                Self(new_uuid(clock, entropy))
            }

            /// The id that `uuid` stands for.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, "({})"), self.0)
            }
        }

        /// Accepts the hyphenated form alone, in letters of either case (RFC 9562, section 4). It is written in
        /// lower case, always: where a text must be *the* spelling of an id, ask [`is_canonical`].
        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                // The hyphenated form is the one of this length.
                let uuid = Uuid::try_parse(text).ok().filter(|_| text.len() == Hyphenated::LENGTH);
                uuid.map(Self).ok_or(InvalidId($label))
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

ids! {
    /// A person: global, whatever tenants they belong to.
    PersonId = "person id";
    /// A tenant: the owner of data.
    TenantId = "tenant id";
    /// A signed-in session; also names its refresh token family.
    SessionId = "session id";
    /// An API key or another stored credential.
    CredentialId = "credential id";
    /// A job.
    JobId = "job id";
    /// A connected worker's session.
    WorkerId = "worker id";
    /// A brokered connection of a person to an upstream.
    ConnectionId = "connection id";
    /// A person's grant to an internal service to act while they are away.
    OfflineGrantId = "offline grant id";
    /// An audit event; the idempotency key of its way into the log.
    EventId = "event id";
    /// One request at the edge, carried through every hop.
    RequestId = "request id";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let clock = Clock::settable(Timestamp::from_seconds(1_000_000));
        let entropy = Entropy::seeded(3);
        let first = JobId::new(&clock, &entropy);
        clock.advance(std::time::Duration::from_millis(1));
        let second = JobId::new(&clock, &entropy);
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
    }

    #[test]
    fn letters_of_either_case_are_the_same_id() {
        let id: JobId = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e".parse().expect("an id");
        for same in ["0190B5C2-7F3E-7A52-9D2C-0B1D7CBB1F5E", "0190b5c2-7F3e-7a52-9D2c-0b1d7cbb1f5E"] {
            assert_eq!(same.parse(), Ok(id), "{same}");
            assert_eq!(
                same.parse::<JobId>().expect("an id").to_string(),
                "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e"
            );
        }
    }

    #[test]
    fn an_id_is_written_in_one_spelling() {
        let id = JobId::new(&Clock::system(), &Entropy::system()).to_string();
        assert!(is_canonical(&id));
        for other in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), String::new()] {
            assert!(!is_canonical(&other), "{other:?}");
        }
    }

    #[test]
    fn other_forms_of_an_id_are_refused() {
        let id = JobId::new(&Clock::system(), &Entropy::system()).to_string();
        let simple = id.replace('-', "");
        for wrong in [
            simple.clone(),
            simple.to_uppercase(),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            String::new(),
        ] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong:?} was accepted");
        }
        for wrong in ["1", "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5", "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5g"] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong:?} was accepted");
        }
    }
}
