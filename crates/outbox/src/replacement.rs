//! What is sent in the place of an event that the audit service refuses: the same event without what was refused.

use gatehouse_core::{Error, Timestamp};
use gatehouse_proto::audit::v1::{NewEvent, Outcome};
use serde_json::{Map, Value};

/// No event has more fields to leave out.
pub(crate) const MOST_FIELDS: usize = 12;

/// The action of an event whose own was refused.
const UNNAMED: &str = "audit.events.unnamed";

/// The field that a refusal names.
pub(crate) fn field_of(refusal: &Error) -> Option<String> {
    let path = &refusal.violations().first()?.field;
    Some(path.rsplit('.').next().unwrap_or(path).to_owned())
}

/// Takes the field out of the event; false if there is none of this name, or nothing that could stand in its place.
pub(crate) fn leave_out(event: &mut NewEvent, field: &str, now: Timestamp) -> bool {
    match field {
        "occurred_at" => event.occurred_at = now.as_micros(),
        "action" => UNNAMED.clone_into(&mut event.action),
        "outcome" => event.outcome = Outcome::Failure.into(),
        "reason" => event.reason.clear(),
        "tenant_id" => event.tenant_id.clear(),
        "actor" => "anonymous".clone_into(&mut event.actor),
        "delegate" => event.delegate.clear(),
        "subject_id" => event.subject_id.clear(),
        "target" => event.target.clear(),
        "request_id" => event.request_id.clear(),
        "trace_id" => event.trace_id.clear(),
        "retention_class" => event.retention_class.clear(),
        "payload_json" => event.payload_json.clear(),
        "actor_json" => event.actor_json.clear(),
        _ => return false,
    }
    true
}

/// The event with a word in its payload on what is not in it.
pub(crate) fn tell(event: &NewEvent, left_out: &[String]) -> NewEvent {
    let mut payload: Map<String, Value> = serde_json::from_str(&event.payload_json).unwrap_or_default();
    payload.insert("left_out_fields".to_owned(), left_out.into());
    let told = Value::Object(payload).to_string();
    let payload_json = if told.len() <= crate::event::MAX_PAYLOAD_BYTES {
        told
    } else {
        Value::Object(Map::from_iter([("left_out_fields".to_owned(), left_out.into())])).to_string()
    };
    NewEvent { payload_json, ..event.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_found_and_left_out_and_told_of() {
        let refusal = Error::invalid_argument("EVENT_INVALID", "x").with_violation("events[0].reason", "x");
        assert_eq!(field_of(&refusal).as_deref(), Some("reason"));
        assert_eq!(field_of(&Error::invalid_argument("EVENT_INVALID", "x")), None);
        let mut event =
            NewEvent { reason: "x".into(), payload_json: r#"{"a":1}"#.into(), ..NewEvent::default() };
        assert!(leave_out(&mut event, "reason", Timestamp::from_seconds(1)));
        assert!(!leave_out(&mut event, "event_id", Timestamp::from_seconds(1)));
        let told = tell(&event, &["reason".to_owned()]);
        assert_eq!(
            (told.reason.as_str(), told.payload_json.as_str()),
            ("", r#"{"a":1,"left_out_fields":["reason"]}"#)
        );
    }
}
