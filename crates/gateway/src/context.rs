//! What a handler gets: the request, whoever sent it, and the way to the services behind.

use std::cell::RefCell;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::dev::Payload;
use actix_web::http::header;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use gatehouse_client::Authorized;
use gatehouse_core::{Error, Result, Secret};
use gatehouse_proto::audit::v1::audit_service_client::AuditServiceClient;
use gatehouse_proto::auth::v1::Origin;
use gatehouse_proto::auth::v1::account_service_client::AccountServiceClient;
use gatehouse_proto::auth::v1::api_key_service_client::ApiKeyServiceClient;
use gatehouse_proto::auth::v1::tenant_service_client::TenantServiceClient;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::token_broker::v1::token_broker_service_client::TokenBrokerServiceClient;
use serde::de::DeserializeOwned;

use crate::client_address::ClientAddress;
use crate::door::Admitted;
use crate::gateway::Gateway;
use crate::route::{Access, Route, Service};
use crate::strict_json;
use crate::upstream::DeclaredCalls;
use crate::wording::public_detail;

/// What is known of a request before it is routed. Stands in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestInfo {
    pub(crate) request_id: String,
    pub(crate) client: ClientAddress,
}

/// A body that nobody has read, or read to its end. actix-web drains a chunked body whose reader was dropped, for
/// as long as it goes on; one that still has its reader when the answer has been sent is given two seconds and cut off.
/// Over HTTP/2 it is given up as soon as there is an answer, and at once where none is wanted: what is kept of it there is
/// missing to the other requests of the connection, for as long as the answer lasts.
pub(crate) type Unread = Rc<RefCell<Option<Payload>>>;

/// One request on its way through a handler.
pub(crate) struct Context {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) route: Arc<Route>,
    pub(crate) request: HttpRequest,
    /// The body while it is unread. Shared with the answer, which keeps what was not read: see [`Unread`].
    pub(crate) payload: Unread,
    pub(crate) info: RequestInfo,
    /// Present on every route that asks for a caller.
    pub(crate) caller: Option<Admitted>,
}

