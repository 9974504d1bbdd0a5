//! The edge: one HTTP door in front of the Gatehouse services.
//!
//! What it owns: the HTTP API ([`routes`](mod@routes), one file an endpoint), authentication at the door ([`door`]),
//! rate limits ([`limits`]), what browsers are told ([`browser`]), strict bodies ([`strict_json`]), one error format
//! ([`problem`]), server-sent events ([`sse`]), and the API's documentation ([`docs`]). It has no database and keeps no
//! state that another replica would need.
//!
//! Invariants:
//! - the server is built from [`routes::table`] only; a route declares credential, upstream calls, limits and
//!   documentation or does not compile, a declaration that contradicts the contracts keeps the gateway from starting,
//!   and a call that was not declared does not leave;
//! - no service behind sees what the caller showed, only a token made out to itself;
//! - a route refuses for the reasons that its documentation lists, which come from the contracts ([`refusals`]);
//! - no answer leaves without request id and security headers; no error leaves with its cause.
//!
//! To extend: write the endpoint's file under `src/routes/`, list its `route()` in the folder's `mod.rs`; that is all.

mod body;
mod browser;
mod client_address;
mod config;
mod connection;
mod context;
mod credential;
mod docs;
mod door;
mod doors;
mod edge;
mod empty_frames;
mod frames;
mod gateway;
mod heads;
mod http2;
mod https;
mod limits;
mod oauth_error;
mod problem;
mod refusals;
mod request_id;
mod route;
mod routes;
mod server;
mod sse;
mod streams;
mod strict_json;
mod telemetry;
mod time;
pub mod tls;
mod upload;
mod upstream;
mod wire;
mod wording;

mod reference;

pub use config::{Config, ProxyHeader, SseConfig};
pub use gateway::Deps;
pub use reference::{openapi_json, routes_markdown};
pub use server::{Listeners, RunningGateway, build};
pub use upstream::{StreamChannels, Upstreams};
