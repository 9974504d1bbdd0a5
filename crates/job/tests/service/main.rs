//! The job service over real sockets, on both databases, with workers that come, go and die.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;
mod events;
mod jobs;
mod leases;
mod optimize;
mod streams;
mod workers;
