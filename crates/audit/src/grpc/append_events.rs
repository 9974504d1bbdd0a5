//! `AppendEvents`.

use gatehouse_client::context::is_valid_request_id;
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::audit::v1::{
    AppendEventsRequest, AppendEventsResponse, AppendedEvent, NewEvent, Outcome as Wire,
};
use gatehouse_service::Caller;
use tonic::Request;

use super::client_of;
use crate::app::App;
use crate::app::append::{Actor, Incoming, Target};
use crate::domain::leaf::MAX_INTEGER;
use crate::domain::names::{Action, ClientName, InvalidName, Outcome, Reason, RetentionClass, Service};
use crate::store::stored;

const MOST_EVENTS: usize = 500;
const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
const MAX_ACTOR_BYTES: usize = 4 * 1024;

/// Takes events of the calling service. Reasons: `TOO_MANY_EVENTS`, `EVENT_INVALID`, `CLIENT_REQUIRED`, and those of
/// the sequencer.
pub(super) async fn handle(app: &App, request: Request<AppendEventsRequest>) -> Result<AppendEventsResponse> {
    let client = client_of(Caller::of(&request)?)?;
    let service = Service::new(client.as_str()).map_err(|_| {
        Error::permission_denied("CLIENT_REQUIRED", "The client's name can't stand for a service in the log.")
    })?;
    let events = request.into_inner().events;
    if events.is_empty() || events.len() > MOST_EVENTS {
        return Err(Error::invalid_argument("TOO_MANY_EVENTS", "Send 1 to 500 events in one call."));
    }
    let incoming = events
        .into_iter()
        .enumerate()
        .map(|(place, event)| {
            check(event, &service).map_err(|(field, problem)| {
                let field = format!("events[{place}].{field}");
                Error::invalid_argument("EVENT_INVALID", format!("{field}: {problem}"))
                    .with_violation(field, problem)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let places = app.append(incoming).await?;
    let events = places
        .into_iter()
        .map(|place| AppendedEvent {
            event_id: place.event_id.to_string(),
            log: place.log,
            index: stored(place.seq),
        })
        .collect();
    Ok(AppendEventsResponse { events })
}

type Problem = (&'static str, String);

fn check(event: NewEvent, service: &Service) -> std::result::Result<Incoming, Problem> {
    fn named<T>(
        field: &'static str,
        result: std::result::Result<T, InvalidName>,
    ) -> std::result::Result<T, Problem> {
        result.map_err(|error| (field, error.to_string()))
    }
    fn id<T: std::str::FromStr>(field: &'static str, text: &str) -> std::result::Result<T, Problem> {
        text.parse().map_err(|_| (field, "must be a hyphenated lower-case UUID".to_owned()))
    }
    fn optional<T>(
        text: &str,
        read: impl FnOnce(&str) -> std::result::Result<T, Problem>,
    ) -> std::result::Result<Option<T>, Problem> {
        if text.is_empty() { Ok(None) } else { read(text).map(Some) }
    }
    let outcome = match Wire::try_from(event.outcome) {
        Ok(Wire::Success) => Outcome::Success,
        Ok(Wire::Denied) => Outcome::Denied,
        Ok(Wire::Failure) => Outcome::Failure,
        _ => return Err(("outcome", "must be success, denied or failure".to_owned())),
    };
    if !u64::try_from(event.occurred_at).is_ok_and(|micros| micros < MAX_INTEGER) {
        return Err(("occurred_at", "must be microseconds from 0 to 2^53 - 1".to_owned()));
    }
    if !event.retention_class.is_empty() {
        named("retention_class", RetentionClass::new(event.retention_class.as_str()))?;
    }
    Ok(Incoming {
        event_id: id("event_id", &event.event_id)?,
        occurred: Timestamp::from_micros(event.occurred_at),
        service: service.clone(),
        action: named("action", Action::new(event.action))?,
        outcome,
        reason: optional(&event.reason, |text| named("reason", Reason::new(text)))?,
        tenant: optional(&event.tenant_id, |text| id("tenant_id", text))?,
        actor: named("actor", Actor::parse(&event.actor))?,
        delegate: optional(&event.delegate, |text| named("delegate", ClientName::new(text)))?,
        subject: optional(&event.subject_id, |text| id("subject_id", text))?,
        target: optional(&event.target, |text| named("target", Target::parse(text)))?,
        // What can't be looked for is left out: it is not worth refusing an event.
        request_id: Some(event.request_id).filter(|id| is_valid_request_id(id)),
        trace_id: Some(event.trace_id).filter(|id| is_valid_request_id(id)),
        retention_class: event.retention_class,
        payload: object("payload_json", event.payload_json, MAX_PAYLOAD_BYTES)?,
        actor_payload: object("actor_json", event.actor_json, MAX_ACTOR_BYTES)?,
    })
}

fn object(field: &'static str, text: String, most: usize) -> std::result::Result<String, Problem> {
    if text.len() > most {
        return Err((field, format!("must not be longer than {most} bytes")));
    }
    let is_object = text.is_empty() || serde_json::from_str::<serde_json::Map<_, _>>(&text).is_ok();
    if is_object { Ok(text) } else { Err((field, "must be a JSON object".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> NewEvent {
        NewEvent {
            event_id: "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e".into(),
            occurred_at: 1,
            action: "job.jobs.submit".into(),
            outcome: Wire::Success.into(),
            ..NewEvent::default()
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        let service = Service::new("job").expect("valid");
        assert!(check(event(), &service).is_ok());
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_PAYLOAD_BYTES));
        for (field, wrong) in [
            ("event_id", NewEvent { event_id: "1".into(), ..event() }),
            ("occurred_at", NewEvent { occurred_at: -1, ..event() }),
            ("occurred_at", NewEvent { occurred_at: i64::MAX, ..event() }),
            ("action", NewEvent { action: "Submit!".into(), ..event() }),
            ("outcome", NewEvent { outcome: 0, ..event() }),
            ("outcome", NewEvent { outcome: 9, ..event() }),
            ("tenant_id", NewEvent { tenant_id: "x".into(), ..event() }),
            ("actor", NewEvent { actor: "ada@example.com".into(), ..event() }),
            ("subject_id", NewEvent { subject_id: "ada".into(), ..event() }),
            ("target", NewEvent { target: "job".into(), ..event() }),
            ("reason", NewEvent { reason: "no such user".into(), ..event() }),
            ("delegate", NewEvent { delegate: "A B".into(), ..event() }),
            ("retention_class", NewEvent { retention_class: "7 years".into(), ..event() }),
            ("payload_json", NewEvent { payload_json: "[1]".into(), ..event() }),
            ("payload_json", NewEvent { payload_json: long, ..event() }),
            ("actor_json", NewEvent { actor_json: "{".into(), ..event() }),
        ] {
            assert_eq!(check(wrong, &service).err().map(|(field, _)| field), Some(field));
        }
    }
}
