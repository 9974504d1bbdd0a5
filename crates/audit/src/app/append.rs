//! Taking events into the logs.

use std::collections::BTreeMap;

use gatehouse_core::ids::{EventId, PersonId, RequestId, TenantId, is_canonical};
use gatehouse_core::{Error, Result, Timestamp};
use uuid::Uuid;

use super::App;
use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::names::{self, Action, ClientName, InvalidName, Outcome, Reason, Service};
use crate::domain::seal::{self, Part};
use crate::keys::{Obtained, Owner};
use crate::sequencer::{Draft, Place};
use crate::store::plain::{PLATFORM, PlainRow};

/// Who did it, by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    Person(PersonId),
    ApiKey(Uuid),
    Client(ClientName),
    System(Service),
    Anonymous,
}

/// What it was done to, by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Person(PersonId),
    Other(names::Target),
}

impl Actor {
    /// Reads it as tokens and emitters write it; an empty text is `anonymous`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        if let Ok(person) = text.parse() {
            return Ok(Self::Person(person));
        }
        if text.is_empty() {
            return Ok(Self::Anonymous);
        }
        let expected = "a person id, api_key:<id>, client:<name>, system:<service> or anonymous";
        match text.parse()? {
            names::Actor::ApiKey(id) => Ok(Self::ApiKey(id)),
            names::Actor::Client(name) => Ok(Self::Client(name)),
            names::Actor::System(service) => Ok(Self::System(service)),
            names::Actor::Anonymous => Ok(Self::Anonymous),
            names::Actor::Person(_) => Err(InvalidName { what: "the actor", expected }),
        }
    }

    fn person(&self) -> Option<PersonId> {
        match self {
            Self::Person(id) => Some(*id),
            _ => None,
        }
    }

    /// As the plain row holds it.
    fn plain(&self) -> String {
        match self {
            Self::Person(id) => id.to_string(),
            Self::ApiKey(id) => names::Actor::ApiKey(*id).to_string(),
            Self::Client(name) => names::Actor::Client(name.clone()).to_string(),
            Self::System(service) => names::Actor::System(service.clone()).to_string(),
            Self::Anonymous => names::Actor::Anonymous.to_string(),
        }
    }
}

impl Target {
    /// Reads `kind/id`; a person stands by their id.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some(("person", id)) => id
                .parse()
                .map(Self::Person)
                .map_err(|_| InvalidName { what: "the target", expected: "person/<person id> for a person" }),
            _ => text.parse().map(Self::Other),
        }
    }

    fn plain(&self) -> String {
        match self {
            Self::Person(id) => format!("person/{id}"),
            Self::Other(target) => target.to_string(),
        }
    }
}

/// Whether a caller's id of a request or trace may stand in clear in the plain row: a UUID, or 32 hexadecimal digits. Any
/// other may be anything, a name or a telephone number too, and stands only where it is sealed.
pub(crate) fn is_plain_id(id: &str) -> bool {
    Uuid::try_parse(id).is_ok()
}

/// An event on its way in, checked.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) event_id: EventId,
    pub(crate) occurred: Timestamp,
    pub(crate) service: Service,
    pub(crate) action: Action,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<Reason>,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) actor: Actor,
    pub(crate) delegate: Option<ClientName>,
    pub(crate) subject: Option<PersonId>,
    pub(crate) target: Option<Target>,
    pub(crate) request_id: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) retention_class: String,
    pub(crate) payload: String,
    pub(crate) actor_payload: String,
}

/// What the plain row says and the leaf may not hold, since it could name a person; empty where there is nothing. It is
/// sealed beside the payload, so that verification can compare the row with it.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Context {
    #[serde(rename = "request_id")]
    pub(crate) request: String,
    #[serde(rename = "subject_id")]
    pub(crate) subject: String,
    #[serde(rename = "trace_id")]
    pub(crate) trace: String,
}

impl App {
    /// Takes events into their logs; answers in the order of `events`, once all are durable.
    pub(crate) async fn append(&self, events: Vec<Incoming>) -> Result<Vec<Place>> {
        let drafts = self
            .blocking(move |app| {
                events.into_iter().map(|event| app.draft(event)).collect::<Result<Vec<(String, Draft)>>>()
            })
            .await?;
        let order: Vec<EventId> = drafts.iter().map(|(_, draft)| draft.leaf.event_id).collect();
        let mut by_log: BTreeMap<String, Vec<Draft>> = BTreeMap::new();
        for (log, draft) in drafts {
            by_log.entry(log).or_default().push(draft);
        }
        let mut places = BTreeMap::new();
        for (log, drafts) in by_log {
            for place in self.log(&log)?.sequencer.append(drafts).await? {
                places.insert(place.event_id, place);
            }
        }
        order
            .iter()
            .map(|id| places.get(id).cloned().ok_or_else(|| Error::internal("an event got no place")))
            .collect()
    }

    /// Who seals what an event says: its subject; else the actor, if a person; else the tenant or the platform.
    pub(crate) fn owner(subject: Option<PersonId>, tenant: Option<TenantId>) -> Owner {
        match (subject, tenant) {
            (Some(person), _) => Owner::Person(person),
            (None, Some(tenant)) => Owner::Tenant(tenant),
            (None, None) => Owner::Platform,
        }
    }