impl Context {
    /// The body as strict JSON.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE`, `PAYLOAD_TOO_LARGE`, and those of [`strict_json::from_slice`].
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.expect_media_type("application/json")?;
        strict_json::from_slice(&self.body().await?)
    }

    /// The body as [`Context::json`] reads it, and once more as a type that keeps parts of it as they stand
    /// ([`serde_json::value::RawValue`]).
    ///
    /// # Errors
    /// As [`Context::json`].
    pub(crate) async fn json_and_verbatim<T: DeserializeOwned, V: DeserializeOwned>(
        &mut self,
    ) -> Result<(T, V)> {
        self.expect_media_type("application/json")?;
        let body = self.body().await?;
        let checked = strict_json::from_slice(&body)?;
        Ok((checked, strict_json::checked_from_slice(&body)?))
    }

    /// The body as a form: each name once (RFC 6749, section 3.2).
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE`, `PAYLOAD_TOO_LARGE`, `INVALID_FIELD`.
    pub(crate) async fn form(&mut self) -> Result<Form> {
        self.expect_media_type("application/x-www-form-urlencoded")?;
        Form::parse(&self.body().await?)
    }

    /// Checks that there is no body, or an empty JSON object.
    ///
    /// # Errors
    /// `BODY_NOT_EXPECTED`, `PAYLOAD_TOO_LARGE`.
    pub(crate) async fn no_body(&mut self) -> Result<()> {
        match self.body().await?.trim_ascii() {
            b"" | b"{}" => Ok(()),
            _ => Err(Error::invalid_argument("BODY_NOT_EXPECTED", "This takes no body. Send none.")),
        }
    }

    /// The query as a type whose unknown fields are refused.
    ///
    /// # Errors
    /// `INVALID_FIELD`.
    pub(crate) fn query<T: DeserializeOwned>(&self) -> Result<T> {
        let pairs = || url::form_urlencoded::parse(self.request.query_string().as_bytes());
        if let Some((name, _)) =
            pairs().find(|(name, value)| name.contains('\u{fffd}') || value.contains('\u{fffd}'))
        {
            return Err(Error::invalid_field(safe_name(&name), "must be UTF-8, percent-encoded"));
        }
        let parsed = serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs()));
        parsed.map_err(|error| {
            let field = error.path().to_string();
            let field = if field == "." { "query".to_owned() } else { field };
            Error::invalid_field(field, public_detail(&error.inner().to_string()))
        })
    }

    /// Refuses a query where the route has no parameter that could stand in one.
    ///
    /// # Errors
    /// `INVALID_FIELD`.
    pub(crate) fn check_query(&self) -> Result<()> {
        if self.route.takes_query || self.route.access == Access::Probe {
            return Ok(());
        }
        match url::form_urlencoded::parse(self.request.query_string().as_bytes()).next() {
            None => Ok(()),
            Some((name, _)) => {
                let name = Some(safe_name(&name)).filter(|name| !name.is_empty());
                let name = name.unwrap_or_else(|| "query".to_owned());
                Err(Error::invalid_field(name, "this address takes no query parameters"))
            }
        }
    }

    /// An id that stands in the path.
    ///
    /// # Errors
    /// `INVALID_FIELD` if it is no id.
    pub(crate) fn id<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T> {
        self.path(name)?.parse().map_err(|error: T::Err| Error::invalid_field(name, error.to_string()))
    }

    /// A name that stands in the path: 1 to 128 of `[A-Za-z0-9._-]`.
    ///
    /// # Errors
    /// `INVALID_FIELD`.
    pub(crate) fn path(&self, name: &str) -> Result<&str> {
        let text = self.request.match_info().get(name).unwrap_or_default();
        let safe =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if safe && (1..=128).contains(&text.len()) {
            return Ok(text);
        }
        Err(Error::invalid_field(name, "1 to 128 letters, digits, dots, hyphens or underscores are expected"))
    }

    /// A header's value as visible ASCII text.
    ///
    /// # Errors
    /// `INVALID_FIELD` if it stands there twice, is longer than `max` or has other characters.
    pub(crate) fn header(&self, name: &'static str, max: usize) -> Result<Option<&str>> {
        let mut values = self.request.headers().get_all(name);
        let Some(value) = values.next() else { return Ok(None) };
        let visible = value.as_bytes().iter().all(|byte| (0x21..=0x7e).contains(byte));
        match value.to_str() {
            Ok(text) if values.next().is_none() && visible && (1..=max).contains(&text.len()) => {
                Ok(Some(text))
            }
            _ => Err(Error::invalid_field(
                name,
                format!("one value of 1 to {max} visible ASCII characters is expected"),
            )),
        }
    }

    /// The address that clients know this gateway by: as configured, else (in dev) as the request says.
    pub(crate) fn base_url(&self) -> String {
        if !self.gateway.config.public_url.is_empty() {
            return self.gateway.config.public_url.clone();
        }
        let scheme = if self.info.client.https { "https" } else { "http" };
        let host = self.request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = self.request.uri().authority().map(actix_web::http::uri::Authority::as_str);
        format!("{scheme}://{}", host.or(authority).unwrap_or("localhost"))
    }

    /// Where the request came from, for the audit trail.
    pub(crate) fn origin(&self) -> Origin {
        let agent = self.request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        Origin {
            ip: self.info.client.ip.to_string(),
            user_agent: agent.unwrap_or_default().chars().take(256).collect(),
        }
    }

    /// Accounts, as the caller or, on public routes, as the gateway (so that auth believes our word of the origin).
    pub(crate) async fn accounts(&self) -> Result<AccountServiceClient<DeclaredCalls>> {
        Ok(AccountServiceClient::new(self.channel(Service::Auth).await?))
    }

    pub(crate) async fn tenants(&self) -> Result<TenantServiceClient<DeclaredCalls>> {
        Ok(TenantServiceClient::new(self.channel(Service::Auth).await?))
    }

    pub(crate) async fn api_keys(&self) -> Result<ApiKeyServiceClient<DeclaredCalls>> {
        Ok(ApiKeyServiceClient::new(self.channel(Service::Auth).await?))
    }

    pub(crate) async fn tokens(&self) -> Result<TokenServiceClient<DeclaredCalls>> {
        Ok(TokenServiceClient::new(self.channel(Service::Auth).await?))
    }

    /// Tokens, with a token that a client of ours has just been given.
    pub(crate) fn tokens_as(&self, token: String) -> TokenServiceClient<DeclaredCalls> {
        let channel =
            Authorized::with_token(self.gateway.upstreams.channel(Service::Auth), Secret::new(token));
        TokenServiceClient::new(DeclaredCalls::new(channel, self.route.calls))
    }

    pub(crate) async fn broker(&self) -> Result<TokenBrokerServiceClient<DeclaredCalls>> {
        Ok(TokenBrokerServiceClient::new(self.channel(Service::TokenBroker).await?))
    }

    pub(crate) async fn jobs(&self) -> Result<JobServiceClient<DeclaredCalls>> {
        Ok(JobServiceClient::new(self.channel(Service::Job).await?))
    }

    pub(crate) async fn audit(&self) -> Result<AuditServiceClient<DeclaredCalls>> {
        Ok(AuditServiceClient::new(self.channel(Service::Audit).await?))
    }

    async fn channel(&self, service: Service) -> Result<DeclaredCalls> {
        let channel = self.gateway.upstreams.channel(service);
        let authorized = if let Some(admitted) = &self.caller {
            Authorized::with_token(channel, admitted.token.clone())
        } else {
            let tokens = &self.gateway.tokens;
            // Asked for here first: that we ourselves are refused is no fault of the caller's.
            tokens.token(service.audience()).await.map_err(own_failure)?;
            Authorized::as_client(channel, tokens.clone(), service.audience())
        };
        Ok(DeclaredCalls::new(authorized, self.route.calls))
    }

    fn expect_media_type(&self, expected: &'static str) -> Result<()> {
        let unsupported = || {
            Error::invalid_argument(
                "UNSUPPORTED_MEDIA_TYPE",
                format!(
                    "The body must be {expected}, in UTF-8, sent with one Content-Type header and no Content-Encoding."
                ),
            )
        };
        let headers = self.request.headers();
        let mut types = headers.get_all(header::CONTENT_TYPE);
        let value = types.next().and_then(|value| value.to_str().ok()).ok_or_else(unsupported)?;
        if types.next().is_some() {
            return Err(Error::invalid_argument("DUPLICATE_HEADER", "Send one Content-Type header."));
        }
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        let utf8 = parameters.split(';').map(str::trim).filter(|one| !one.is_empty()).all(|one| {
            one.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("charset")
                    && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        });
        let plain = headers
            .get(header::CONTENT_ENCODING)
            .is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
        if essence.trim().eq_ignore_ascii_case(expected) && utf8 && plain {
            Ok(())
        } else {
            Err(unsupported())
        }
    }

    /// The whole body, refused as soon as it is known to be too long.
    async fn body(&self) -> Result<Bytes> {
        let max = self.gateway.config.max_request_bytes;
        let too_large = || {
            Error::invalid_argument("PAYLOAD_TOO_LARGE", format!("The body may have at most {max} bytes."))
        };
        let declared = self
            .request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok());
        if declared.is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let Some(mut payload) = self.payload.take() else { return Ok(Bytes::new()) };
        let allowed = Duration::from_millis(self.gateway.config.body_timeout_ms);
        let read = tokio::time::timeout(allowed, read_body(&mut payload, max)).await.unwrap_or_else(|_| {
            Err(Error::deadline_exceeded("BODY_TIMEOUT", "The body did not arrive in time. Send it again."))
        });
        match read {
            Ok(Some(body)) => Ok(body),
            Ok(None) => {
                self.payload.replace(Some(payload));
                Err(too_large())
            }
            Err(error) => {
                self.payload.replace(Some(payload));
                Err(error)
            }
        }
    }
}

/// The whole body; `None` if it is longer than `max`.
async fn read_body(payload: &mut Payload, max: usize) -> Result<Option<Bytes>> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| {
            Error::invalid_argument("BODY_BROKEN", "The body ended before it was whole. Send it again.")
                .caused_by(error.to_string())
        })?;
        if body.len() + chunk.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

/// Auth refused or missed the gateway itself: for the caller, a service is away.
pub(crate) fn own_failure(error: Error) -> Error {
    if error.code().is_retryable() {
        return error;
    }
    Error::unavailable("SERVICE_UNAVAILABLE", "A service that this needs is away. Try again in a moment.")
        .caused_by(error)
}

/// The fields of a form.
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(bytes) {
            if name.contains('\u{fffd}') || value.contains('\u{fffd}') {
                return Err(Error::invalid_argument("BODY_NOT_UTF8", "The form must be UTF-8."));
            }
            if value.chars().count() > strict_json::MAX_TEXT_CHARS {
                return Err(Error::invalid_field(safe_name(&name), "longer than 8192 characters"));
            }
            if fields.iter().any(|(known, _)| *known == name) {
                return Err(Error::invalid_field(safe_name(&name), "stands there twice"));
            }
            fields.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(fields))
    }

    /// The value of a field that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// The value of a field.
    ///
    /// # Errors
    /// `INVALID_FIELD` if it is missing.
    pub(crate) fn require(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| Error::invalid_field(name, "is needed"))
    }
}

fn safe_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_field_stands_once_and_is_text() {
        let form = Form::parse(b"grant_type=client_credentials&scope=&x=%C3%A9").expect("good");
        assert_eq!(form.get("grant_type"), Some("client_credentials"));
        assert_eq!(form.get("scope"), None);
        assert_eq!(form.get("x"), Some("é"));
        assert!(form.require("client_id").is_err());
        assert!(Form::parse(b"a=1&a=2").is_err());
        assert!(Form::parse(b"a=%ff").is_err());
    }
}
