//! The optimizer: a worker that minimises an expression over named, bounded variables by CMA-ES.
//!
//! Owns jobs of kind `optimize`: what a request may say ([`domain::problem`]), what an objective may look like
//! ([`domain::grammar`]) and the search ([`domain::search`]). It is a worker like any that users write, on the public
//! client only: it knows no database and no other service's code.
//!
//! Invariants: a hostile objective neither panics, overflows the stack nor hangs; no candidate leaves its bounds; one
//! iteration is one progress event, stored together with the checkpoint that a later attempt goes on from, so no
//! iteration is told twice or left out; the job stops within one iteration of a cancel.
//!
//! To extend: a new function of objectives is a line in [`domain::grammar`]; another algorithm is another module
//! beside [`domain::search`] with the same steps.

mod config;
pub mod domain;
mod worker;

pub use config::Config;
pub use worker::run;

/// The kind of job that this worker does.
pub const KIND: &str = "optimize";
