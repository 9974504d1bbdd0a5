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
use tower::Service;

use crate::{Channel, TokenSource, context, to_status};

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
            match &credential {
                Credential::None => {}
                Credential::Bearer(token) => show(request.headers_mut(), token),
                Credential::Client(tokens, audience) => match tokens.token(audience).await {
                    Ok(token) => show(request.headers_mut(), &token),
                    // A gRPC answer, not a transport error: the caller learns why it has no token.
                    Err(error) => return Ok(to_status(&error).into_http()),
                },
            }
            let response = channel.call(request).await?;
            if let Credential::Client(tokens, audience) = &credential
                && is_unauthenticated(response.headers())
            {
                tokens.forget(audience);
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

fn is_unauthenticated(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status.as_bytes() == b"16")
}
