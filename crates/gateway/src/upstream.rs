//! Calls to the services behind: as the caller, or as the gateway itself, and only those that the route declares.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use gatehouse_client::{Authorized, Channel, ChannelConfig, stream_channel};
use gatehouse_core::{Error, Result};
use tonic::body::Body;
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
    /// The job service again, for event streams alone.
    pub job_streams: StreamChannels,
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

/// Connections for answers that go on for long. They are none of those that calls go over: a connection takes so many
/// streams at a time (RFC 9113, section 5.1.2), and who opens many would keep everybody's calls waiting.
#[derive(Clone, Debug, Default)]
pub struct StreamChannels {
    channels: Vec<Channel>,
    streams_each: usize,
}

impl StreamChannels {
    /// `channels`, each to carry at most `streams_each` streams at a time.
    #[must_use]
    pub const fn new(channels: Vec<Channel>, streams_each: usize) -> Self {
        Self { channels, streams_each }
    }

    /// As many connections to `peer` as `streams` take if a connection carries `max_concurrent_streams` (of which half
    /// is used: a stream that was closed still counts until the peer knows).
    ///
    /// # Errors
    /// `INVALID_ENDPOINT`. Must be called inside a tokio runtime.
    pub fn connect(peer: &ChannelConfig, streams: usize, max_concurrent_streams: u32) -> Result<Self> {
        let each = Self::streams_each(max_concurrent_streams);
        let channels = (0..Self::needed(streams, max_concurrent_streams))
            .map(|_| stream_channel(peer, each))
            .collect::<Result<_>>()?;
        Ok(Self::new(channels, each as usize))
    }

    /// How many connections `streams` take.
    #[must_use]
    pub fn needed(streams: usize, max_concurrent_streams: u32) -> usize {
        streams.div_ceil(Self::streams_each(max_concurrent_streams) as usize)
    }

    fn streams_each(max_concurrent_streams: u32) -> u32 {
        (max_concurrent_streams / 2).max(1)
    }

    /// Most streams at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.channels.len().saturating_mul(self.streams_each)
    }

    pub(crate) fn into_parts(self) -> (Vec<Channel>, usize) {
        (self.channels, self.streams_each)
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
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
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
    use gatehouse_client::channel;

    use super::*;

    #[tokio::test]
    async fn there_are_connections_for_all_streams() {
        let peer = ChannelConfig::to("http://127.0.0.1:1");
        for (streams, concurrent, connections) in [(4096, 1000, 9), (1, 1000, 1), (3, 1, 3), (1000, 1000, 2)]
        {
            let channels = StreamChannels::connect(&peer, streams, concurrent).expect("an address");
            assert_eq!(channels.channels.len(), connections);
            assert!(channels.capacity() >= streams);
        }
        assert_eq!(StreamChannels::default().capacity(), 0);
    }

    #[tokio::test]
    async fn a_call_that_was_not_declared_does_not_leave() {
        // Nothing listens there: a call that left would fail as unavailable (14).
        let channel = channel(&ChannelConfig::to("http://127.0.0.1:1")).expect("an address");
        let status = |path: &'static str| {
            let mut calls = DeclaredCalls::new(Authorized::anonymous(channel.clone()), &["/a.B/Declared"]);
            async move {
                let request = http::Request::builder().uri(format!("http://x{path}")).body(Body::empty());
                let Ok(answer) = calls.call(request.expect("a request")).await;
                answer.headers()["grpc-status"].clone()
            }
        };
        assert_eq!(status("/a.B/Other").await, "13");
        assert_eq!(status("/a.B/Declared").await, "14", "it did not leave");
    }
}
