//! The optimizer: a worker that minimises an expression over named, bounded variables by CMA-ES.
//!
//! Owns jobs of kind `optimize` and the search ([`search`]); what a request may say is `gatehouse-objective`'s. It is a
//! worker like any that users write, on the public client only: it knows no database and no other service's code.
//!
//! Invariants: no candidate leaves its bounds; one
//! iteration is one progress event, stored together with the checkpoint that a later attempt goes on from, so no
//! iteration is told twice or left out; the job stops within one iteration of a cancel.
//!
//! To extend: another algorithm is another module beside [`search`] with the same steps.

mod config;
pub mod search;
mod worker;

pub use config::Config;
pub use worker::worker;

/// The kind of job that this worker does.
pub const KIND: &str = "optimize";
