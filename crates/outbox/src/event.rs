//! What a service says happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use gatehouse_client::context;
use gatehouse_core::ids::{EventId, PersonId, TenantId, is_canonical};
use gatehouse_core::{Clock, Entropy, Error};
use gatehouse_db::Tx;
use gatehouse_proto::audit::v1::{NewEvent, Outcome as WireOutcome};
use gatehouse_service::{Caller, Subject};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{store, words};

/// The audit service takes payloads of up to this many bytes.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// And this much of the actor's own data.
const MAX_ACTOR_BYTES: usize = 4 * 1024;

/// The log's integers lie below 2^53.
const LAST_MICROSECOND: i64 = 1 << 53;

/// Whether what was tried was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was refused.
    Denied,
    /// It was allowed and failed.
    Failure,
}

/// A service's end of the outbox: makes events and writes them into the service's transactions. Cheap to clone;
/// clones share the order of events and the bell that wakes the [`crate::Relay`]. One for a process and service.
#[derive(Clone, Debug)]
pub struct Outbox {
    clock: Clock,
    entropy: Entropy,
    last: Arc<AtomicI64>,
    pub(crate) bell: Arc<Notify>,
}

impl Outbox {
    /// The outbox of a service.
    #[must_use]
    pub fn new(clock: Clock, entropy: Entropy) -> Self {
        Self { clock, entropy, last: Arc::default(), bell: Arc::default() }
    }

    /// A successful event of now, by nobody known yet, with the request and trace that this task works for.
    ///
    /// `action` is `service.noun.verb` in lower case, as permissions are written: `auth.sessions.create`. Make the
    /// event outside the transaction's block, which may run again: the event must keep its id.
    #[must_use]
    pub fn event(&self, action: &str) -> AuditEvent {
        let now = self.clock.now().as_micros();
        // Unique and rising within the process, whatever the clock does.
        let before = self
            .last
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(now.max(last + 1)))
            .unwrap_or_else(|last| last);
        let traceparent = context::traceparent();
        AuditEvent {
            position: now.max(before + 1),
            wire: NewEvent {
                event_id: EventId::new(&self.clock, &self.entropy).to_string(),
                occurred_at: now,
                action: action.to_owned(),
                outcome: WireOutcome::Success.into(),
                actor: "anonymous".into(),
                request_id: context::request_id().unwrap_or_default(),
                trace_id: traceparent.split('-').nth(1).unwrap_or_default().to_owned(),
                retention_class: "default".into(),
                ..NewEvent::default()
            },
        }
    }

    /// Writes `event` into the transaction: it is committed with the change that it tells of, or not at all. The
    /// relay sends it soon after.
    ///
    /// # Errors
    /// Those of the database, and an internal error where the event's own words are not of the form that the audit
    /// service takes: a mistake of the program, which must not go unaudited.
    pub async fn emit(&self, tx: &mut Tx, event: &AuditEvent) -> gatehouse_db::Result<()> {
        event.check().map_err(|problem| Error::internal(format!("audit event: {problem}")))?;
        store::add(tx, event.id()?, event.position, event.wire.encode_to_vec()).await?;
        // Rung before the commit; the relay then looks twice, since it waits for the poll as well.
        self.bell.notify_one();
        Ok(())
    }
}

/// One event on its way: who, what, when, where from, outcome. Made by [`Outbox::event`].
///
/// Only `payload` and `from` may carry personal data; they are sealed with that person's key.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    position: i64,
    wire: NewEvent,
}

impl AuditEvent {
    /// By this verified caller: sets actor, delegate (the client that acts for it, see [`Caller::client`]), and tenant.
    #[must_use]
    pub fn by(mut self, caller: &Caller) -> Self {
        self.wire.actor = caller.subject().as_text();
        if let (Some(client), false) = (caller.client(), matches!(caller.subject(), Subject::Client(_))) {
            client.clone_into(&mut self.wire.delegate);
        }
        match caller.claims().tid {
            Some(tenant) => self.tenant(tenant),
            None => self,
        }
    }

    /// By this person, where there is no verified caller yet (signing in).
    #[must_use]
    pub fn by_person(mut self, person: PersonId) -> Self {
        self.wire.actor = person.to_string();
        self
    }

