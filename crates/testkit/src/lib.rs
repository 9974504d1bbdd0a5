//! Placeholder.
pub mod oauth_provider;
pub mod redis;
