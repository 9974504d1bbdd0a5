//! What an internal Rust service imports to call Gatehouse: channels, credentials, errors, retries, and the loop
//! of a worker.
//!
//! Invariants: a token is fetched for one audience and sent to no other service; nothing here repeats a call that
//! may have had an effect, unless its contract says that repeating does no harm; every call carries the request id and
//! the W3C trace context of the task that makes it. Between hosts, give each [`ChannelConfig`] a [`tls::ClientTls`].
//!
//! To extend: wrap a generated client of `gatehouse-proto` around a [`Authorized`] channel:
//!
//! ```no_run
//! # async fn example() -> gatehouse_core::Result<()> {
//! use gatehouse_client::{Authorized, ChannelConfig, ClientCredentials, TokenSource, channel};
//! use gatehouse_core::{Clock, Secret};
//! use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
//!
//! let auth = channel(&ChannelConfig::to("http://127.0.0.1:7101"))?;
//! let credentials = ClientCredentials { client_id: "reporting".into(), client_secret: Secret::new("…".into()) };
//! let tokens = TokenSource::new(auth, credentials, Clock::system());
//! let job = channel(&ChannelConfig::to("http://127.0.0.1:7103"))?;
//! let mut jobs = JobServiceClient::new(Authorized::as_client(job, tokens, gatehouse_client::audience::JOB));
//! # Ok(()) }
//! ```

mod authorized;
mod channel;
pub mod context;
mod retry;
pub mod status;
pub mod tls;
mod token_source;
pub mod worker;

pub use authorized::Authorized;
pub use channel::{
    Channel, ChannelBuilder, ChannelConfig, Connector, NOT_BEGUN, Repeatable, Resolver, Securing, Transport,
    channel, stream_channel,
};
pub use retry::Backoff;
pub use status::{from_status, to_status};
pub use token_source::{ClientCredentials, TokenSource};

/// The `aud` of tokens: each service accepts its own and no other.
pub mod audience {
    /// What a person's client holds and shows to the gateway.
    pub const GATEWAY: &str = "gatehouse";
    /// The auth service.
    pub const AUTH: &str = "gatehouse.auth";
    /// The token broker.
    pub const TOKEN_BROKER: &str = "gatehouse.token-broker";
    /// The job service.
    pub const JOB: &str = "gatehouse.job";
    /// The audit service.
    pub const AUDIT: &str = "gatehouse.audit";
    /// Every service that a token can be asked for.
    pub const SERVICES: &[&str] = &[AUTH, TOKEN_BROKER, JOB, AUDIT];
}