    /// By this service on its own account, such as a purge.
    #[must_use]
    pub fn by_system(mut self, service: &str) -> Self {
        self.wire.actor = format!("system:{service}");
        self
    }

    /// By this internal client.
    #[must_use]
    pub fn by_client(mut self, name: &str) -> Self {
        self.wire.actor = format!("client:{name}");
        self
    }

    /// In this tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: TenantId) -> Self {
        self.wire.tenant_id = tenant.to_string();
        self
    }

    /// About this person, whose key then seals the payload; without it, the actor's.
    #[must_use]
    pub fn about(mut self, person: PersonId) -> Self {
        self.wire.subject_id = person.to_string();
        self
    }

    /// Done to the thing with this id: `target("job", id.as_uuid())`. A person is `target("person", id.as_uuid())`.
    #[must_use]
    pub fn target(mut self, kind: &str, id: Uuid) -> Self {
        self.wire.target = format!("{kind}/{id}");
        self
    }

    /// Done to a thing of the installation with a name that no person chose for themselves: `("flag", "security.csrf")`.
    #[must_use]
    pub fn target_named(mut self, kind: &str, name: &str) -> Self {
        self.wire.target = format!("{kind}/{name}");
        self
    }

    /// It was refused, for this stable reason (`INVALID_PASSWORD`).
    #[must_use]
    pub fn denied(self, reason: &str) -> Self {
        self.outcome(Outcome::Denied, reason)
    }

    /// It was allowed and failed, for this stable reason.
    #[must_use]
    pub fn failed(self, reason: &str) -> Self {
        self.outcome(Outcome::Failure, reason)
    }

    /// How it ended; `reason` may be empty.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome, reason: &str) -> Self {
        let outcome = match outcome {
            Outcome::Success => WireOutcome::Success,
            Outcome::Denied => WireOutcome::Denied,
            Outcome::Failure => WireOutcome::Failure,
        };
        self.wire.outcome = outcome.into();
        reason.clone_into(&mut self.wire.reason);
        self
    }

    /// Kept in the log of this class instead of `default`.
    #[must_use]
    pub fn retention(mut self, class: &str) -> Self {
        class.clone_into(&mut self.wire.retention_class);
        self
    }

    /// What else there is to say, a JSON object; sealed with the subject's key. Never a secret. Longer than 16 KiB, it
    /// is replaced by a note of its size.
    #[must_use]
    pub fn payload(mut self, payload: Value) -> Self {
        self.wire.payload_json = bounded(payload, MAX_PAYLOAD_BYTES);
        self
    }

    /// Where the actor was (`{"ip": …, "user_agent": …}`), for events about another person; sealed with the actor's
    /// key. At most 4 KiB, else replaced by a note of its size.
    #[must_use]
    pub fn from(mut self, origin: Value) -> Self {
        self.wire.actor_json = bounded(origin, MAX_ACTOR_BYTES);
        self
    }

    /// The event's id: the same from here to the log.
    pub fn id(&self) -> gatehouse_core::Result<EventId> {
        self.wire.event_id.parse().map_err(Error::internal)
    }

    /// As it will be sent.
    #[must_use]
    pub const fn as_message(&self) -> &NewEvent {
        &self.wire
    }

    /// What would make the audit service refuse it: found here, where the mistake is.
    ///
    /// # Errors
    /// Says which word is wrong.
    pub fn check(&self) -> Result<(), String> {
        let NewEvent { occurred_at, action, retention_class, target, reason, delegate, actor, .. } =
            &self.wire;
        let must = |what: &str, text: &str, fits: bool| {
            if fits {
                Ok(())
            } else {
                Err(format!("the {what} {text:?} has a form that the log does not take"))
            }
        };
        must("time", &occurred_at.to_string(), (0..LAST_MICROSECOND).contains(occurred_at))?;
        must("action", action, words::is_action(action))?;
        must("retention class", retention_class, words::is_class(retention_class))?;
        must("reason", reason, reason.is_empty() || words::is_reason(reason))?;
        must("delegate", delegate, delegate.is_empty() || words::is_name(delegate))?;
        let is_id = is_canonical;
        must(
            "actor",
            actor,
            match actor.split_once(':') {
                None => actor == "anonymous" || is_id(actor),
                Some(("api_key", id)) => is_id(id),
                Some(("client", name)) => words::is_name(name),
                Some(("system", service)) => words::is_class(service),
                Some(_) => false,
            },
        )?;
        let is_target = match target.split_once('/') {
            None => target.is_empty(),
            // A person is a target by their id only.
            Some(("person", id)) => is_id(id),
            Some((kind, name)) => words::is_kind(kind) && (is_id(name) || words::is_name(name)),
        };
        must("target", target, is_target)
    }
}

