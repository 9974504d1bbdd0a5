//! `GET /v1/audit/events`: what happened.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::audit::v1::ListEventsRequest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::EventView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::time;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/ListEvents"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListEventsQuery {
    /// 1 to 200; absent takes 50.
    #[serde(default)]
    page_size: i32,
    /// From the page before.
    #[serde(default)]
    page_token: String,
    /// Only this action or, ending in a dot, this prefix.
    #[serde(default)]
    action: String,
    /// Only by this person, key or client.
    #[serde(default)]
    actor: String,
    /// Only done to this.
    #[serde(default)]
    target: String,
    /// Not before: a time as RFC 3339 writes it, or microseconds since the Unix epoch. Absent or 0 for no bound.
    #[serde(default)]
    #[param(example = "2026-11-23T05:00:00Z")]
    occurred_from: String,
    /// Before: a time as RFC 3339 writes it, or microseconds since the Unix epoch. Absent or 0 for no bound.
    #[serde(default)]
    #[param(example = "2026-11-23T06:00:00+01:00")]
    occurred_to: String,
    /// Only of this request, by its name to the letter.
    #[serde(default)]
    request_id: String,
}

/// One page of audit events.
#[derive(Serialize, ToSchema)]
pub(super) struct EventList {
    events: Vec<EventView>,
    /// Absent at the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

/// The tenant's audit events, newest first.
#[utoipa::path(get, path = "/v1/audit/events", operation_id = "listAuditEvents", tag = "audit", params(ListEventsQuery), responses((status = 200, body = EventList, description = "The events")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let query: ListEventsQuery = context.query()?;
    let request = ListEventsRequest {
        page_size: query.page_size,
        page_token: query.page_token,
        action: query.action,
        actor: query.actor,
        target: query.target,
        occurred_from: time::read("occurred_from", &query.occurred_from)?,
        occurred_to: time::read("occurred_to", &query.occurred_to)?,
        request_id: query.request_id,
    };
    let answer = context.audit().await?.list_events(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(EventList {
        events: answer.events.into_iter().map(EventView::new).collect(),
        next_page_token: answer.next_page_token,
    }))
}
