//! `GET /v1/audit/events/{event_id}`: one event with its leaf.

use actix_web::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_client::from_status;
use gatehouse_core::ids::EventId;
use gatehouse_core::{Error, Result};
use gatehouse_proto::audit::v1::GetEventRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::EventView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/GetEvent"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// An event and its leaf.
#[derive(Serialize, ToSchema)]
pub(super) struct EventWithLeaf {
    event: EventView,
    /// The leaf exactly as hashed, in base64.
    leaf: String,
}

/// One event with its place in the log.
#[utoipa::path(get, path = "/v1/audit/events/{event_id}", operation_id = "getAuditEvent", tag = "audit", params(("event_id" = String, Path, format = Uuid)), responses((status = 200, body = EventWithLeaf, description = "The event")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let event_id = context.id::<EventId>("event_id")?.to_string();
    let answer = context
        .audit()
        .await?
        .get_event(GetEventRequest { event_id })
        .await
        .map_err(from_status)?
        .into_inner();
    let event = answer.event.ok_or_else(|| Error::internal("audit answered without an event"))?;
    Ok(HttpResponse::Ok()
        .json(EventWithLeaf { event: EventView::new(event), leaf: STANDARD.encode(&answer.leaf) }))
}