/// An object is what the audit service takes; anything else is put into one.
fn bounded(value: Value, most: usize) -> String {
    let object = if value.is_object() { value } else { json!({ "value": value }) };
    let text = object.to_string();
    // Nested too deep, it could be written and not be read.
    let is_readable = || serde_json::from_str::<serde_json::Map<_, _>>(&text).is_ok();
    if text.len() <= most && is_readable() {
        text
    } else {
        json!({ "left_out_bytes": text.len() }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(Clock::settable(gatehouse_core::Timestamp::from_seconds(5)), Entropy::seeded(1))
    }

    #[test]
    fn whoever_acts_for_a_person_is_the_delegate() {
        let person = "01890000-0000-7000-8000-000000000000";
        let delegate = |said: Value| {
            let mut claims = json!({
                "iss": "i", "sub": person, "aud": "a", "exp": 1, "iat": 0, "iat_us": 0, "nbf": 0, "jti": "j",
                "token_use": "access",
            });
            for (name, value) in said.as_object().unwrap() {
                claims[name] = value.clone();
            }
            let caller = Caller::from_claims(serde_json::from_value(claims).unwrap()).unwrap();
            let event = outbox().event("a.b.c").by(&caller);
            event.check().unwrap();
            event.wire.delegate
        };
        assert_eq!(delegate(json!({ "client_id": "gateway" })), "");
        assert_eq!(
            delegate(json!({ "client_id": "gateway", "act": { "sub": "client:gateway" } })),
            "gateway"
        );
        assert_eq!(delegate(json!({ "client_id": "reporter" })), "reporter", "unnamed, and not told of");
        assert_eq!(delegate(json!({ "sub": "client:reporter", "client_id": "reporter" })), "");
    }

    #[test]
    fn positions_rise_though_the_clock_stands() {
        let outbox = outbox();
        let positions: Vec<i64> = (0..5).map(|_| outbox.event("a.b.c").position).collect();
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]), "{positions:?}");
        assert_eq!(outbox.event("a.b.c").as_message().occurred_at, 5_000_000);
    }

    #[test]
    fn words_that_the_log_does_not_take_are_found_at_once() {
        let event = || outbox().event("auth.sessions.create");
        assert_eq!(event().denied("INVALID_PASSWORD").target("session", Uuid::nil()).check(), Ok(()));
        assert_eq!(event().target_named("flag", "security.csrf").check(), Ok(()));
        for wrong in [
            outbox().event("Auth.Sessions"),
            outbox().event(""),
            event().denied("no such user"),
            event().denied("2FA_MISSING"),
            event().denied("_HIDDEN"),
            event().by_client("A B"),
            event().by_system(""),
            event().target_named("", "x"),
            event().target_named("person", "ada"),
            event().target_named("flag", "a@b"),
            event().retention("7 years"),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_payload_is_always_a_bounded_object() {
        let payload = |value| outbox().event("a.b.c").payload(value).wire.payload_json;
        assert_eq!(payload(json!({"a": 1})), r#"{"a":1}"#);
        let deep = (0..200).fold(json!({}), |inner, _| json!({ "a": inner }));
        assert_eq!(payload(deep), r#"{"left_out_bytes":1202}"#);
        assert_eq!(payload(json!([1])), r#"{"value":[1]}"#);
        let long = payload(json!({"a": "x".repeat(MAX_PAYLOAD_BYTES)}));
        assert_eq!(long, format!(r#"{{"left_out_bytes":{}}}"#, MAX_PAYLOAD_BYTES + 8));
    }
}
