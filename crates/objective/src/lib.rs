//! What a job of kind `optimize` may ask for: an objective over named, bounded variables.
//!
//! Owns the request's shape and bounds ([`problem`]), the grammar of objectives ([`grammar`]) and their evaluation
//! ([`objective`]). The gateway uses it to refuse a bad request at once, the worker to do a good one: one text, one
//! reading. No I/O.
//!
//! Invariants: a hostile objective neither panics, overflows the stack nor hangs; what parses here evaluates there.
//!
//! To extend: a new function of objectives is a line in [`grammar`].

pub mod grammar;
pub mod objective;
pub mod problem;

pub use objective::Objective;
pub use problem::{Iterations, MAX_SEED, Problem, Variable};
