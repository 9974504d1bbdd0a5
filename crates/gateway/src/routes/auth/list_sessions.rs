//! `GET /v1/auth/sessions`: the own sessions.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::ListSessionsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::time;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.AccountService/ListSessions"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Live sessions.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionList {
    sessions: Vec<SessionView>,
}

/// One signed-in session.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionView {
    session_id: String,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    user_agent: String,
    /// Whether this request's token belongs to it.
    current: bool,
}

/// The caller's live sessions, newest first.
#[utoipa::path(get, path = "/v1/auth/sessions", operation_id = "listSessions", tag = "auth", responses((status = 200, body = SessionList, description = "The sessions")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer = context
        .accounts()
        .await?
        .list_sessions(ListSessionsRequest {})
        .await
        .map_err(from_status)?
        .into_inner();
    let sessions = answer.sessions.into_iter().map(|session| SessionView {
        session_id: session.session_id,
        created_at: time::text(session.created_at),
        last_used_at: time::text(session.last_used_at),
        expires_at: time::text(session.expires_at),
        user_agent: session.user_agent,
        current: session.current,
    });
    Ok(HttpResponse::Ok().json(SessionList { sessions: sessions.collect() }))
}
