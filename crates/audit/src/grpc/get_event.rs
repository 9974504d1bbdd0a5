//! `GetEvent`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{GetEventRequest, GetEventResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::{tenant_of, to_wire};
use crate::app::App;
use crate::app::read::not_found;

/// One event of the caller's tenant. Reasons: `EVENT_NOT_FOUND`, `TENANT_REQUIRED`.
pub(super) async fn handle(app: &App, request: Request<GetEventRequest>) -> Result<GetEventResponse> {
    let tenant = tenant_of(Caller::of(&request)?)?;
    let id = request.into_inner().event_id.parse().map_err(|_| not_found())?;
    let event = app.get_event(tenant, id).await?;
    let leaf = event.leaf.clone().into();
    Ok(GetEventResponse { event: Some(to_wire(event)), leaf })
}
