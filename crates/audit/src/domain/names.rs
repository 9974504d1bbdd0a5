//! The words that a leaf may carry. Each has a narrow alphabet without quotes, spaces or `@`: no name, e-mail
//! address or network address of a person fits, and none ever needs escaping.

use std::fmt;
use std::str::FromStr;

use gatehouse_core::ids::is_canonical;
// What a service may write into its outbox is what is taken here.
use gatehouse_outbox::words;
use uuid::Uuid;

/// A word of a leaf was not of the form that it must have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected}")]
pub struct InvalidName {
    /// Which word.
    pub what: &'static str,
    /// The form that it must have.
    pub expected: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident($what:literal, $fits:path, $expected:literal);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            #[doc = concat!("Checks the form: ", $expected, ".")]
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                if $fits(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidName { what: $what, expected: $expected })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The name of one log, `standard` say. Each retention class has its own log, because only a prefix of a
    /// log can be pruned.
    LogId("the log", words::is_class, "1 to 32 of a-z, 0-9 and -, a letter first");
    /// How long the entries of a log are kept: a name that the configuration gives days to.
    RetentionClass("the retention class", words::is_class, "1 to 32 of a-z, 0-9 and -, a letter first");
    /// The service that the event happened in.
    Service("the service", words::is_class, "1 to 32 of a-z, 0-9 and -, a letter first");
    /// What was done: `service.noun.verb`, as permissions are written.
    Action("the action", words::is_action, "1 to 96 of a-z, 0-9, dot, _ and -, a letter first");
    /// The name of an internal client, never of a person.
    ClientName("the client's name", words::is_name, "1 to 64 of a-z, 0-9, dot, _ and -, a letter first");
    /// The kind of thing that was acted upon: `job`, `tenant`.
    TargetKind("the target's kind", words::is_kind, "1 to 32 of a-z, 0-9, _ and -, a letter first");
}

/// Whether what was tried was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was refused: the caller lacked a permission or a proof.
    Denied,
    /// It was allowed and failed.
    Failure,
}

impl Outcome {
    /// The word in the leaf.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failure => "failure",
        }
    }
}

impl FromStr for Outcome {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "success" => Ok(Self::Success),
            "denied" => Ok(Self::Denied),
            "failure" => Ok(Self::Failure),
            _ => Err(InvalidName { what: "the outcome", expected: "success, denied or failure" }),
        }
    }
}

/// A stable name of why something was refused or failed: `INVALID_PASSWORD`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason(String);

impl Reason {
    /// Checks the form: 1 to 64 of A-Z, 0-9 and _, a letter first.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if words::is_reason(&text) {
            Ok(Self(text))
        } else {
            Err(InvalidName { what: "the reason", expected: "1 to 64 of A-Z, 0-9 and _, a letter first" })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What stands for a person in a leaf: a keyed digest of their id under their own subject key
/// ([`super::seal::SubjectKey::pseudonym`]). The same person has the same pseudonym for as long as the key
/// lives; once it is shredded, nothing links the two any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pseudonym([u8; 16]);

impl Pseudonym {
    /// The pseudonym with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// 32 lower-case hexadecimal digits.
impl fmt::Display for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Pseudonym {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut bytes = [0; 16];
        let canonical = text.len() == 32 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        if canonical && hex::decode_to_slice(text, &mut bytes).is_ok() {
            Ok(Self(bytes))
        } else {
            Err(InvalidName { what: "the pseudonym", expected: "32 lower-case hexadecimal digits" })
        }
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A person, by pseudonym: `person:<32 hex digits>`.
    Person(Pseudonym),
    /// A tenant's API key: `api_key:<UUID>`.
    ApiKey(Uuid),
    /// An internal client: `client:<name>`.
    Client(ClientName),
    /// A part of Gatehouse on its own account, such as a purge: `system:<service>`.
    System(Service),
    /// Nobody who was known yet: `anonymous`.
    Anonymous,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person(pseudonym) => write!(f, "person:{pseudonym}"),
            Self::ApiKey(id) => write!(f, "api_key:{id}"),
            Self::Client(name) => write!(f, "client:{name}"),
            Self::System(service) => write!(f, "system:{service}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

impl FromStr for Actor {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once(':') {
            Some(("person", pseudonym)) => pseudonym.parse().map(Self::Person),
            Some(("api_key", id)) => canonical_uuid("the API key", id).map(Self::ApiKey),
            Some(("client", name)) => ClientName::new(name).map(Self::Client),
            Some(("system", service)) => Service::new(service).map(Self::System),
            None if text == "anonymous" => Ok(Self::Anonymous),
            _ => Err(InvalidName {
                what: "the actor",
                expected: "person:<pseudonym>, api_key:<UUID>, client:<name>, system:<service> or anonymous",
            }),
        }
    }
}

/// What was acted upon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A person, by pseudonym: `person/<32 hex digits>`.
    Person(Pseudonym),
    /// A thing with an id: `job/<UUID>`.
    Id(TargetKind, Uuid),
    /// A thing of the installation with a name that no person chose for themselves: `flag/<name>`.
    Named(TargetKind, ClientName),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person(pseudonym) => write!(f, "person/{pseudonym}"),
            Self::Id(kind, id) => write!(f, "{kind}/{id}"),
            Self::Named(kind, name) => write!(f, "{kind}/{name}"),
        }
    }
}

impl FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some(("person", pseudonym)) => pseudonym.parse().map(Self::Person),
            Some((kind, id)) => {
                let kind = TargetKind::new(kind)?;
                match canonical_uuid("the target's id", id) {
                    Ok(id) => Ok(Self::Id(kind, id)),
                    Err(_) => Ok(Self::Named(kind, ClientName::new(id)?)),
                }
            }
            None => Err(InvalidName {
                what: "the target",
                expected: "person/<pseudonym>, <kind>/<UUID> or <kind>/<name>",
            }),
        }
    }
}

/// Reads the one spelling of a UUID that a leaf uses: hyphenated, lower case.
pub(super) fn canonical_uuid(what: &'static str, text: &str) -> Result<Uuid, InvalidName> {
    let canonical = is_canonical(text).then(|| Uuid::try_parse(text).ok()).flatten();
    canonical.ok_or(InvalidName { what, expected: "a hyphenated lower-case UUID" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_could_hold_a_person_are_refused() {
        for text in ["", "Ada", "ada@example.com", "10.0.0.1", "a b", "a\"", "é", "-a", "a\n"] {
            assert!(LogId::new(text).is_err(), "{text:?}");
            assert!(text.parse::<Actor>().is_err(), "{text:?}");
            assert!(text.parse::<Target>().is_err(), "{text:?}");
            assert!(Action::new(text).is_err(), "{text:?}");
        }
        assert!("person:ada".parse::<Actor>().is_err());
        assert!("person/ada".parse::<Target>().is_err());
        assert!("person/0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e".parse::<Target>().is_err());
        assert!("job/0190B5C2-7f3e-7a52-9d2c-0b1d7cbb1f5e".parse::<Target>().is_err());
    }

    #[test]
    fn words_read_back() {
        for text in [
            "person:00112233445566778899aabbccddeeff",
            "api_key:0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e",
            "client:optimizer",
            "system:audit",
            "anonymous",
        ] {
            assert_eq!(text.parse::<Actor>().expect(text).to_string(), text);
        }
        for text in [
            "person/00112233445566778899aabbccddeeff",
            "job/0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e",
            "flag/security.csrf",
        ] {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), text);
        }
    }
}
