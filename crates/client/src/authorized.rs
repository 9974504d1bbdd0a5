//! A channel that shows a credential with every call.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use gatehouse_core::{Result, Secret};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::{Channel, TokenSource, context, from_status, to_status};

/// A [`Channel`] whose calls carry a bearer token, the request id and the trace context. Give it to any generated
/// client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorized {
    channel: Channel,
    credential: Credential,
}

#[derive(Clone, Debug)]
enum Credential {
    None,
    Bearer(Secret<String>),
    Client(TokenSource, &'static str),
}

impl Authorized {
    /// Calls as the service itself, with its own token for `audience`.
    #[must_use]
    pub fn as_client(channel: Channel, tokens: TokenSource, audience: &'static str) -> Self {
        Self { channel, credential: Credential::Client(tokens, audience) }
    }

    /// Calls with a token that someone else obtained, such as an exchanged one.
    #[must_use]
    pub fn with_token(channel: Channel, token: Secret<String>) -> Self {
        Self { channel, credential: Credential::Bearer(token) }
    }

    /// How long a stream that is opened now can go on before it should be opened again with a newer token; `None` if it
    /// gets no newer one.
    pub(crate) async fn fades_in(&self) -> Result<Option<Duration>> {
        match &self.credential {
            Credential::Client(tokens, audience) => tokens.fades_in(audience).await,
            Credential::None | Credential::Bearer(_) => Ok(None),
        }
    }

    /// Calls without a credential, for public methods.
    #[must_use]
    pub fn anonymous(channel: Channel) -> Self {
        Self { channel, credential: Credential::None }
    }
}

impl Service<http::Request<Body>> for Authorized {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone takes the fresh channel; the one that was polled ready is the one that must be called.
        let fresh = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, fresh);
        let credential = self.credential.clone();
        Box::pin(async move {
            context::inject(request.headers_mut());
            let (tokens, audience) = match credential {
                Credential::None => return channel.call(request).await,
                Credential::Bearer(token) => {
                    show(request.headers_mut(), &token);
                    return channel.call(request).await;
                }
                Credential::Client(tokens, audience) => (tokens, audience),
            };
            let token = match tokens.token(audience).await {
                Ok(token) => token,
                // A gRPC answer, not a transport error: the caller learns why it has no token.
                Err(error) => return Ok(to_status(&error).into_http()),
            };
            show(request.headers_mut(), &token);
            let response = channel.call(request).await?;
            if is_about_token(response.headers()) {
                tokens.forget(audience, &token);
            }
            Ok(response)
        })
    }
}

fn show(headers: &mut HeaderMap, token: &Secret<String>) {
    // A token that is no header value is no token either: the service will say so.
    if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", token.expose())) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
}

/// Whether a call was refused for the token that it showed. What its message carries may be refused with the same code: a
/// wrong password, say, or somebody else's key.
fn is_about_token(headers: &HeaderMap) -> bool {
    let Some(status) = Status::from_header_map(headers) else { return false };
    status.code() == Code::Unauthenticated
        && matches!(
            from_status(status).reason(),
            "TOKEN_MISSING" | "TOKEN_INVALID" | "TOKEN_EXPIRED" | "TOKEN_REVOKED"
        )
}
