//! `ListEvents`.

use gatehouse_core::ids::EventId;
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::audit::v1::{ListEventsRequest, ListEventsResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::{count, tenant_of, to_wire};
use crate::app::App;
use crate::app::read::Query;

/// A page of the caller's tenant's events. Reasons: `INVALID_FIELD`, `TENANT_REQUIRED`.
pub(super) async fn handle(app: &App, request: Request<ListEventsRequest>) -> Result<ListEventsResponse> {
    let tenant = tenant_of(Caller::of(&request)?)?;
    let request = request.into_inner();
    let page_size = match request.page_size {
        0 => 50,
        size => u32::try_from(size)
            .ok()
            .filter(|size| *size <= 200)
            .ok_or_else(|| Error::invalid_field("page_size", "must be from 1 to 200, or 0 for 50"))?,
    };
    let texts = [
        ("action", &request.action),
        ("actor", &request.actor),
        ("target", &request.target),
        ("request_id", &request.request_id),
    ];
    if let Some((field, _)) = texts.iter().find(|(_, text)| text.len() > 200 || text.contains('\0')) {
        return Err(Error::invalid_field(*field, "must be at most 200 bytes, without NUL"));
    }
    count("occurred_from", request.occurred_from)?;
    count("occurred_to", request.occurred_to)?;
    let query = Query {
        page_size,
        page_token: request.page_token,
        action: request.action,
        actor: as_written(request.actor, ':'),
        target: as_written(request.target, '/'),
        from: Timestamp::from_micros(request.occurred_from),
        to: (request.occurred_to != 0).then(|| Timestamp::from_micros(request.occurred_to)),
        request_id: request.request_id,
    };
    let (events, next_page_token) = app.list_events(tenant, query).await?;
    Ok(ListEventsResponse { events: events.into_iter().map(to_wire).collect(), next_page_token })
}

/// `text` with the id that it is, or that follows `separator` in it, as ids are written: rows hold them so.
fn as_written(text: String, separator: char) -> String {
    let at = text.rfind(separator).map_or(0, |at| at + separator.len_utf8());
    match text[at..].parse::<EventId>() {
        Ok(id) => format!("{}{id}", &text[..at]),
        Err(_) => text,
    }
}
