//! TLS between services: both sides show a certificate, and each checks that the other is the service it means.
//!
//! Invariants: TLS 1.3 only; a name is believed only from a certificate that an authority of ours vouches for and that
//! is of our trust domain; a client goes on only with the service it wanted, whatever the address led to (names in
//! DNS prove nothing here); no session is resumed, so every connection is checked against the certificates of now.

mod certificates;
mod client;
mod server;
mod service_id;
mod watched;

pub use certificates::{Certificates, Loaded, TlsFiles, WARN_BEFORE, ends_at};
pub use client::ClientTls;
pub use server::server_config;
pub use service_id::{ServiceId, ServiceIdError, is_service, is_trust_domain};
pub use watched::Watched;

/// What is spoken inside (RFC 7301): gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";
