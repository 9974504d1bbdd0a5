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
        text.parse().map_err(|_| (field, "must be a hyphenated UUID".to_owned()))
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

    mod same_rule {
        use gatehouse_core::{Clock, Entropy, Timestamp};
        use gatehouse_outbox::Outbox;
        use proptest::prelude::*;

        use super::*;

        /// Mostly words, and what looks like one.
        fn word() -> impl Strategy<Value = String> {
            prop_oneof![
                "[a-z][a-z0-9._-]{0,9}",
                "[A-Z][A-Z0-9_]{0,9}",
                "[A-Za-z0-9_./:@ -]{0,12}",
                "[a-zA-Z_]{60,100}",
                ".{0,4}",
            ]
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2_000))]

            /// Whatever a service may commit to its outbox is taken here.
            #[test]
            fn what_the_outbox_takes_is_taken(
                words in proptest::collection::vec(word(), 6),
                which in 0_u8..64,
                at in prop_oneof![Just(5_i64), any::<i64>()],
                depth in prop_oneof![Just(1_usize), 120_usize..140],
            ) {
                let clock = Clock::settable(Timestamp::from_micros(5));
                let outbox = Outbox::new(clock.clone(), Entropy::seeded(1));
                clock.set(Timestamp::from_micros(at));
                let pick = |bit: u8, word: &String, or: &str| {
                    if which & (1 << bit) == 0 { or.to_owned() } else { word.clone() }
                };
                let payload = (0..depth).fold(serde_json::json!({}), |inner, _| serde_json::json!({ "a": inner }));
                let mut event = outbox.event(&pick(0, &words[0], "test.things.do"))
                    .denied(&pick(1, &words[1], "REASON"))
                    .target_named(&pick(2, &words[2], "flag"), &pick(3, &words[3], "name"))
                    .retention(&pick(4, &words[4], "default"))
                    .payload(payload.clone())
                    .from(payload);
                if which & 32 != 0 {
                    event = if words[5].len() % 2 == 0 { event.by_client(&words[5]) } else { event.by_system(&words[5]) };
                }
                if event.check().is_ok() {
                    let taken = check(event.as_message().clone(), &Service::new("job").expect("valid"));
                    prop_assert!(taken.is_ok(), "{:?}: {event:?}", taken.err());
                }
            }
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
