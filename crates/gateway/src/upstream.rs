//! Calls to the services behind: as the caller, or as the gateway itself, and only those that the route declares.

use std::pin::Pin;
use std::task::{Context, Poll};

use gatehouse_client::Authorized;
use gatehouse_core::Error;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service as TowerService;

use crate::route::Service;

/// Channels to the four services, without credentials.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// The auth service.
    pub auth: Channel,
    /// The token broker.
    pub token_broker: Channel,
    /// The job service.
    pub job: Channel,
    /// The audit service.
    pub audit: Channel,
}

impl Upstreams {
    pub(crate) fn channel(&self, service: Service) -> Channel {
        match service {
            Service::Auth => self.auth.clone(),
            Service::TokenBroker => self.token_broker.clone(),
            Service::Job => self.job.clone(),
            Service::Audit => self.audit.clone(),
        }
    }
}

/// A channel that passes the calls declared and refuses the rest: what a route's documentation, permission and
/// limits say is then what it does.
#[derive(Clone, Debug)]
pub(crate) struct DeclaredCalls {
    channel: Authorized,
    calls: &'static [&'static str],
}

impl DeclaredCalls {
    pub(crate) const fn new(channel: Authorized, calls: &'static [&'static str]) -> Self {
        Self { channel, calls }
    }
}

impl TowerService<http::Request<Body>> for DeclaredCalls {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if self.calls.contains(&request.uri().path()) {
            return self.channel.call(request);
        }
        tracing::error!(call = request.uri().path(), "a route made a call that it does not declare");
        let refusal = gatehouse_client::to_status(&Error::internal("undeclared call")).into_http();
        Box::pin(async move { Ok(refusal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_was_not_declared_does_not_leave() {
        // Nothing listens there: a call that left would fail as unavailable (14).
        let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        let status = |path: &'static str| {
            let mut calls = DeclaredCalls::new(Authorized::anonymous(channel.clone()), &["/a.B/Declared"]);
            async move {
                std::future::poll_fn(|cx| calls.poll_ready(cx)).await.expect("lazy channels are ready");
                let request = http::Request::builder().uri(format!("http://x{path}")).body(Body::empty());
                calls
                    .call(request.expect("a request"))
                    .await
                    .map(|answer| answer.headers()["grpc-status"].clone())
            }
        };
        assert_eq!(status("/a.B/Other").await.expect("an answer"), "13");
        status("/a.B/Declared").await.expect_err("it left");
    }
}
