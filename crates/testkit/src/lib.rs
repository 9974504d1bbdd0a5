//! Placeholder.
pub mod redis;
