//! Types and rules without I/O.

pub mod answer;
pub mod class;
pub mod connection;
pub mod pkce;
pub mod policy;
pub mod scopes;
pub mod wish;
