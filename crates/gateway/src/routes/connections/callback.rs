//! `GET /v1/connections/callback`: complete a connection with what the upstream sent back.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::CompleteConnectionRequest;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ConnectionView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/CompleteConnection"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// What the upstream sent back (RFC 6749, section 4.1.2; RFC 9207).
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CallbackQuery {
    state: String,
    /// Absent if the upstream sent an error.
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    iss: String,
}

/// Complete a connection with what the upstream sent back. Only the person who began it may: the page that the upstream returns to makes this request with their access token.
#[utoipa::path(get, path = "/v1/connections/callback", operation_id = "completeConnection", tag = "connections", params(CallbackQuery), responses((status = 200, body = ConnectionView, description = "Connected")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    // Unknown parameters are let through: upstreams add some of their own (RFC 6749, section 4.1.2).
    let query: CallbackQuery = context.query()?;
    let request = CompleteConnectionRequest {
        state: query.state,
        code: query.code,
        error: query.error,
        issuer: query.iss,
    };
    let answer =
        context.broker().await?.complete_connection(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(ConnectionView::new(answer.connection)?))
}
