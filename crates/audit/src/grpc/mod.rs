//! Proto to domain and back, one file an RPC.

mod append_events;
mod erase_subject;
mod export_leaves;
mod get_checkpoint;
mod get_consistency_proof;
mod get_event;
mod get_inclusion_proof;
mod list_events;
mod list_logs;

use gatehouse_core::ids::TenantId;
use gatehouse_core::{Error, Result};
use gatehouse_proto::audit::v1::audit_service_server::AuditService;
use gatehouse_proto::audit::v1::{
    AppendEventsRequest, AppendEventsResponse, EraseSubjectRequest, EraseSubjectResponse, Event as WireEvent,
    ExportLeavesRequest, ExportLeavesResponse, GetCheckpointRequest, GetCheckpointResponse,
    GetConsistencyProofRequest, GetConsistencyProofResponse, GetEventRequest, GetEventResponse,
    GetInclusionProofRequest, GetInclusionProofResponse, ListEventsRequest, ListEventsResponse,
    ListLogsRequest, ListLogsResponse, Outcome as WireOutcome,
};
use gatehouse_service::{Caller, Subject, reply, status};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::app::read::Event;
use crate::domain::names::{ClientName, Outcome};
use crate::store::plain::PLATFORM;
use crate::store::stored;

/// The service as tonic serves it.
#[derive(Clone, Debug)]
pub(crate) struct Audit(pub(crate) App);

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl AuditService for Audit {
    async fn append_events(&self, request: Request<AppendEventsRequest>) -> Answer<AppendEventsResponse> {
        reply(append_events::handle(&self.0, request).await)
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Answer<ListEventsResponse> {
        reply(list_events::handle(&self.0, request).await)
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Answer<GetEventResponse> {
        reply(get_event::handle(&self.0, request).await)
    }

    async fn list_logs(&self, _: Request<ListLogsRequest>) -> Answer<ListLogsResponse> {
        reply(list_logs::handle(&self.0).await)
    }

    async fn get_checkpoint(&self, request: Request<GetCheckpointRequest>) -> Answer<GetCheckpointResponse> {
        reply(get_checkpoint::handle(&self.0, request.into_inner()).await)
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<GetInclusionProofRequest>,
    ) -> Answer<GetInclusionProofResponse> {
        reply(get_inclusion_proof::handle(&self.0, request).await)
    }

    async fn get_consistency_proof(
        &self,
        request: Request<GetConsistencyProofRequest>,
    ) -> Answer<GetConsistencyProofResponse> {
        reply(get_consistency_proof::handle(&self.0, request.into_inner()).await)
    }

    type ExportLeavesStream = ReceiverStream<std::result::Result<ExportLeavesResponse, Status>>;

    async fn export_leaves(&self, request: Request<ExportLeavesRequest>) -> Answer<Self::ExportLeavesStream> {
        export_leaves::handle(&self.0, request.into_inner())
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    async fn erase_subject(&self, request: Request<EraseSubjectRequest>) -> Answer<EraseSubjectResponse> {
        reply(erase_subject::handle(&self.0, request).await)
    }
}

/// The tenant whose events the caller may read: that of its token. An internal client without one reads the
/// platform's own.
fn tenant_of(caller: &Caller) -> Result<TenantId> {
    match (caller.claims().tid, caller.subject()) {
        (None, Subject::Client(_)) => Ok(PLATFORM),
        _ => caller.tenant(),
    }
}

/// The internal service that calls on its own account.
///
/// # Errors
/// `CLIENT_REQUIRED` for persons and API keys.
fn client_of(caller: &Caller) -> Result<ClientName> {
    match caller.subject() {
        Subject::Client(name) => ClientName::new(name.as_str()).map_err(Error::internal),
        _ => Err(Error::permission_denied("CLIENT_REQUIRED", "Only an internal service can do this.")),
    }
}

fn count(field: &'static str, value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::invalid_field(field, "must not be negative"))
}

fn to_wire(event: Event) -> WireEvent {
    let Event { row, payload, actor_payload, erased, leaf: _ } = event;
    let outcome = match row.outcome.parse() {
        Ok(Outcome::Success) => WireOutcome::Success,
        Ok(Outcome::Denied) => WireOutcome::Denied,
        Ok(Outcome::Failure) => WireOutcome::Failure,
        Err(_) => WireOutcome::Unspecified,
    };
    WireEvent {
        event_id: row.event_id.to_string(),
        log: row.log,
        index: stored(row.seq),
        occurred_at: row.occurred.as_micros(),
        recorded_at: row.recorded.as_micros(),
        service: row.service,
        action: row.action,
        outcome: outcome.into(),
        tenant_id: if row.tenant == PLATFORM { String::new() } else { row.tenant.to_string() },
        actor: row.actor,
        target: row.target.unwrap_or_default(),
        request_id: row.request_id.unwrap_or_default(),
        trace_id: row.trace_id.unwrap_or_default(),
        payload_json: payload,
        erased,
        actor_json: actor_payload,
        reason: row.reason.unwrap_or_default(),
        delegate: row.delegate.unwrap_or_default(),
    }
}
