//! The gRPC face: proto to domain and back, nothing else. One file a service, one small method an RPC.

mod account;
mod api_key;
mod tenant;
mod token;

use std::net::IpAddr;
use std::str::FromStr;

use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::auth::v1 as proto;
use gatehouse_proto::auth::v1::account_service_server::AccountServiceServer;
use gatehouse_proto::auth::v1::api_key_service_server::ApiKeyServiceServer;
use gatehouse_proto::auth::v1::tenant_service_server::TenantServiceServer;
use gatehouse_proto::auth::v1::token_service_server::TokenServiceServer;
use gatehouse_service::Lifecycle;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

use crate::app::{App, Origin};

/// The package that these services belong to.
pub(crate) const PACKAGE: &str = "gatehouse.auth.v1";

/// What a caller must hold to say where a request came from.
const ASSERT_ORIGIN: &str = "auth.origin.assert";

/// The four services.
#[derive(Clone, Debug)]
struct Face {
    app: App,
    lifecycle: Lifecycle,
}

/// The routes of this service.
#[must_use]
pub(crate) fn routes(app: &App, lifecycle: &Lifecycle) -> Routes {
    let face = Face { app: app.clone(), lifecycle: lifecycle.clone() };
    Routes::new(AccountServiceServer::new(face.clone()))
        .add_service(TokenServiceServer::new(face.clone()))
        .add_service(TenantServiceServer::new(face.clone()))
        .add_service(ApiKeyServiceServer::new(face))
}

impl Face {
    /// Does `work` to its end though the caller hung up; drain waits for it.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.lifecycle.spawn(work).await.map_err(Error::internal)?
    }

    /// Where a request came from, if whoever says so may. Public methods have no caller, so the token that the gateway
    /// sends along is looked at here.
    fn origin(&self, metadata: &MetadataMap, said: Option<proto::Origin>) -> Origin {
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let trusted = token
            .and_then(|token| self.app.0.verifier.verify(token, false).ok())
            .is_some_and(|caller| caller.holds(ASSERT_ORIGIN));
        match said {
            Some(said) if trusted => Origin {
                // What is no address is not told as one.
                ip: said.ip.parse().map(|ip: IpAddr| ip.to_string()).unwrap_or_default(),
                user_agent: said.user_agent.chars().filter(|c| !c.is_control()).take(256).collect(),
            },
            _ => Origin::default(),
        }
    }
}

fn id<T: FromStr<Err = gatehouse_core::ids::InvalidId>>(field: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|error: gatehouse_core::ids::InvalidId| Error::invalid_field(field, error.to_string()))
}

fn optional_id<T: FromStr<Err = gatehouse_core::ids::InvalidId>>(
    field: &str,
    text: &str,
) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn micros(instant: Option<Timestamp>) -> i64 {
    instant.map_or(0, Timestamp::as_micros)
}