    /// Seals the payload and puts pseudonyms for persons. Makes keys where there are none: blocking.
    pub(super) fn draft(&self, event: Incoming) -> Result<(String, Draft)> {
        let log =
            self.log_for(&event.retention_class).ok_or_else(|| Error::internal("there is no default log"))?;
        let subject = event.subject.or(event.actor.person());
        let place = seal::Place { environment: self.environment, log: &log.id, event: event.event_id };
        let subject_key = self.keys.obtain(Self::owner(subject, event.tenant))?;
        let actor_key = self.keys.obtain(Self::owner(event.actor.person(), event.tenant))?;
        let mut parts = Vec::with_capacity(3);
        if !event.payload.is_empty() {
            parts.push((Part::Subject, &subject_key.key, event.payload.as_bytes()));
        }
        if !event.actor_payload.is_empty() {
            parts.push((Part::Actor, &actor_key.key, event.actor_payload.as_bytes()));
        }
        let context = Context {
            request: event.request_id.clone().unwrap_or_default(),
            subject: subject.map(|subject| subject.to_string()).unwrap_or_default(),
            trace: event.trace_id.clone().unwrap_or_default(),
        };
        let context = if context == Context::default() {
            String::new()
        } else {
            serde_json::to_string(&context).map_err(Error::internal)?
        };
        if !context.is_empty() {
            parts.push((Part::Context, &subject_key.key, context.as_bytes()));
        }
        let payload = seal::seal(place, &parts, &self.entropy);
        let actor = match &event.actor {
            Actor::Person(id) => names::Actor::Person(actor_key.key.pseudonym(id.as_uuid())),
            Actor::ApiKey(id) => names::Actor::ApiKey(*id),
            Actor::Client(name) => names::Actor::Client(name.clone()),
            Actor::System(service) => names::Actor::System(service.clone()),
            Actor::Anonymous => names::Actor::Anonymous,
        };
        // An erased person's id does not come back with an event that arrives late.
        let plain_actor = if actor_key.kept { event.actor.plain() } else { actor.to_string() };
        let (target, plain_target) = match &event.target {
            Some(Target::Person(id)) => {
                let Obtained { key, kept } = self.keys.obtain(Owner::Person(*id))?;
                let target = names::Target::Person(key.pseudonym(id.as_uuid()));
                let plain = if kept { Target::Person(*id).plain() } else { target.to_string() };
                (Some(target), Some(plain))
            }
            Some(Target::Other(target)) => (Some(target.clone()), Some(target.to_string())),
            None => (None, None),
        };
        let plain = PlainRow {
            tenant: event.tenant.unwrap_or(PLATFORM),
            occurred: event.occurred,
            event_id: event.event_id,
            log: log.id.to_string(),
            seq: 0,
            recorded: Timestamp::default(),
            service: event.service.to_string(),
            action: event.action.to_string(),
            outcome: event.outcome.as_str().to_owned(),
            reason: event.reason.as_ref().map(|reason| reason.as_str().to_owned()),
            actor: plain_actor,
            delegate: event.delegate.as_ref().map(ToString::to_string),
            subject: subject.filter(|_| subject_key.kept),
            target: plain_target,
            request_id: event.request_id.clone().filter(|id| is_plain_id(id)),
            trace_id: event.trace_id.filter(|id| is_plain_id(id)),
        };
        let leaf = Leaf {
            action: event.action,
            actor,
            delegate: event.delegate,
            event_id: event.event_id,
            log: log.id.clone(),
            occurred: event.occurred,
            outcome: event.outcome,
            payload_sha256: Digest::of_payload(&payload),
            prev_chain: Digest::of_genesis(&log.id),
            reason: event.reason,
            recorded: Timestamp::default(),
            // Only ids of our own making: one that a client spelled in its own way is the client's text.
            request_id: event
                .request_id
                .filter(|id| is_canonical(id))
                .and_then(|id| id.parse::<RequestId>().ok()),
            retention: log.retention.clone(),
            seq: 0,
            service: event.service,
            target,
            tenant: event.tenant,
        };
        Ok((log.id.to_string(), Draft { leaf, payload, plain }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_and_targets_read_as_emitters_write_them() {
        let id = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e";
        for text in [id.to_owned(), format!("api_key:{id}"), "client:job".into(), "system:audit".into()] {
            assert_eq!(Actor::parse(&text).expect("reads").plain(), text);
        }
        for (id, plain) in [
            (id, true),
            ("0190B5C27F3E7A529D2C0B1D7CBB1F5E", true),
            ("4111111111111111", false),
            ("ada", false),
        ] {
            assert_eq!(is_plain_id(id), plain, "{id}");
        }
        assert_eq!(Actor::parse(""), Ok(Actor::Anonymous));
        for text in [format!("person/{id}"), format!("job/{id}"), "flag/security.csrf".into()] {
            assert_eq!(Target::parse(&text).expect("reads").plain(), text);
        }
        assert!(Actor::parse("ada").is_err());
        // A pseudonym is not an id: nobody may write another's.
        assert!(Actor::parse("person:00112233445566778899aabbccddeeff").is_err());
        assert!(Target::parse("person/00112233445566778899aabbccddeeff").is_err());
    }
}
