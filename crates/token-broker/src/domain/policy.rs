//! Which caller may use which upstream, and for which scopes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scopes::Scopes;

/// One rule of an upstream: a caller and what it may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of an internal service, or `person` for a person's own call that no service makes for them.
    pub client: String,
    /// Scopes that it may have; `*` stands for all of the connection's.
    pub scopes: Vec<String>,
}

/// Who asks for a token: a person themself, or a service in a person's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The person, directly.
    Person,
    /// The service of this name.
    Client(String),
}

impl Asker {
    /// The name that rules know it by.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Person => "person",
            Self::Client(name) => name,
        }
    }
}

/// What `asker` may have of `connected`, the scopes of a connection; `None` if it may not use the upstream at all.
#[must_use]
pub fn allowed(rules: &[Rule], asker: &Asker, connected: &Scopes) -> Option<Scopes> {
    let mut matching = rules.iter().filter(|rule| rule.client == asker.name()).peekable();
    matching.peek()?;
    let named: Scopes = matching.clone().flat_map(|rule| rule.scopes.iter().cloned()).collect();
    Some(if named.contains("*") { connected.clone() } else { named.common(connected) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_named_has_nothing() {
        let rule = |client: &str, scopes: &[&str]| Rule {
            client: client.into(),
            scopes: scopes.iter().map(|&scope| scope.into()).collect(),
        };
        let rules =
            [rule("reporter", &["read"]), rule("person", &["*"]), rule("reporter", &["list", "admin"])];
        let connected = Scopes::parse("read write list");
        let of = |asker: Asker| allowed(&rules, &asker, &connected).map(|scopes| scopes.to_string());
        assert_eq!(of(Asker::Client("reporter".into())).as_deref(), Some("list read"));
        assert_eq!(of(Asker::Person).as_deref(), Some("list read write"));
        assert_eq!(of(Asker::Client("other".into())), None);
    }
}
