//! Proof of what happened.

use gatehouse_proto::audit::v1::{Event, Outcome};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::route::Route;
use crate::time;

mod checkpoint;
mod consistency_proof;
mod get_event;
mod inclusion_proof;
mod list_events;
mod list_logs;

pub(super) fn routes() -> Vec<Route> {
    vec![
        list_events::route(),
        get_event::route(),
        inclusion_proof::route(),
        list_logs::route(),
        checkpoint::route(),
        consistency_proof::route(),
    ]
}

/// An audit event: who, what, when, where from, outcome.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditEvent)]
struct EventView {
    event_id: String,
    log: String,
    index: i64,
    #[schema(format = DateTime)]
    occurred_at: Option<String>,
    #[schema(format = DateTime)]
    recorded_at: Option<String>,
    /// The service that it happened in.
    service: String,
    action: String,
    /// `success`, `denied` or `failure`.
    outcome: &'static str,
    actor: String,
    target: String,
    request_id: String,
    trace_id: String,
    /// Null once the person was erased.
    payload: Option<Value>,
    erased: bool,
}

impl EventView {
    fn new(event: Event) -> Self {
        let outcome = match event.outcome() {
            Outcome::Success => "success",
            Outcome::Denied => "denied",
            Outcome::Failure => "failure",
            Outcome::Unspecified => "unknown",
        };
        Self {
            outcome,
            event_id: event.event_id,
            log: event.log,
            index: event.index,
            occurred_at: time::text(event.occurred_at),
            recorded_at: time::text(event.recorded_at),
            service: event.service,
            action: event.action,
            actor: event.actor,
            target: event.target,
            request_id: event.request_id,
            trace_id: event.trace_id,
            payload: serde_json::from_str(&event.payload_json).ok(),
            erased: event.erased,
        }
    }
}
